package cluster_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestFigures(t *testing.T) {
	bubble(t, func(w *world) {
		is := func(want cluster.Figures) {
			t.Helper()
			time.Sleep(10 * time.Second) // nothing but the bubble's clock
			got := w.b.Figures()
			if want.Stopped > 0 && got.Stopped >= want.Stopped {
				got.Stopped = want.Stopped
			}
			if want.Oldest > 0 && got.Oldest >= want.Oldest {
				got.Oldest = want.Oldest
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		}
		is(cluster.Figures{Joined: true, Running: true, Heard: true, Quorate: true, Members: 3})
		w.controld.Lose(time.Now(), true, 3)
		is(cluster.Figures{Joined: true, Running: true, Heard: true, Quorate: true, Members: 2, Missing: 1, Fencing: 1})
		w.nodes.Suspend(space)
		is(cluster.Figures{Joined: true, Cause: "fencing", Stopped: 9 * time.Second, Heard: true, Quorate: true, Members: 2, Missing: 1, Fencing: 1})
		w.controld.Lose(time.Now(), true, 2)
		is(cluster.Figures{Joined: true, Cause: "quorum", Stopped: 19 * time.Second, Heard: true, Members: 1, Missing: 2, Fencing: 2})
		w.controld.Freeze()
		time.Sleep(20 * time.Second) // by the bubble's clock, as everywhere in bubble
		is(cluster.Figures{Joined: true, Cause: "controld_silent", Stopped: 40 * time.Second})
	})
}

// TestFiguresOfWrites: a write that hangs in the kernel is seen, and its age.
func TestFiguresOfWrites(t *testing.T) {
	bubble(t, func(w *world) {
		gate := dlmtest.NewGate()
		w.nodes.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if op.Op == "lock" {
				return dlmtest.Fault{Before: gate}
			}
			return dlmtest.Fault{}
		})
		h := w.open("a")
		done := make(chan error, 1)
		go func() { done <- h.Lock(w.t.Context(), locking.Exclusive) }()
		time.Sleep(2 * time.Second)
		if f := w.b.Figures(); f.InFlight != 1 || f.Oldest != 2*time.Second {
			t.Errorf("while a write hangs: %+v", f)
		}
		gate.Open()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if f := w.b.Figures(); f.InFlight != 0 || f.Oldest != 0 || f.Unsettled != 0 || !f.Running {
			t.Errorf("after it: %+v", f)
		}
	})
}
