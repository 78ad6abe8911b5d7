package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

func liveMigration(t *testing.T, s *suite) {
	path := s.disk(t, "migrate.img", lab.CountingGuest())
	d := vm("mover", lab.Disk{Path: path})
	s.create(t, 1, d)
	s.must(t, "migrate from node 1 to 2", func() (lab.Result, error) { return s.Node(1).Migrate(s.ctx, "mover", s.Node(2)) })
	s.endsWithTest(t, 2, "mover")
	s.state(t, 2, "mover", "running")
	s.state(t, 1, "mover", "")
	counts(t, s, "migrate.img")
	s.refusedNaming(t, 1, vm("again", lab.Disk{Path: path}), path, 2, "mover")
	s.destroy(t, 2, "mover")
	s.wantFree(t, 1, path)
}

// busyGuest writes to its memory faster than a migration at 1 MiB/s copies it. When it
// begins it writes 1 to its disk, at lab.CounterOffset.
func busyGuest() []byte {
	img := lab.IdleGuest()
	copy(img, []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xc0, // mov es, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0xfb,                                                 // sti
		0x66, 0xc7, 0x06, 0x00, 0x80, 0x01, 0x00, 0x00, 0x00, // mov dword [0x8000], 1
		0xbb, 0x00, 0x80, // mov bx, 0x8000
		0xb9, 0x02, 0x00, // mov cx, 0x0002: cylinder 0, sector 2
		0xb6, 0x00, // mov dh, 0: head; dl is the drive that the BIOS has booted from
		0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
		0xcd, 0x13, // int 0x13
		0x72, 0xf9, // jc to mov ax
		0xfc,             // cld
		0xbb, 0x00, 0x10, // start: mov bx, 0x1000
		0x8e, 0xc3, // next: mov es, bx
		0x31, 0xff, // xor di, di
		0xb9, 0x00, 0x80, // mov cx, 0x8000
		0x42,       // inc dx
		0x89, 0xd0, // mov ax, dx
		0xf3, 0xab, // rep stosw
		0x81, 0xc3, 0x00, 0x10, // add bx, 0x1000
		0x81, 0xfb, 0x00, 0x90, // cmp bx, 0x9000
		0x72, 0xe8, // jb next
		0xeb, 0xe3, // jmp start
	})
	return img
}

// waitBusy waits until a busyGuest has begun. What the BIOS has done before is little,
// and copied in no time.
func (s *suite) waitBusy(t *testing.T, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the guest to be busy", func(context.Context) (bool, error) {
		b, err := os.ReadFile(filepath.Join(s.Shared(), image))
		return lab.Counter(b) == 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// outcome is what virsh said of a migration.
type outcome struct {
	res lab.Result
	err error
}

// startMigration begins to move a virtual machine with a busyGuest from node 1 to
// node 2, so slowly that it would not end, and returns when memory is being copied:
// then QEMU on node 2 runs, and has told its lock daemon who it is.
func startMigration(t *testing.T, s *suite, name string) <-chan outcome {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return // each test has seen to it that it is not there
		}
		if _, err := s.Node(2).Destroy(s.ctx, name); err != nil {
			t.Logf("destroy %s on node 2: %v", name, err)
		}
	})
	// With the 300 ms that QEMU has by default it would end as soon as the guest, on a slow
	// node, has written less than 300 KB while the last 512 KB were copied.
	s.must(t, "allow hardly any pause", func() (lab.Result, error) {
		return s.Node(1).Virsh(s.ctx, "migrate-setmaxdowntime", name, "1")
	})
	done := make(chan outcome, 1)
	go func() {
		res, err := s.Node(1).Migrate(s.ctx, name, s.Node(2), "--bandwidth", "1")
		done <- outcome{res, err}
	}()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the migration to copy memory", func(ctx context.Context) (bool, error) {
		select {
		case o := <-done:
			return false, fmt.Errorf("the migration has ended: %v, %v", o.res, o.err)
		default:
		}
		res, err := s.Node(1).Virsh(ctx, "domjobinfo", name)
		return err == nil && strings.Contains(res.Stdout, "Memory remaining"), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// stays requires that a migration has failed and changed nothing, or that vmlockd has made it so: see forgotten.
