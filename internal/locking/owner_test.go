package locking_test

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

func TestDeathReleasesEverything(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		dies, p := w.vm(1)
		stays, _ := w.vm(2)
		w.acquire(dies, disk("a"), locking.Exclusive)
		w.acquire(dies, disk("b"), locking.Shared)
		w.acquire(stays, disk("b"), locking.Shared)
		w.acquire(dies, disk("b"), locking.Shared) // twice: virtlockd keeps the second
		w.told()
		dies.Close() // a session that ends changes nothing
		w.holders(disk("a"), 1)
		p.Kill()
		settle()
		w.holders(disk("a"))
		w.holders(disk("b"), 2)
		w.b.CheckQuiet(map[string]locking.Mode{"id-b": locking.Shared})
		if e := w.first(); e.Kind != locking.OwnerGone || e.Owner.PID != 1 || e.Locks != 3 {
			t.Errorf("observed first: %+v", e)
		}
		w.toldIs(locking.OwnerGone, locking.ReleasedGone, locking.ReleasedGone, locking.ReleasedGone)
		w.release(stays, disk("b"))
		stays.Close()
		settle()
		w.empty()
	})
}

func TestNothingIsGrantedAfterDeath(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		w.acquire(g, disk("b"), locking.Shared)
		other, _ := w.vm(2)
		w.acquire(other, disk("b"), locking.Shared)
		p.Kill()
		settle()
		w.refused(g.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
		w.refused(g.Acquire(ctx, disk("b"), locking.Shared, false), locking.KindOwnerGone)
		late := w.register(1) // comes a moment too late
		w.refused(late.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
		w.refused(late.Release(ctx, disk("b")), locking.KindNotOwner)
		w.holders(disk("a"))
		late.Close()

		again, _ := w.vm(1) // another process with the same pid
		w.acquire(again, disk("a"), locking.Exclusive)
		w.refused(g.Release(ctx, disk("a")), locking.KindNotOwner)
		w.refused(g.Acquire(ctx, disk("c"), locking.Exclusive, false), locking.KindOwnerGone)
		w.holders(disk("a"), 1)
		g.Close()
		w.release(again, disk("a"))
	})
}

// The process has ended and its watch has not come to it: a session that
// registers right then must not become an owner whom nobody watches.
func TestRegisterBeforeDeathIsHandled(t *testing.T) {
	// Not in a bubble: what runs first is left to the scheduler on purpose.
	for range 200 {
		w := newWorld(t)
		g, p := w.vm(1)
		p.Kill()
		late := w.register(1)
		w.refused(late.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
		g.Close()
		late.Close()
		w.close()
		if s := w.m.Sizes(); s != (locking.Sizes{}) {
			t.Fatalf("tables are not empty: %+v", s)
		}
	}
}

// The pid's next process may be there before the death of the last was noticed.
func TestReusedPID(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		old, p := w.vm(1)
		w.acquire(old, disk("a"), locking.Exclusive)
		p.Die()
		w.ps.Start(1)
		p.Kill() // noticed only now
		next := w.register(1)
		w.acquire(next, disk("b"), locking.Exclusive)
		settle()
		w.holders(disk("a"))
		w.holders(disk("b"), 1)
		old.Close()
		next.Close()
		settle()
		w.holders(disk("b"), 1)
		again := w.register(1)
		w.release(again, disk("b"))
		again.Close()
		settle()
		w.empty()
	})
}

// Two sessions of one process that register at the same moment are one owner.
func TestRegisterAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ps.Start(1)
		gate := w.ps.BlockOpen()
		got := make(chan *locking.Registration, 2)
		for range 2 {
			go func() { got <- w.register(1) }()
		}
		gate.Arrived()
		gate.Arrived()
		gate.Open()
		one, two := <-got, <-got
		w.acquire(one, disk("a"), locking.Exclusive)
		w.release(two, disk("a"))
		if n := w.ps.Watched(); n != 1 {
			t.Errorf("one process is watched %d times", n)
		}
		one.Close()
		two.Close()
		settle()
		w.empty()
	})
}

func TestProcessThatCannotBeWatched(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ps.Start(1)
		w.ps.FailOpen(syscall.EMFILE)
		_, err := w.m.Register(locking.Owner{PID: 1, Name: "web"})
		e := w.refused(err, locking.KindSystem)
		if want := "Unable to watch process 1 of owner 'web': too many open files"; e.Error() != want {
			t.Errorf("the message is %q, want %q", e, want)
		}
		if !errors.Is(err, syscall.EMFILE) {
			t.Error("the errno is lost")
		}
		w.empty()
	})
}

// virtlockd accepts pids of nobody, so they work; no process can end them.
func TestUnverifiedOwners(t *testing.T) {
	ctx := context.Background()
	for _, pid := range []int32{0, -1, 77} {
		inWorld(t, func(t *testing.T, w *world) {
			one, two := w.register(pid), w.register(pid)
			w.acquire(one, disk("a"), locking.Exclusive)
			w.refused(two.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindBusy)
			one.Close()
			two.Close()
			settle()
			w.holders(disk("a"), pid)
			third := w.register(pid)
			w.release(third, disk("a"))
			third.Close()
			settle()
			want := []locking.EventKind{locking.Granted, locking.Refused, locking.Released}
			if pid > 0 {
				want = append([]locking.EventKind{locking.OwnerUnverified}, want...)
			}
			w.toldIs(want...)
			w.empty()
		})
	}
}

