package locking_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

func TestDrain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.m.Drain(true)
		e := w.refused(g.Acquire(context.Background(), disk("b"), locking.Exclusive, false), locking.KindUnavailable)
		if !strings.Contains(e.Error(), "is being drained") || !strings.Contains(e.Error(), "--undo") {
			t.Errorf("the refusal is %q", e)
		}
		w.holders(disk("a"), 1)
		if l := w.m.Returning(); len(l) != 0 {
			t.Errorf("returning: %v", l)
		}

		// It gives it back and takes it again, once for each time, as libvirt does
		// when a migration fails. Nobody else can.
		other, _ := w.vm(2)
		for range 2 {
			w.release(g, disk("a"))
			if l := w.m.Returning(); len(l) != 1 || l[0].Owner.PID != 1 || l[0].Ref != disk("a") {
				t.Errorf("returning: %v", l)
			}
			w.refused(other.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindUnavailable)
			w.acquire(g, disk("a"), locking.Exclusive)
		}
		w.refused(g.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindUnavailable)
		w.release(g, disk("a"))

		// What was given back in one drain is forgotten in the next.
		w.m.Drain(false)
		w.m.Drain(true)
		if l := w.m.Returning(); len(l) != 0 {
			t.Errorf("returning in the next drain: %v", l)
		}
		w.refused(g.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindUnavailable)
		w.m.Drain(false)
		w.acquire(other, disk("a"), locking.Exclusive)
		w.release(other, disk("a"))
		g.Close()
		other.Close()
		settle()
		w.empty()
	})
}

// TestDrainOvertakes: a drain that begins while a name is looked up comes in
// time, one that begins while the backend is asked does not.
func TestDrainOvertakes(t *testing.T) {
	for op, want := range map[locktest.Op]bool{locktest.OpOpen: false, locktest.OpLock: true} {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			gate := w.b.Block(locktest.On(op, ""))
			done := start(func() error { return g.Acquire(context.Background(), disk("a"), locking.Shared, false) })
			gate.Arrived()
			if l := w.m.Waiting(); len(l) != 1 || l[0].Ref != disk("a") || l[0].Owner.PID != 1 || l[0].Mode != locking.Shared {
				t.Errorf("waiting are %+v", l)
			}
			w.m.Drain(true)
			gate.Open()
			if err := <-done; (err == nil) != want {
				t.Errorf("drained during %v: %v", op, err)
			}
			if l := w.m.Waiting(); len(l) != 0 {
				t.Errorf("still waiting are %+v", l)
			}
			if want {
				w.release(g, disk("a"))
			}
			g.Close()
			settle()
			w.empty()
		})
	}
}

// TestHoldersOf: what is told of one resource is what the whole list has of it,
// under each of its names.
func TestHoldersOf(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		w.b.Point(disk("link"), "id-a")
		w.acquire(one, disk("a"), locking.Shared)
		w.acquire(two, disk("link"), locking.Shared)
		time.Sleep(time.Second) // by the bubble's clock: a grant has another time
		w.acquire(two, disk("b"), locking.Exclusive)
		all := w.m.Holders()
		if got := w.m.HoldersOf("id-a"); len(got) != 2 || !slices.Equal(got, all[:2]) {
			t.Errorf("of a: %v, of all: %v", got, all)
		}
		if got := w.m.HoldersOf("id-b"); len(got) != 1 || got[0] != all[2] {
			t.Errorf("of b: %v, of all: %v", got, all)
		}
		for _, id := range []string{"", "a", "id-c"} {
			if got := w.m.HoldersOf(id); got == nil || len(got) != 0 {
				t.Errorf("of %q: %v", id, got)
			}
		}
		w.release(one, disk("a"))
		w.release(two, disk("link"))
		w.release(two, disk("b"))
		if got := w.m.HoldersOf("id-a"); len(got) != 0 {
			t.Errorf("released: %v", got)
		}
		one.Close()
		two.Close()
	})
}