func (s *suite) stays(t *testing.T, o outcome, name, path string) {
	t.Helper()
	if o.err != nil || o.res.OK() {
		t.Fatalf("the migration that had to fail: %v, %v", o.res, o.err)
	}
	s.step(t, "virsh migrate: %s", strings.TrimSpace(o.res.Stderr))
	s.state(t, 1, name, "running")
	s.state(t, 2, name, "")
	if s.free(t, 3, path) {
		s.forgotten(t, name, path)
	}
	// It goes on. A busyGuest leaves little of the processors to who asks for its disk now, and is not needed for that.
	signal := func(sig string) {
		t.Helper()
		if _, err := s.Node(1).MustSucceed(s.ctx, "sh", "-c", "kill -"+sig+" $(cat /run/libvirt/qemu/"+name+".pid)"); err != nil {
			t.Fatal(err)
		}
	}
	signal("STOP")
	s.refusedNaming(t, 2, vm("other", lab.Disk{Path: path}), path, 1, name)
	signal("CONT")
}

// failedMigration is about a migration that is aborted. If it was just about to end, libvirt 9.0 now and then waits for its
// end for ever, with the virtual machine paused, and has given the lock back: then it is tried with another one.
func failedMigration(t *testing.T, s *suite) {
	const tries = 3
	for try := 1; try <= tries; try++ {
		name := fmt.Sprintf("stayer%d", try)
		path := s.disk(t, name+".img", busyGuest())
		s.create(t, 1, vm(name, lab.Disk{Path: path}))
		s.waitBusy(t, name+".img")
		done := startMigration(t, s, name)
		pid := "$(cat /run/libvirt/qemu/" + name + ".pid)"
		// It takes seconds to abort it, and now and then the guest gets no processor meanwhile and
		// changes nothing, so that the migration is done before. While nobody reads on the other side it is not.
		s.must(t, "stop the receiving QEMU", func() (lab.Result, error) { return s.Node(2).Shell(s.ctx, "kill -STOP "+pid) })
		s.must(t, "abort the migration", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "domjobabort", name) })
		// Stopped, it would be ended by SIGKILL only after libvirt's patience. There is none to continue if libvirt
		// has ended it already, at any moment; that the migration has failed is looked at below.
		s.must(t, "let the receiving QEMU go on, if libvirt has not ended it", func() (lab.Result, error) {
			return s.Node(2).Shell(s.ctx, "kill -CONT "+pid+" || true")
		})
		patience, cancel := context.WithTimeout(s.ctx, time.Minute)
		defer cancel()
		select {
		case o := <-done:
			s.stays(t, o, name, path)
			return
		case <-patience.Done():
		}
		s.step(t, "virsh migrate does not end, so its virtual machine is ended")
		s.must(t, "end it", func() (lab.Result, error) { return s.Node(1).Shell(s.ctx, "kill -KILL "+pid) })
		select {
		case <-done:
		case <-s.ctx.Done():
			t.Fatal(s.ctx.Err())
		}
	}
	t.Fatalf("libvirt has not come back from an aborted migration %d times", tries)
}

// failedHandOver is about a migration that fails after node 1 has given the lock
// back, because there is no lock daemon on node 2 that could take it: libvirt goes
// on with the virtual machine on node 1, which asks for its lock again.
func failedHandOver(t *testing.T, s *suite) {
	path := s.disk(t, "handover.img", busyGuest())
	s.create(t, 1, vm("returner", lab.Disk{Path: path}))
	s.waitBusy(t, "handover.img")
	done := startMigration(t, s, "returner")
	before := s.events(t, 1, path)
	daemon := s.Node(2).Service(lab.ServiceLock)
	if err := daemon.Kill(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.step(t, "vmlockd on node 2 is killed")
	// Now memory may be copied faster than the guest writes it.
	s.must(t, "allow a longer pause", func() (lab.Result, error) {
		return s.Node(1).Virsh(s.ctx, "migrate-setmaxdowntime", "returner", "10000")
	})
	s.must(t, "allow more bandwidth", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "migrate-setspeed", "returner", "1000") })
	var o outcome
	select {
	case o = <-done:
	case <-s.ctx.Done():
		t.Fatal(s.ctx.Err())
	}
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.waitServing(t, 2)
	s.stays(t, o, "returner", path)
	// It was not kept all the time, or the hand-over had not begun.
	after := s.events(t, 1, path)
	if after["lock-released"] <= before["lock-released"] || after["lock-granted"] <= before["lock-granted"] {
		t.Errorf("node 1 has not given the lock back and taken it again: %v, then %v", before, after)
	}
	s.destroy(t, 1, "returner")
	s.wantFree(t, 2, path)
}

// events counts by name the events in a daemon's log that are about a path.
func (s *suite) events(t *testing.T, node int, path string) map[string]int {
	t.Helper()
	log, err := s.Node(node).Log(s.ctx, lab.ServiceLock)
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, " name="+path+" ") {
			_, rest, _ := strings.Cut(line, " event=")
			event, _, _ := strings.Cut(rest, " ")
			n[event]++
		}
	}
	return n
}
