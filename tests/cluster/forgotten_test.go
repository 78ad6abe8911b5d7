package cluster_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// abortedAtHandOver brings about what forgotten is about: a migration is aborted when QEMU on node 1 has stopped the guest for
// the hand-over, and libvirt has given the lock back, and before QEMU on node 2 has all of it.
func abortedAtHandOver(t *testing.T, s *suite) {
	const name = "turner"
	path := s.disk(t, name+".img", busyGuest())
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
	before := s.events(t, 1, path)
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
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := lab.WaitFor(ctx, "libvirt to give the lock back", func(context.Context) (bool, error) {
		return s.events(t, 1, path)["lock-released"] > before["lock-released"], nil
	}); err != nil {
		t.Fatal(err)
	}
	s.must(t, "abort the migration", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "domjobabort", name) })
	receiver("continue", "CONT")
	var o outcome
	select {
	case o = <-done:
	case <-s.ctx.Done():
		t.Fatal(s.ctx.Err())
	}
	s.stays(t, o, name, path)
	s.destroy(t, 1, name)
	s.wantFree(t, 2, path)
}
