package identity_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// suspended: devices that answer nothing, as when all paths to a SAN are gone. What needs
// no look at what is on them is answered; who asks for a file on one is refused in time;
// and no other request waits for either.
func suspended(t *testing.T, s *suite) {
	const beside = "/var/lib/libvirt/images/beside.img"
	s.private(t, own)
	s.private(t, beside)
	for i, name := range []string{"vmdisk", "given", "fs"} {
		s.table(t, 1, name, "site-"+name, i*8192, 8192)
		if name != "fs" {
			s.table(t, 2, "far-"+name, "site-"+name, i*8192, 8192)
		}
	}
	s.create(t, 1, lab.Domain{Name: "writes", Disks: []lab.Disk{{Path: own}, {Path: "/dev/mapper/vmdisk", Cache: "none"}}})
	release := s.hold(t, 1, "/dev/mapper/given")
	// Mounted anew, so that nothing of it is in memory.
	s.sh(t, 1, "mkfs.ext4 -q /dev/mapper/fs; mkdir -p /mnt/fs; mount /dev/mapper/fs /mnt/fs; mkdir /mnt/fs/vm; cp "+beside+" /mnt/fs/vm/web.img; umount /mnt/fs; mount /dev/mapper/fs /mnt/fs")
	s.undo(t, 1, "umount /mnt/fs")
	s.sh(t, 1, "for d in vmdisk given fs; do dmsetup suspend --nolockfs $d; done")
	var (
		all      sync.WaitGroup
		answered atomic.Int32
	)
	t.Cleanup(all.Wait) // after the next one
	resume := func() { s.sh(t, 1, "for d in vmdisk given fs; do dmsetup resume $d; done") }
	t.Cleanup(resume)

	// The disk of a virtual machine, one that is given back, and one that nobody has.
	s.wantHeld(t, 1, "/dev/mapper/vmdisk")
	s.wantHeld(t, 2, "/dev/mapper/far-vmdisk")
	s.wantHeld(t, 2, "/dev/mapper/far-given")
	release()
	s.wantFree(t, 2, "/dev/mapper/far-given")
	s.wantFree(t, 1, "/dev/mapper/given")
	s.wantFree(t, 1, "/dev/mapper/fs")

	// Files on one.
	const asked = 6
	for range asked {
		all.Go(func() {
			res, err := s.Node(1).Exec(s.ctx, "vmlockctl", "run", "/mnt/fs/vm/web.img", "--", "true")
			answered.Add(1)
			if err != nil || res.Status != runRefused || !strings.Contains(res.Stderr, "which disk it is cannot be found out: its file system or device has not answered") {
				t.Errorf("a file on a device that is suspended: %v, %v", res, err)
			}
		})
	}
	stuck := func() int {
		// grep exits with 1 when it counts none.
		n, err := strconv.Atoi(strings.TrimSpace(s.sh(t, 1, "ps -L -o stat= -p $(pidof vmlockd) | grep -c ^D || true")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := lab.WaitFor(ctx, "vmlockd to wait for the device", func(context.Context) (bool, error) { return stuck() > 0, nil }); err != nil {
		t.Fatal(err)
	}
	others := []func(){
		func() { s.wantFree(t, 1, beside) },               // a file of the root
		func() { s.wantFree(t, 1, "/dev/mapper/given") },  // a device that is suspended too
		func() { s.wantHeld(t, 1, "/dev/mapper/vmdisk") }, // and a refusal
		func() { s.wantFree(t, 2, beside) },
	}
	// Single ones are counted, as a slow node has no time for all of them before the refusals come.
	done := 0
	for i := 0; int(answered.Load()) < asked; i++ {
		others[i%len(others)]()
		if answered.Load() == 0 { // nor had any while this one went on
			done++
		}
	}
	all.Wait()
	if done == 0 {
		t.Errorf("others did not acquire and release anything before those who asked for the suspended device had their refusals")
	}
	t.Logf("%d requests of others were answered while %d waited", done, asked)
	if stuck() == 0 {
		t.Error("nothing hangs in the kernel any more, so what follows shows nothing")
	}
	for _, other := range others {
		other()
	}
	s.create(t, 1, lab.Domain{Name: "starts", Disks: []lab.Disk{{Path: beside}}})
	s.wantHeld(t, 1, beside)

	resume()
	ctx, cancel = context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the file to be free", func(ctx context.Context) (bool, error) {
		res, err := s.Node(1).Exec(ctx, "vmlockctl", "run", "/mnt/fs/vm/web.img", "--", "true")
		if err == nil && !res.OK() && !strings.Contains(res.Stderr, "which disk it is cannot be found out") {
			err = fmt.Errorf("%v", res)
		}
		return err == nil && res.OK(), err
	})
	if err != nil {
		t.Error(err)
	}
	s.wantHeld(t, 2, "/dev/mapper/far-vmdisk") // the virtual machine never lost it
}
