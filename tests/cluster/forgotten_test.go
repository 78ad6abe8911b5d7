package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// forgotten is about a virtual machine that runs on node 1 without its lock, by a flaw of libvirt 9.0. QEMU stops the guest for
// the hand-over, and libvirt gives the locks back (qemuProcessHandleStop in src/qemu/qemu_process.c). If the migration is aborted
// at that moment, QEMU goes on with the guest by itself. libvirt then notes that it runs (qemuProcessHandleResume), and as it
// runs does not start it (qemuMigrationSrcRestoreDomainState in src/qemu/qemu_migration.c), which is when it asks for locks. So
// no lock manager is asked. vmlockd takes the lock again.
func (s *suite) forgotten(t *testing.T, name, path string) {
	t.Helper()
	s.step(t, "libvirt has gone on with %s without its lock", name)
	s.waitEvent(t, 1, path, "lock-taken-again")
	s.wantHeld(t, 3, path)
	if f, ok := s.unlocked(t, name); ok {
		t.Errorf("it is healed, and the doctor says %v", f)
	}
}

// waitEvent waits until a daemon has logged an event about a path.
func (s *suite) waitEvent(t *testing.T, node int, path, event string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := lab.WaitFor(ctx, event, func(context.Context) (bool, error) {
		return s.events(t, node, path)[event] > 0, nil
	}); err != nil {
		t.Fatal(err)
	}
	s.step(t, "vmlockd on node %d: %s", node, event)
}

// finding is as much as is needed here of one in 'vmlockctl doctor --json' (docs/control-api.md).
type finding struct{ ID, Where, What, Remedy string }

// unlocked is what the doctor says on node 1 of a virtual machine that runs and has a disk that is not locked.
func (s *suite) unlocked(t *testing.T, name string) (_ finding, ok bool) {
	t.Helper()
	// Its exit status tells of whatever there is on a node that has been through other tests.
	res, err := s.Node(1).Exec(s.ctx, "vmlockctl", "doctor", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var said struct{ Findings []finding }
	if err := json.Unmarshal([]byte(res.Stdout), &said); err != nil || said.Findings == nil {
		t.Fatalf("vmlockctl doctor on node 1: %v: %v", err, res)
	}
	for _, f := range said.Findings {
		if f.ID == "vm-unlocked" && strings.HasPrefix(f.Where, "virtual machine "+name+",") {
			s.step(t, "vmlockctl doctor: %s: %s | %s", f.Where, f.What, f.Remedy)
			return f, true
		}
	}
	return finding{}, false
}

// abortedAtHandOver is about a migration that is aborted when QEMU on node 1 has stopped the guest for the hand-over, and
// libvirt has given the lock back, and before QEMU on node 2 has all of it: see forgotten.
func abortedAtHandOver(t *testing.T, s *suite) {
	const name = "turner"
	path, abort := handOver(t, s, name)
	o := abort()
	s.stays(t, o, name, path)
	if s.events(t, 1, path)["lock-taken-again"] != 1 {
		t.Errorf("node 1 has not taken the lock again: has libvirt been mended? %v", s.events(t, 1, path))
	}
	// It is a lock like any other to libvirt.
	s.must(t, "suspend", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "suspend", name) })
	s.wantFree(t, 2, path)
	s.must(t, "resume", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "resume", name) })
	s.wantHeld(t, 2, path)
	s.destroy(t, 1, name)
	s.wantFree(t, 2, path)
}

