package locking_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/vmlockd/vmlockd/internal/locking"
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
		synctest.Wait()
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
