package history_test

import (
	"context"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// If the kernel really loses a lock while the daemon is down there is an alarm,
// and the disk is refused on every host until its owner is gone or has released it.
func TestLostInTheKernel(t *testing.T) {
	base := memoryDir(t)
	for _, released := range []bool{false, true} {
		inBubble(t, 1, func(rt *rapid.T) {
			seen := map[string]int{}
			w := newWorld(rt, base, 2, seen)
			defer w.end()
			w.mayLose = true
			n, other := w.nodes[0], w.nodes[1]
			other.spawn(1)
			elsewhere := func() error {
				return other.in.request(&call{f: &fact{o: other.owners[1], disk: "a"}, mode: locking.Exclusive})
			}
			for pid := range int32(3) {
				n.spawn(pid + 1)
			}
			try := func(o *owner, release bool, mode locking.Mode) error {
				return n.in.request(&call{f: &fact{o: o, disk: "a"}, release: release, mode: mode})
			}
			if err := try(n.owners[1], false, locking.Shared); err != nil {
				rt.Fatal(err)
			}
			n.in.die()
			n.in.bury()
			fakeclock.Wait()
			purge(rt, n)
			n.start()
			if seen["lost"] != 1 {
				rt.Fatalf("%d alarms", seen["lost"])
			}
			for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
				var e *locking.Error
				if err := try(n.owners[2], false, mode); !errors.As(err, &e) || e.Kind != locking.KindUnavailable {
					rt.Fatalf("asking for it %v: %v", mode, err)
				}
			}
			var busy *locking.Error
			if err := elsewhere(); !errors.As(err, &busy) || busy.Kind != locking.KindBusy {
				rt.Fatalf("asking for it on another host: %v", err)
			}
			if released {
				if err := try(n.owners[1], true, 0); err != nil {
					rt.Fatal(err)
				}
			} else {
				n.end(n.owners[1])
				fakeclock.Wait()
			}
			if err := try(n.owners[2], false, locking.Exclusive); err != nil {
				rt.Fatalf("after the alarm is over: %v", err)
			}
			n.end(n.owners[2])
			fakeclock.Wait()
			if err := elsewhere(); err != nil {
				rt.Fatalf("on another host, after the alarm is over: %v", err)
			}
			other.end(other.owners[1])
			for _, o := range n.owners {
				n.end(o)
			}
			fakeclock.Wait()
			w.finish()
		})
	}
}

// purge is what nobody may do: it releases the locks of all who have died.
func purge(rt *rapid.T, n *node) {
	ls, err := dlm.Open(context.Background(), n.w.c.Node(n.id), lockspace, dlm.Options{})
	if err != nil {
		rt.Fatal(err)
	}
	if err := ls.Purge(context.Background(), 0); err != nil {
		rt.Fatal(err)
	}
	if err := ls.Close(context.Background()); err != nil {
		rt.Fatal(err)
	}
}
