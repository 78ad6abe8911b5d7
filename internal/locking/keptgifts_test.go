package locking_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// kept is what an earlier process has kept of a process's disk a, which was given back when this was known of it.
func kept(seq uint64, p *locktest.Process, stamp locking.Stamp) locking.Kept {
	return locking.Kept{Seq: seq, Owner: locking.Owner{PID: 1, ID: 1, Name: "vm"}, OwnerStart: p.StartTime(), Ref: disk("a"), Mode: locking.Exclusive, Stamp: stamp}
}

// remember starts with that.
func (w *world) remember(list ...locking.Kept) (n int) {
	w.k.Load(list)
	n = w.m.RestoreGivenBack(list)
	settle()
	w.check()
	return n
}

// TestRestoreGivenBack: the daemon is restarted between a release and libvirt's forgetting of it.
func TestRestoreGivenBack(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		p, was := w.ps.Start(1), w.written(1)
		if n := w.remember(kept(5, p, was)); n != 1 || w.gift(1).Stamp != was {
			t.Fatalf("%d are remembered: %+v", n, w.m.GivenBack())
		}
		if err := w.m.TakeAgain(ctx, w.gift(1), was); !errors.Is(err, locking.ErrTaken) {
			t.Errorf("taken again, and nothing was written: %v", err)
		}
		if err := w.m.TakeAgain(ctx, w.gift(1), w.written(1)); err != nil {
			t.Fatal(err)
		}
		w.holders(disk("a"), 1)
		w.check()
		g := w.register(1)
		w.endsWith(g)
	})
}

// TestRestoreTakenAgain: the next process knows, too, that libvirt has not asked for a lock, and may do so.
func TestRestoreTakenAgain(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		p, was := w.ps.Start(1), w.written(1)
		w.restore(entry(1, p.StartTime(), "a", ex, locking.EntryGranted))
		if n := w.remember(kept(1, p, was)); n != 0 {
			t.Errorf("%d are remembered", n)
		}
		w.noGift()
		g := w.register(1)
		w.acquire(g, disk("a"), ex)
		w.check()
		w.refused(g.Acquire(ctx, disk("a"), ex, false), locking.KindBusy) // as with any other
		w.endsWith(g)
	})
	// And that is over with the lock, however that ends.
	inWorld(t, func(t *testing.T, w *world) {
		p, was := w.ps.Start(1), w.written(1)
		w.restore(entry(1, p.StartTime(), "a", ex, locking.EntryGranted))
		w.remember(kept(1, p, was))
		if _, err := w.m.ForceRelease(ctx, disk("a"), nil, true); err != nil {
			t.Fatal(err)
		}
		w.noGift()
		w.empty()
	})
}

// TestRestoreGivenBackByNobody: of whom it is not certain that it lives nothing is remembered.
func TestRestoreGivenBackByNobody(t *testing.T) {
	for name, happens := range map[string]func(*world, *locktest.Process){
		"ended":            func(_ *world, p *locktest.Process) { p.Kill() },
		"another process":  func(w *world, p *locktest.Process) { p.Kill(); w.ps.Start(1) },
		"cannot be opened": func(w *world, _ *locktest.Process) { w.ps.FailOpen(errIO) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				p := w.ps.Start(1)
				happens(w, p)
				if n := w.remember(kept(1, p, w.written(1))); n != 0 {
					t.Errorf("%d are remembered", n)
				}
				w.empty()
			})
		})
	}
	inWorld(t, func(t *testing.T, w *world) { // and it ends later
		p := w.ps.Start(1)
		w.remember(kept(1, p, w.written(1)))
		p.Kill()
		settle()
		w.empty()
	})
}

// TestRestoreGivenBackTwice: of two that a kill has left of one lock, that of the later release counts. Before it
// something may have been written that says that the virtual machine runs.
func TestRestoreGivenBackTwice(t *testing.T) {
	for _, later := range []uint64{1, 2} {
		inWorld(t, func(t *testing.T, w *world) {
			p := w.ps.Start(1)
			w.written(1)
			first, second := kept(3-later, p, locking.Stamp{Inode: 1, Written: 1}), kept(later, p, locking.Stamp{Inode: 2, Written: 2})
			list := []locking.Kept{first, second}
			if later == 1 {
				slices.Reverse(list)
			}
			w.remember(list...)
			if g := w.gift(1); g.Stamp != second.Stamp {
				t.Errorf("remembered is %+v", g)
			}
			w.m.ForgetGivenBack(w.gift(1))
			w.empty()
		})
	}
}

// TestKeptBeforeReleased: whoever is killed in the middle of a release has kept what it was about, as what is held yet.
func TestKeptBeforeReleased(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.written(1)
		w.acquire(g, disk("a"), ex)
		asked := 0
		w.k.Added = func(int) {
			asked++
			if e := w.j.Entries(); len(e) != 1 || e[0].State != locking.EntryGranted || w.b.Locked()["id-a"] != ex || len(w.b.Locked()) != 1 {
				t.Errorf("it is released already: %+v", e)
			}
		}
		w.endsWith(g)
		if asked != 1 {
			t.Errorf("kept %d times", asked)
		}
	})
}

// TestNotKept: what cannot be written down, or was not released, leaves nothing behind.
func TestNotKept(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.written(1)
		w.acquire(g, disk("a"), ex)
		w.b.Fail(locktest.On(locktest.OpUnlock, "id-a"), errIO, 1)
		w.refused(g.Release(ctx, disk("a")), locking.KindSystem)
		w.check() // it has it
		w.release(g, disk("a"))
		w.check()

		// A later release that cannot be kept must not be taken for the earlier one.
		w.k.Fail(errIO)
		w.written(1)
		w.refused(g.Release(ctx, disk("a")), locking.KindNotLocked)
		if list := w.k.Kept(); len(list) != 0 || w.gift(1).Stamp.Inode != 2 {
			t.Errorf("kept is %+v, remembered %+v", list, w.gift(1))
		}
		w.acquire(g, disk("a"), ex)
		w.release(g, disk("a")) // no release fails for that
		w.m.ForgetGivenBack(w.gift(1))
		g.Close()
		settle()
		w.empty()
	})
}

// TestTakeAgainAfterRestart: a lock that was taken again is one like any other to the next process, that may know that its owner has not asked for it.
func TestTakeAgainAfterRestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, gift, now := w.gaveBack(1, locking.Exclusive)
		if err := w.m.TakeAgain(context.Background(), gift, now); err != nil {
			t.Fatal(err)
		}
		if e := w.j.Entries(); len(e) != 1 || e[0].State != locking.EntryGranted || e[0].Owner.PID != 1 || e[0].OwnerStart == 0 {
			t.Errorf("the journal has %v", e)
		}
		if k := w.k.Kept(); len(k) != 1 || k[0].Stamp != gift.Stamp {
			t.Errorf("kept is %+v", k)
		}
		w.abandon()
	})
}
