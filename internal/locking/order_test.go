package locking_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// While the backend does not answer for one resource, in whatever call, all
// else works, also for the same owner. Nothing here depends on time: if
// something waited for the resource that hangs, the bubble would be deadlocked
// or its clock would run on to the timeout.
func TestOneThatHangsStallsNoOther(t *testing.T) {
	ctx := context.Background()
	for _, hangs := range []struct {
		op   locktest.Op
		what string
		do   func(w *world, g *locking.Registration) error
	}{
		{locktest.OpOpen, "a", func(_ *world, g *locking.Registration) error {
			return g.Acquire(ctx, disk("a"), locking.Exclusive, false)
		}},
		{locktest.OpLock, "id-a", func(_ *world, g *locking.Registration) error {
			return g.Acquire(ctx, disk("a"), locking.Exclusive, false)
		}},
		{locktest.OpUnlock, "id-held", func(_ *world, g *locking.Registration) error {
			return g.Release(ctx, disk("held"))
		}},
		{locktest.OpCreateLockspace, "/slow", func(w *world, _ *locking.Registration) error {
			return w.m.CreateLockspace(ctx, "/slow")
		}},
		{locktest.OpCreateResource, "a", func(w *world, _ *locking.Registration) error {
			return w.m.CreateResource(ctx, disk("a"))
		}},
		{locktest.OpDeleteResource, "a", func(w *world, _ *locking.Registration) error {
			return w.m.DeleteResource(ctx, disk("a"))
		}},
	} {
		t.Run(string(hangs.op), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.b.Point(disk("held"), "id-held")
				g, p := w.vm(1)
				w.acquire(g, disk("held"), locking.Exclusive)
				gate := w.b.Block(locktest.On(hangs.op, hangs.what))
				done := start(func() error { return hangs.do(w, g) })
				gate.Arrived()

				other, q := w.vm(2)
				for _, who := range []*locking.Registration{g, other} {
					w.acquire(who, disk("b"), locking.Exclusive)
					w.release(who, disk("b"))
				}
				if err := w.m.CreateLockspace(ctx, "/fast"); err != nil {
					t.Fatal(err)
				}
				if err := w.m.DeleteResource(ctx, disk("c")); err != nil {
					t.Fatal(err)
				}
				w.m.Holders()
				w.acquire(other, disk("b"), locking.Exclusive)
				q.Kill()
				settle()
				w.holders(disk("b"))
				other.Close()
				w.pending(done)

				gate.Open()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				p.Kill()
				g.Close()
				settle()
				w.empty()
			})
		})
	}
}

// The locks of one who is gone are released side by side.
func TestReleasesOfTheDeadStallNoOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.acquire(g, disk("b"), locking.Exclusive)
		w.acquire(g, disk("c"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-b"))
		p.Kill()
		settle()
		w.holders(disk("a"))
		w.holders(disk("b"), 1)
		w.holders(disk("c"))
		other, _ := w.vm(2)
		w.acquire(other, disk("a"), locking.Exclusive)
		// What is still being released is nobody's to take.
		w.refused(other.Acquire(context.Background(), disk("b"), locking.Exclusive, false), locking.KindUnavailable)
		gate.Open()
		settle()
		w.acquire(other, disk("b"), locking.Exclusive)
	})
}

// Requests for one resource are served in the order in which they came.
func TestOneResourceInOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Point(disk("alias"), "id-a")
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		const n = 8
		var (
			mu    sync.Mutex
			order []int32
			wg    sync.WaitGroup
		)
		for pid := int32(1); pid <= n; pid++ {
			g, _ := w.vm(pid)
			ref := disk([]string{"a", "alias"}[pid%2])
			wg.Go(func() {
				err := g.Acquire(context.Background(), ref, locking.Shared, false)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					order = append(order, pid)
				}
			})
			settle() // it waits, in the backend or for its turn, before the next one comes
		}
		gate.Open()
		wg.Wait()
		var held []int32
		for _, h := range w.m.Holders() {
			held = append(held, h.Owner.PID)
		}
		slices.Sort(order)
		if len(order) != n || len(held) != n {
			t.Fatalf("granted to %v, held by %v", order, held)
		}
		var told []int32
		w.mu.Lock()
		for _, e := range w.events {
			told = append(told, e.Owner.PID)
		}
		w.mu.Unlock()
		if !slices.IsSorted(told) {
			t.Errorf("served in the order %v", told)
		}
	})
}

// Of many who want one resource at once, one gets it, and then it is free.
func TestOneOfMany(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		const n = 20
		var results []<-chan error
		var gs []*locking.Registration
		for pid := int32(1); pid <= n; pid++ {
			g, _ := w.vm(pid)
			gs = append(gs, g)
			results = append(results, start(func() error {
				return g.Acquire(context.Background(), disk("a"), locking.Exclusive, false)
			}))
		}
		settle()
		gate.Open()
		winner := -1
		for i, r := range results {
			if err := <-r; err == nil {
				if winner >= 0 {
					t.Fatal("two of them got it")
				}
				winner = i
			} else {
				w.refused(err, locking.KindBusy)
			}
		}
		if winner < 0 {
			t.Fatal("nobody got it")
		}
		w.release(gs[winner], disk("a"))
		for _, g := range gs {
			g.Close()
		}
		settle()
		w.empty()
	})
}