// A pid that nobody had is a process's later: that process is watched, and what
// was locked in its pid's name before stays, and can be released by its pid.
func TestUnverifiedPIDBecomesAProcess(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		nobody := w.register(77)
		w.acquire(nobody, disk("a"), locking.Exclusive)
		w.acquire(nobody, disk("c"), locking.Shared)
		real, p := w.vm(77)
		if w.ps.Watched() != 1 {
			t.Fatal("the process is not watched")
		}
		w.acquire(real, disk("b"), locking.Exclusive)
		w.acquire(real, disk("c"), locking.Shared)
		p = p.Stubborn()
		real.Disconnected()
		settle()
		w.holders(disk("b"), 77) // it runs, so it keeps its lock
		p.Kill()
		settle()
		w.holders(disk("b"))
		w.holders(disk("a"), 77)
		w.holders(disk("c"), 77)
		w.refused(nobody.Release(ctx, disk("b")), locking.KindNotLocked)
		late := w.register(77)
		w.release(late, disk("a"))
		w.release(nobody, disk("c"))
		for _, g := range []*locking.Registration{nobody, real, late} {
			g.Close()
		}
		settle()
		w.empty()
	})
}

func TestOwnHoldIsReleasedBeforeAnUnverifiedOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		nobody := w.register(77)
		w.acquire(nobody, disk("c"), locking.Shared)
		real, p := w.vm(77)
		w.acquire(real, disk("c"), locking.Shared)
		w.release(real, disk("c"))
		p.Kill() // releases nothing more: what is left is not its own
		settle()
		w.holders(disk("c"), 77)
	})
}

// An owner that gets nothing is not one whose locks only a release ends.
func TestDepartedOwnerIsNotToldAsUnverified(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, p := w.vm(10)
		p.Kill()
		settle()
		w.told()
		again := w.register(10)
		w.toldIs()
		w.refused(again.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
	})
}

func TestDepartedPIDsAreForgottenInTheEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for pid := int32(1); pid <= 2*locking.MaxTombstones; pid++ {
			g, p := w.vm(pid)
			if pid%3 == 0 { // one that comes again, to have two entries
				p.Kill()
				settle()
				g.Close()
				g, p = w.vm(pid)
			}
			p.Kill()
			settle()
			g.Close()
		}
		if n := w.m.Departed(); n > locking.MaxTombstones {
			t.Errorf("%d pids are remembered", n)
		}
		for _, pid := range []int32{2 * locking.MaxTombstones, locking.MaxTombstones * 3 / 2} {
			g := w.register(pid)
			w.refused(g.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
			g.Close()
		}
		g := w.register(1) // so long ago that it is like a pid that never was
		w.acquire(g, disk("a"), locking.Exclusive)
		w.release(g, disk("a"))
		g.Close()
		settle()
		w.empty()
	})
}

// The older of two entries of one pid goes without the younger one.
func TestDepartedTwiceIsRemembered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		depart := func(pid int32) {
			g, p := w.vm(pid)
			p.Kill()
			settle()
			g.Close()
		}
		depart(1)
		for pid := range int32(10) {
			depart(100 + pid)
		}
		depart(1)
		for pid := range int32(locking.MaxTombstones - 5) {
			depart(1000 + pid)
		}
		g := w.register(1)
		w.refused(g.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
	})
}

// A session may end while its acquire is under way; the owner is watched.
// A session that registered before a restart in place is not taken for one of a
// process that got the pid since.
func TestRegisterAgain(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		began := g.StartTime()
		if began == 0 {
			t.Fatal("no start time")
		}
		again, err := w.m.RegisterAgain(locking.Owner{PID: 1}, began)
		if err != nil {
			t.Fatal(err)
		}
		w.acquire(again, disk("a"), locking.Exclusive)
		w.release(g, disk("a")) // they are one owner
		again.Close()
		g.Close()
		p.Die()
		w.told()
		for _, reused := range []bool{false, true} {
			var other *locktest.Process
			if reused {
				other = w.ps.Start(1)
			}
			late, err := w.m.RegisterAgain(locking.Owner{PID: 1}, began)
			if err != nil {
				t.Fatal(err)
			}
			w.refused(late.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
			w.refused(late.Release(ctx, disk("a")), locking.KindNotLocked)
			late.Disconnected()
			late.Close()
			if reused {
				other.Kill()
			}
		}
		w.toldIs(locking.Refused, locking.Refused) // and of no unverified owner
		w.empty()
	})
}

func TestSessionEndsDuringAcquire(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		done := start(func() error { return g.Acquire(context.Background(), disk("a"), locking.Exclusive, false) })
		gate.Arrived()
		g.Close()
		gate.Open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		again := w.register(1)
		w.release(again, disk("a"))
		w.acquire(again, disk("b"), locking.Exclusive)
		again.Close()
		p.Kill()
		settle()
		w.empty()
	})
}

func TestSessionEndsDuringRelease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		done := start(func() error { return g.Release(context.Background(), disk("a")) })
		gate.Arrived()
		g.Close()
		gate.Open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		settle()
		w.empty()
	})
}