// abortedTooLate is the same, and another virtual machine has got the disk before the abort.
func abortedTooLate(t *testing.T, s *suite) {
	const name, thief = "latecomer", "thief"
	path, abort := handOver(t, s, name)
	s.create(t, 2, vm(thief, lab.Disk{Path: path}))
	if o := abort(); o.err != nil || o.res.OK() {
		t.Fatalf("the migration that had to fail: %v, %v", o.res, o.err)
	}
	s.state(t, 1, name, "running")
	s.waitEvent(t, 1, path, "lock-not-taken-again")
	// It asks for the lock again and again, and the refusal does not wait for longer than 300 ms for the name of who has it.
	parts := []string{"two virtual machines write one disk: " + name, "virtual machine " + thief, "node 2", path}
	said := ""
	s.waitFor(t, fmt.Sprintf("vmlockctl status to say %q", parts), func() bool {
		status, err := s.Node(1).MustSucceed(s.ctx, "vmlockctl", "status")
		if err != nil {
			t.Fatal(err)
		}
		if said = status.Stdout; !strings.Contains(said, parts[0]) {
			t.Fatalf("vmlockctl status does not say %q: %s", parts[0], said)
		}
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(said, part) })
	}, func() string { return said })
	if _, ok := s.unlocked(t, name); !ok {
		t.Errorf("vmlockctl doctor does not say that %s has no lock", name)
	}
	// One of them has to end, and the other has the lock then.
	s.destroy(t, 2, thief)
	s.waitEvent(t, 1, path, "lock-taken-again")
	s.wantHeld(t, 3, path)
	if n := s.events(t, 1, path)["lock-not-taken-again"]; n != 1 {
		t.Errorf("that it was not taken was told %d times", n)
	}
	if f, ok := s.unlocked(t, name); ok {
		t.Errorf("it is healed, and the doctor says %v", f)
	}
	s.destroy(t, 1, name)
	s.wantFree(t, 2, path)
}

// resumedByQEMU is about a virtual machine that libvirt has suspended, and that somebody has QEMU continue behind its back.
func resumedByQEMU(t *testing.T, s *suite) {
	const name = "waker"
	path := s.disk(t, name+".img", lab.CountingGuest())
	s.create(t, 1, vm(name, lab.Disk{Path: path}))
	s.must(t, "suspend", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "suspend", name) })
	s.wantFree(t, 3, path)
	s.must(t, "have QEMU go on", func() (lab.Result, error) {
		return s.Node(1).Virsh(s.ctx, "qemu-monitor-command", name, "--hmp", "cont")
	})
	s.waitEvent(t, 1, path, "lock-taken-again")
	s.state(t, 1, name, "running")
	counts(t, s, name+".img")
	s.refusedNaming(t, 2, vm("thief", lab.Disk{Path: path}), path, 1, name)
	s.destroy(t, 1, name)
	s.wantFree(t, 2, path)
}

// handOver brings a migration from node 1 to the moment in which QEMU there has stopped the guest, and libvirt has given its
// lock back, and keeps it there until abort is called, which returns when the migration has ended.
func handOver(t *testing.T, s *suite, name string) (path string, abort func() outcome) {
	t.Helper()
	path = s.disk(t, name+".img", busyGuest())
	s.create(t, 1, vm(name, lab.Disk{Path: path}))
	s.waitBusy(t, name+".img")
	// What is copied while nobody reads it, until QEMU on node 1 hears of the longer pause, has to fit in here: if it has to wait
	// for the reader it does not come to look whether the pause is long enough.
	for node, buffer := range map[int]string{1: "tcp_wmem", 2: "tcp_rmem"} {
		file := "/proc/sys/net/ipv4/" + buffer
		was, err := s.Node(node).MustSucceed(s.ctx, "cat", file)
		if err != nil {
			t.Fatal(err)
		}
		write := func(sizes string) {
			if _, err := s.Node(node).MustSucceed(s.ctx, "sh", "-c", "echo "+sizes+" > "+file); err != nil {
				t.Errorf("%s on node %d: %v", file, node, err)
			}
		}
		write("4096 16777216 16777216")
		t.Cleanup(func() { write(strings.TrimSpace(was.Stdout)) })
	}
	done := startMigration(t, s, name)
	receiver := func(what, sig string) {
		t.Helper()
		s.must(t, what+" the receiving QEMU", func() (lab.Result, error) {
			return s.Node(2).Shell(s.ctx, "kill -"+sig+" $(cat /run/libvirt/qemu/"+name+".pid)")
		})
	}
	receiver("stop", "STOP")
	s.must(t, "allow a long pause", func() (lab.Result, error) {
		return s.Node(1).Virsh(s.ctx, "migrate-setmaxdowntime", name, "100000")
	})
	s.waitEvent(t, 1, path, "lock-released")
	return path, func() (o outcome) {
		t.Helper()
		s.must(t, "abort the migration", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "domjobabort", name) })
		receiver("continue", "CONT")
		select {
		case o = <-done:
		case <-s.ctx.Done():
			t.Fatal(s.ctx.Err())
		}
		return o
	}
}
