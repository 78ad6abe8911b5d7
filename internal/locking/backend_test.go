package locking_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// Nothing is granted, and nothing is left behind, whatever the backend fails at.
func TestFailedAcquireLeavesNothing(t *testing.T) {
	for _, row := range []struct {
		call func(locktest.Call) bool
		err  error
		kind locking.Kind
	}{
		{locktest.On(locktest.OpOpen, "a"), errIO, locking.KindSystem},
		{locktest.On(locktest.OpOpen, "a"), context.DeadlineExceeded, locking.KindUnavailable},
		{locktest.On(locktest.OpLock, "id-a"), errIO, locking.KindSystem},
		{locktest.On(locktest.OpLock, "id-a"), locking.ErrBusy, locking.KindBusy},
		{locktest.On(locktest.OpLock, "id-a"), context.Canceled, locking.KindUnavailable},
		{locktest.On(locktest.OpLock, "id-a"), &locking.Error{Kind: locking.KindUnavailable}, locking.KindUnavailable},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.b.Fail(row.call, row.err, 1)
			g, _ := w.vm(1)
			err := g.Acquire(context.Background(), disk("a"), locking.Exclusive, false)
			w.refused(err, row.kind)
			var e *locking.Error
			if !errors.As(row.err, &e) && !errors.Is(err, row.err) {
				t.Errorf("the cause %v is lost in %v", row.err, err)
			}
			w.b.CheckQuiet(nil)
			w.holders(disk("a"))
			w.refused(g.Release(context.Background(), disk("a")), locking.KindNotLocked)
			w.acquire(g, disk("a"), locking.Exclusive)
			w.release(g, disk("a"))
			g.Close()
			settle()
			w.empty()
		})
	}
}

func TestStaleNameIsFollowed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		done := start(func() error { return g.Acquire(context.Background(), disk("a"), locking.Exclusive, false) })
		gate.Arrived()
		w.b.Point(disk("a"), "replaced")
		gate.Open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.b.CheckQuiet(map[string]locking.Mode{"replaced": locking.Exclusive})
		if s := w.m.Sizes(); s.Resources != 1 {
			t.Errorf("%d resources for one lock", s.Resources)
		}
	})
}

func TestNameThatChangesWithoutEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), locking.ErrStale, locking.MaxTries-1)
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.release(g, disk("a"))
		w.told()
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), locking.ErrStale, locking.MaxTries)
		w.refused(g.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindUnavailable)
		w.toldIs(locking.Refused)
		g.Close()
		settle()
		w.empty()
	})
}

// The lock that the backend could not give back is still held, by its owner,
// who may try again.
func TestFailedReleaseKeepsTheLock(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		other, _ := w.vm(2)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.told()
		w.b.Fail(locktest.On(locktest.OpUnlock, "id-a"), errIO, 1)
		w.refused(g.Release(ctx, disk("a")), locking.KindSystem)
		w.toldIs(locking.ReleaseFailed)
		w.holders(disk("a"), 1)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": locking.Exclusive})
		w.refused(other.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindBusy)
		// The error of a context that is not the caller's is a failure like any other.
		w.b.Fail(locktest.On(locktest.OpUnlock, "id-a"), context.DeadlineExceeded, 1)
		w.refused(g.Release(ctx, disk("a")), locking.KindUnavailable)
		w.holders(disk("a"), 1)
		w.release(g, disk("a"))
		g.Close()
		other.Close()
		settle()
		w.empty()
	})
}

func TestFailedReleaseOfTheDeadKeepsOthersOut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		other, _ := w.vm(2)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.acquire(g, disk("b"), locking.Exclusive)
		w.told()
		w.b.Fail(locktest.On(locktest.OpUnlock, "id-a"), errIO, 1)
		p.Kill()
		settle()
		w.holders(disk("a"), 1)
		w.holders(disk("b"))
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": locking.Exclusive})
		if told := w.told(); !slices.Contains(told, locking.ReleaseFailed) || len(told) != 3 {
			t.Errorf("observed %v", told)
		}
		// Who wants it next makes another try, and gets it if that works.
		w.b.Fail(locktest.On(locktest.OpUnlock, "id-a"), errIO, 1)
		w.refused(other.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindBusy)
		w.toldIs(locking.ReleaseFailed, locking.Refused)
		w.acquire(other, disk("a"), locking.Exclusive)
		w.toldIs(locking.ReleasedGone, locking.Granted)
		w.release(other, disk("a"))
		g.Close()
		other.Close()
		settle()
		w.empty()
	})
}