func (w *world) force(ref locking.Ref, force bool) ([]locking.Holder, error) {
	return w.m.ForceRelease(context.Background(), ref, nil, force)
}

func TestForceReleaseOfTheLiving(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.told()
		released, err := w.force(disk("a"), false)
		if e := w.refused(err, locking.KindOwnerLives); len(e.Holders) != 1 || len(released) != 0 || !strings.Contains(e.Error(), "pid 1") {
			t.Errorf("%v, released %v", e, released)
		}
		w.holders(disk("a"), 1)
		w.toldIs()
		released, err = w.force(disk("a"), true)
		if err != nil || len(released) != 1 || released[0].Owner.PID != 1 {
			t.Errorf("released %v, %v", released, err)
		}
		w.toldIs(locking.Forced)
		_, err = w.force(disk("a"), true)
		w.refused(err, locking.KindNotLocked)
		w.refused(g.Release(context.Background(), disk("a")), locking.KindNotLocked)
		g.Close()
		settle()
		w.empty()
	})
}

// TestForceReleaseOfTheDead: the backend could not give back what a dead owner
// had. An operator makes it try again, and needs no force.
func TestForceReleaseOfTheDead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.b.Fail(locktest.On(locktest.OpUnlock, ""), errIO, 2)
		p.Kill()
		settle()
		released, err := w.force(disk("a"), false)
		w.refused(err, locking.KindSystem)
		if len(released) != 0 {
			t.Errorf("released %v, which the backend has", released)
		}
		w.holders(disk("a"), 1)
		if released, err = w.force(disk("a"), false); err != nil || len(released) != 1 {
			t.Errorf("released %v, %v", released, err)
		}
		g.Close()
		settle()
		w.empty()
	})
}

// TestForceReleaseOfTheUnknown: an owner that no process was found for is taken
// for dead only if nobody has its pid.
func TestForceReleaseOfTheUnknown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, nobody := w.register(1), w.register(0)
		for name, by := range map[string]*locking.Registration{"a": g, "b": nobody} {
			w.acquire(by, disk(name), locking.Exclusive)
		}
		_, err := w.force(disk("b"), false)
		w.refused(err, locking.KindOwnerLives)
		p := w.ps.Start(1)
		_, err = w.force(disk("a"), false)
		w.refused(err, locking.KindOwnerLives)
		p.Kill()
		w.ps.FailOpen(errIO)
		_, err = w.force(disk("a"), false)
		w.refused(err, locking.KindOwnerLives)
		w.ps.FailOpen(nil)
		if _, err := w.force(disk("a"), false); err != nil {
			t.Error(err)
		}
		if _, err := w.force(disk("b"), true); err != nil {
			t.Error(err)
		}
		g.Close()
		nobody.Close()
		settle()
		w.empty()
	})
}

// TestForceReleaseOfOne leaves the others that share it alone.
func TestForceReleaseOfOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, _ := w.vm(1)
		b, _ := w.vm(2)
		w.acquire(a, disk("a"), locking.Shared)
		w.acquire(b, disk("a"), locking.Shared)
		only := func(h locking.Holder) bool { return h.Owner.PID == 2 }
		released, err := w.m.ForceRelease(context.Background(), disk("a"), only, true)
		if err != nil || len(released) != 1 || released[0].Owner.PID != 2 {
			t.Errorf("released %v, %v", released, err)
		}
		w.holders(disk("a"), 1)
		_, err = w.m.ForceRelease(context.Background(), disk("a"), only, true)
		w.refused(err, locking.KindNotLocked)
		w.release(a, disk("a"))
		a.Close()
		b.Close()
		settle()
		w.empty()
	})
}

// TestForceReleaseWaitsItsTurn, and not for ever.
func TestForceReleaseWaitsItsTurn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "")).Deaf()
		done := start(func() error { return g.Release(context.Background(), disk("a")) })
		gate.Arrived()
		_, err := w.force(disk("a"), true)
		w.refused(err, locking.KindUnavailable)
		gate.Open()
		<-done
		g.Close()
		settle()
		w.empty()
	})
}