// Whoever waits behind a call that hangs is refused when its time is over, and
// leaves nothing behind.
func TestWaitingForATurnTimesOut(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a")).Deaf()
		first := start(func() error { return one.Acquire(ctx, disk("a"), locking.Exclusive, false) })
		gate.Arrived()
		e := w.refused(two.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindUnavailable)
		if !errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("the cause is %v", e.Err)
		}
		gate.Open()
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		// The same for releases; the lock stays with its owner then.
		libvirt := w.register(1)
		gate = w.b.Block(locktest.On(locktest.OpUnlock, "id-a")).Deaf()
		released := start(func() error { return one.Release(ctx, disk("a")) })
		gate.Arrived()
		w.refused(libvirt.Release(ctx, disk("a")), locking.KindUnavailable)
		w.holders(disk("a"), 1)
		gate.OpenWith(errIO)
		w.refused(<-released, locking.KindSystem)
		w.release(libvirt, disk("a"))
		for _, g := range []*locking.Registration{one, two, libvirt} {
			g.Close()
		}
		settle()
		w.empty()
	})
}

// While a request waits for its turn the name comes to lead to something else,
// and is held as that.
func TestNameIsHeldElsewhereMeanwhile(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Point(disk("alias"), "id-a")
		one, _ := w.vm(1)
		two, _ := w.vm(2)
		three, _ := w.vm(3)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		first := start(func() error { return one.Acquire(ctx, disk("alias"), locking.Shared, false) })
		gate.Arrived()
		second := start(func() error { return two.Acquire(ctx, disk("a"), locking.Shared, false) })
		settle() // it has opened id-a, and waits
		w.b.Point(disk("a"), "replaced")
		w.acquire(three, disk("a"), locking.Shared)
		gate.Open()
		if err := errors.Join(<-first, <-second); err != nil {
			t.Fatal(err)
		}
		w.holders(disk("a"), 3, 2)
		w.check()
		w.release(one, disk("alias"))
		w.b.CheckQuiet(map[string]locking.Mode{"replaced": locking.Shared})
		w.release(two, disk("a"))
		w.release(three, disk("a"))
		for _, g := range []*locking.Registration{one, two, three} {
			g.Close()
		}
		settle()
		w.empty()
	})
}

// Of two releases of one lock the second finds nothing.
func TestReleaseTwiceAtOnce(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		libvirt := w.register(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		first := start(func() error { return g.Release(ctx, disk("a")) })
		gate.Arrived()
		second := start(func() error { return libvirt.Release(ctx, disk("a")) })
		settle()
		w.pending(second)
		gate.Open()
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		w.refused(<-second, locking.KindNotLocked)
	})
}

// The owner ends while the backend is granting: the grant is undone.
func TestDeathDuringAcquire(t *testing.T) {
	ctx := context.Background()
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		inWorld(t, func(t *testing.T, w *world) {
			g, p := w.vm(1)
			w.acquire(g, disk("b"), locking.Exclusive)
			w.told()
			gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
			done := start(func() error { return g.Acquire(ctx, disk("a"), mode, false) })
			gate.Arrived()
			p.Kill()
			settle()
			w.holders(disk("b"))
			gate.Open()
			w.refused(<-done, locking.KindOwnerGone)
			w.b.CheckQuiet(nil)
			w.toldIs(locking.OwnerGone, locking.ReleasedGone, locking.Granted, locking.ReleasedGone, locking.Refused)
			other, _ := w.vm(2)
			w.acquire(other, disk("a"), locking.Exclusive)
			w.release(other, disk("a"))
			other.Close()
			g.Close()
			settle()
			w.empty()
		})
	}
}

// The same when the Manager is closed before the backend answers.
func TestDeathDuringAcquireAndClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		done := start(func() error { return g.Acquire(context.Background(), disk("a"), locking.Exclusive, false) })
		gate.Arrived()
		p.Kill()
		settle()
		if err := w.m.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		gate.Open()
		w.refused(<-done, locking.KindOwnerGone)
		w.b.CheckQuiet(nil)
	})
}

// A release and the owner's death at once give the lock back once.
func TestDeathDuringRelease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		done := start(func() error { return g.Release(context.Background(), disk("a")) })
		gate.Arrived()
		p.Kill()
		settle()
		gate.Open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		settle()
		w.toldIs(locking.Granted, locking.OwnerGone, locking.Released)
		g.Close()
		w.empty()
	})
}

// Everybody hears of a grant before its release, also when another session
// releases at once.
func TestGrantIsToldBeforeItsRelease(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		telling := make(chan struct{})
		b, ps := locktest.NewBackend(t), locktest.NewProcesses(t)
		b.Point(disk("a"), "id-a")
		var told []locking.EventKind
		m := locking.New(locking.Options{Backend: b, Processes: ps, Observe: func(e locking.Event) {
			if e.Kind == locking.Granted {
				<-telling
			}
			told = append(told, e.Kind)
		}})
		defer m.Close(context.Background())
		g, err := m.Register(locking.Owner{PID: 0})
		if err != nil {
			t.Fatal(err)
		}
		acquired := start(func() error { return g.Acquire(context.Background(), disk("a"), locking.Exclusive, false) })
		settle()
		released := start(func() error { return g.Release(context.Background(), disk("a")) })
		settle()
		close(telling)
		if err := errors.Join(<-acquired, <-released); err != nil {
			t.Fatal(err)
		}
		if want := []locking.EventKind{locking.Granted, locking.Released}; !slices.Equal(told, want) {
			t.Errorf("observed %v, want %v", told, want)
		}
	})
}