// The backend answers after the caller was told that it did not: what it
// granted then is undone, and the resource is as if it had never been asked for.
func TestAcquireThatTimesOut(t *testing.T) {
	ctx := context.Background()
	for _, op := range []locktest.Op{locktest.OpOpen, locktest.OpLock} {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			gate := w.b.Block(locktest.On(op, ""))
			begin := time.Now()
			err := g.Acquire(ctx, disk("a"), locking.Exclusive, false)
			e := w.refused(err, locking.KindUnavailable)
			if !errors.Is(e, context.DeadlineExceeded) || time.Since(begin) != requestTimeout {
				t.Errorf("after %v: %v", time.Since(begin), e)
			}
			w.holders(disk("a"))
			w.check()
			gate.Open()
			settle()
			w.b.CheckQuiet(nil)
			w.acquire(g, disk("a"), locking.Exclusive)
			w.release(g, disk("a"))
			g.Close()
			settle()
			w.empty()
		})
	}
}

// A backend that grants although the time is over has granted.
func TestLateGrantThatIsTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a")).Deaf()
		done := start(func() error { return g.Acquire(context.Background(), disk("a"), locking.Exclusive, false) })
		advance(2 * requestTimeout)
		w.pending(done)
		gate.Open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.holders(disk("a"), 1)
		w.release(g, disk("a"))
	})
}

// The owner has lost the lock when its release was given up; nobody else gets
// it before the backend is done.
func TestReleaseThatTimesOut(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		other, _ := w.vm(2)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.told()
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		e := w.refused(g.Release(ctx, disk("a")), locking.KindUnavailable)
		if !errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("the cause is %v", e.Err)
		}
		w.toldIs(locking.Released)
		w.holders(disk("a"))
		w.refused(g.Release(ctx, disk("a")), locking.KindNotLocked)
		e = w.refused(other.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindBusy)
		if len(e.Holders) != 0 {
			t.Errorf("the refusal names %+v", e.Holders)
		}
		gate.Open()
		settle()
		w.acquire(other, disk("a"), locking.Exclusive)
	})
}

func TestCallersContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		ctx, cancel := context.WithCancel(context.Background())
		done := start(func() error { return g.Acquire(ctx, disk("a"), locking.Exclusive, false) })
		gate.Arrived()
		cancel()
		e := w.refused(<-done, locking.KindUnavailable)
		if !errors.Is(e, context.Canceled) {
			t.Errorf("the cause is %v", e.Err)
		}
		gate.Open()
		settle()
		w.b.CheckQuiet(nil)
	})
}

func TestDeleteAndAcquireAtOnce(t *testing.T) {
	ctx := context.Background()
	t.Run("acquire first", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
			acquired := start(func() error { return g.Acquire(ctx, disk("a"), locking.Exclusive, false) })
			gate.Arrived()
			deleted := start(func() error { return w.m.DeleteResource(ctx, disk("a")) })
			settle()
			w.pending(deleted)
			gate.Open()
			if err := <-acquired; err != nil {
				t.Fatal(err)
			}
			w.refused(<-deleted, locking.KindBusy)
			if w.b.Leads(disk("a")) != "id-a" {
				t.Error("what is held was deleted")
			}
		})
	})
	t.Run("delete first", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			gate := w.b.Block(locktest.On(locktest.OpDeleteResource, "a"))
			deleted := start(func() error { return w.m.DeleteResource(ctx, disk("a")) })
			gate.Arrived()
			acquired := start(func() error { return g.Acquire(ctx, disk("a"), locking.Exclusive, true) })
			settle()
			w.pending(acquired)
			gate.Open()
			if err := <-deleted; err != nil {
				t.Fatal(err)
			}
			if err := <-acquired; err != nil {
				t.Fatal(err)
			}
			// Of what was opened before the deletion nothing is left.
			id := w.b.Leads(disk("a"))
			if id == "id-a" || id == "" {
				t.Fatalf("the name leads to %q", id)
			}
			w.b.CheckQuiet(map[string]locking.Mode{id: locking.Exclusive})
		})
	})
	t.Run("delete times out", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			gate := w.b.Block(locktest.On(locktest.OpLock, "id-a")).Deaf()
			acquired := start(func() error { return g.Acquire(ctx, disk("a"), locking.Exclusive, false) })
			gate.Arrived()
			w.refused(w.m.DeleteResource(ctx, disk("a")), locking.KindUnavailable)
			w.b.Fail(locktest.On(locktest.OpOpen, "b"), errIO, 1)
			w.refused(w.m.DeleteResource(ctx, disk("b")), locking.KindSystem)
			gate.Open()
			if err := <-acquired; err != nil {
				t.Fatal(err)
			}
			w.release(g, disk("a"))
			g.Close()
			settle()
			w.empty()
		})
	})
}
