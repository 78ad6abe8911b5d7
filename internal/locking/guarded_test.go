package locking_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// pids are those of HoldingProcesses, with their start times.
func (w *world) pids() map[int32]uint64 {
	all := map[int32]uint64{}
	for _, p := range w.m.HoldingProcesses() {
		all[p.Owner.PID] = p.Start
	}
	return all
}

func TestHoldingProcesses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, p := w.vm(7)
		b := w.register(8) // no process has that pid
		defer a.Close()
		defer b.Close()
		if got := w.pids(); len(got) != 0 {
			t.Errorf("nobody holds anything: %v", got)
		}
		w.acquire(a, disk("a"), locking.Exclusive)
		w.acquire(a, disk("b"), locking.Exclusive)
		w.acquire(b, disk("c"), locking.Shared)
		if got := w.pids(); len(got) != 2 || got[7] != p.StartTime() || got[8] != 0 {
			t.Errorf("%v", got)
		}
		w.release(b, disk("c"))
		if got := w.pids(); len(got) != 1 {
			t.Errorf("one has given back: %v", got)
		}
		p.Kill()
		fakeclock.Wait()
		if got := w.pids(); len(got) != 0 {
			t.Errorf("the other has ended: %v", got)
		}
	})
}

func TestProve(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(7)
		defer g.Close()
		prove := func() error { return w.m.Prove(context.Background(), 7, p.StartTime()) }
		if err := prove(); err == nil {
			t.Error("a proof of nothing")
		}
		w.acquire(g, disk("a"), locking.Exclusive)
		w.acquire(g, disk("b"), locking.Exclusive)
		if err := prove(); err != nil {
			t.Error(err)
		}
		if err := w.m.Prove(context.Background(), 7, p.StartTime()+1); err == nil {
			t.Error("a proof for another process with that pid")
		}
		w.holders(disk("a"), 7)
		w.release(g, disk("a"))
		w.release(g, disk("b"))
		if err := prove(); err == nil {
			t.Error("a proof of what was given back")
		}
	})
}

// One lock without a proof is one too many, and a proof that does not come ends with its context.
func TestNotProved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(7)
		defer g.Close()
		w.acquire(g, disk("a"), locking.Exclusive)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := w.m.Prove(ctx, 7, p.StartTime()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		w.release(g, disk("a"))
	})
}

// Who shares what this host holds already is not granted it when nothing may be
// granted, although the backend need not be asked for a lock.
func TestSharerIsNotAdmitted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.register(7), w.register(8)
		defer a.Close()
		defer b.Close()
		w.acquire(a, disk("a"), locking.Shared)
		held := errors.New("this host has lost the cluster")
		w.b.Fail(func(c locktest.Call) bool { return c.Op == locktest.OpAdmit }, held, 1)
		if err := b.Acquire(context.Background(), disk("a"), locking.Shared, false); !errors.Is(err, held) {
			t.Errorf("a second sharer: %v", err)
		}
		w.holders(disk("a"), 7)
		w.acquire(b, disk("a"), locking.Shared)
		w.release(a, disk("a"))
		w.release(b, disk("a"))
	})
}

// Whoever has only what no other host can use is not stopped when the cluster is lost,
// and what else it has is proved without that.
func TestOnlyHere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Point(disk("own"), "here own")
		g, p := w.vm(7)
		defer g.Close()
		w.acquire(g, disk("own"), locking.Exclusive)
		if got := w.pids(); len(got) != 0 {
			t.Errorf("it has nothing that others could use: %v", got)
		}
		if err := w.m.Prove(context.Background(), 7, p.StartTime()); err == nil {
			t.Error("a proof of nothing that matters")
		}
		w.acquire(g, disk("a"), locking.Exclusive)
		if got := w.pids(); len(got) != 1 || got[7] != p.StartTime() {
			t.Errorf("%v", got)
		}
		w.b.Fail(func(c locktest.Call) bool { return c.Op == locktest.OpProve && c.ID == "here own" }, errors.New("asked in vain"), 1)
		if err := w.m.Prove(context.Background(), 7, p.StartTime()); err != nil {
			t.Error(err)
		}
		w.release(g, disk("a"))
		if got := w.pids(); len(got) != 0 {
			t.Errorf("what others could use is given back: %v", got)
		}
		w.release(g, disk("own"))
	})
}

// While it cannot be told whether a lock from before a restart can be taken back, its
// owner counts as having it, so that it is stopped when the cluster is lost, and
// nothing proves that it may go on.
func TestNotYetIsHeldAndNotProved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Point(disk("own"), "here own")
		p1, p2, p3 := w.ps.Start(1), w.ps.Start(2), w.ps.Start(3)
		o := &orphanage{err: errNoQuorum, left: []orphan{{"id-a", ex}, {"here own", ex}}}
		w.restoreFrom(o, false,
			entry(1, p1.StartTime(), "a", ex, locking.EntryGranted),
			entry(2, p2.StartTime(), "own", ex, locking.EntryGranted),
			entry(3, p3.StartTime(), "b", ex, locking.EntryIntended))
		prove := func() error { return w.m.Prove(context.Background(), 1, p1.StartTime()) }
		if got := w.pids(); len(got) != 1 || got[1] != p1.StartTime() {
			t.Errorf("not taken back yet: %v", got)
		}
		if err := prove(); !errors.Is(err, locking.ErrNotYet) {
			t.Errorf("not taken back yet, and proved: %v", err)
		}
		o.knows()
		time.Sleep(time.Second) // by the bubble's clock: longer than the pause until the backend is asked again
		settle()
		if got := w.pids(); len(got) != 1 {
			t.Errorf("taken back: %v", got)
		}
		if err := prove(); err != nil {
			t.Errorf("taken back: %v", err)
		}
		p1.Kill()
		p2.Kill()
		settle()
		w.empty()
	})
}

// One that could not be taken back is not proved either, and its owner is stopped.
func TestLostIsHeldAndNotProved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		w.restoreFrom(&orphanage{}, false, entry(1, p.StartTime(), "a", ex, locking.EntryGranted))
		if got := w.pids(); len(got) != 1 {
			t.Errorf("lost: %v", got)
		}
		if err := w.m.Prove(context.Background(), 1, p.StartTime()); !errors.Is(err, locking.ErrNotHeld) {
			t.Errorf("lost, and proved: %v", err)
		}
		p.Kill()
		settle()
		w.empty()
	})
}
