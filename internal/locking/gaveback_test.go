package locking_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// gaveBack is a virtual machine that has given back the disk a, and of which something was
// written since.
func (w *world) gaveBack(pid int32, mode locking.Mode) (*locking.Registration, locking.GivenBack, locking.Stamp) {
	w.t.Helper()
	g, _ := w.vm(pid)
	w.written(pid)
	w.acquire(g, disk("a"), mode)
	w.release(g, disk("a"))
	return g, w.gift(pid), w.written(pid)
}

// gift is the only thing that was given back.
func (w *world) gift(pid int32) locking.GivenBack {
	w.t.Helper()
	list := w.m.GivenBack()
	if len(list) != 1 || list[0].Owner.PID != pid || list[0].Ref != disk("a") {
		w.t.Fatalf("given back: %v", list)
	}
	return list[0]
}

func (w *world) noGift() {
	w.t.Helper()
	if list := w.m.GivenBack(); len(list) != 0 {
		w.t.Errorf("given back: %v", list)
	}
}

func TestTakeAgain(t *testing.T) {
	ctx := context.Background()
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		inWorld(t, func(t *testing.T, w *world) {
			g, gift, now := w.gaveBack(1, mode)
			if w.nudges != 1 || gift.Mode != mode {
				t.Errorf("%d nudges, %v", w.nudges, gift)
			}
			w.told()
			if err := w.m.TakeAgain(ctx, gift, now); err != nil {
				t.Fatal(err)
			}
			w.toldIs(locking.TakenAgain)
			w.holders(disk("a"), 1)
			w.noGift()
			if h := w.m.Holders(); h[0].Mode != mode {
				t.Errorf("holders: %v", h)
			}
			w.refused(w.m.TakeAgain(ctx, gift, now), locking.KindUnavailable) // it has it
			other, _ := w.vm(2)
			w.refused(other.Acquire(ctx, disk("a"), locking.Exclusive, false), locking.KindBusy)

			// Its owner asks for it, and then has it once: an exclusive lock asked for again is busy, as with any other.
			w.told()
			w.acquire(g, disk("a"), mode)
			w.toldIs(locking.Granted)
			w.holders(disk("a"), 1)
			if mode == locking.Exclusive {
				w.refused(g.Acquire(ctx, disk("a"), mode, false), locking.KindBusy)
			}
			w.release(g, disk("a"))
			w.holders(disk("a"))

			// Its owner releases it without having asked.
			if err := w.m.TakeAgain(ctx, w.gift(1), w.written(1)); err != nil {
				t.Fatal(err)
			}
			w.release(g, disk("a"))
			w.holders(disk("a"))
			w.m.ForgetGivenBack(w.gift(1))
			w.noGift()
			g.Close()
			other.Close()
			settle()
			w.empty()
		})
	}
}

// TestGivenBackEnds is about everything that makes it unnecessary to remember.
func TestGivenBackEnds(t *testing.T) {
	ctx := context.Background()
	t.Run("taken again by its owner", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, gift, now := w.gaveBack(1, locking.Exclusive)
			w.acquire(g, disk("a"), locking.Exclusive)
			w.noGift()
			if err := w.m.TakeAgain(ctx, gift, now); !errors.Is(err, locking.ErrTaken) {
				t.Errorf("taken again: %v", err)
			}
			w.holders(disk("a"), 1)
			w.release(g, disk("a"))
			w.m.ForgetGivenBack(gift) // an old one
			w.gift(1)
			g.Close()
			w.m.ForgetGivenBack(w.gift(1))
			settle()
			w.empty()
		})
	})
	t.Run("its owner ends", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, p := w.vm(1)
			w.written(1)
			w.acquire(g, disk("a"), locking.Exclusive)
			w.release(g, disk("a"))
			gift, now := w.gift(1), w.written(1)
			g.Close() // whoever spoke for it; it lives, and may go on with its disk
			w.gift(1)
			p.Kill()
			settle()
			w.noGift()
			if err := w.m.TakeAgain(ctx, gift, now); !errors.Is(err, locking.ErrTaken) {
				t.Errorf("taken again: %v", err)
			}
			w.empty()
		})
	})
	t.Run("nothing is known of its owner", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			w.acquire(g, disk("a"), locking.Exclusive)
			w.release(g, disk("a"))
			w.noGift()
			unseen := w.register(7) // no process
			w.written(7)
			w.acquire(unseen, disk("a"), locking.Exclusive)
			w.release(unseen, disk("a"))
			w.noGift()
			g.Close()
			unseen.Close()
			settle()
			w.empty()
		})
	})
	t.Run("its owner is being ended", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, p := w.vm(1)
			p.Stubborn()
			w.written(1)
			w.acquire(g, disk("a"), locking.Exclusive)
			w.acquire(g, disk("b"), locking.Exclusive)
			w.release(g, disk("a"))
			g.Disconnected()
			g.Close()
			settle()
			if err := w.m.TakeAgain(ctx, w.gift(1), w.written(1)); !errors.Is(err, locking.ErrTaken) {
				t.Errorf("taken again: %v", err)
			}
			p.Kill()
			settle()
			w.noGift()
			w.empty()
		})
	})
	t.Run("it was shared twice", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			w.written(1)
			w.acquire(g, disk("a"), locking.Shared)
			w.acquire(g, disk("a"), locking.Shared)
			w.release(g, disk("a"))
			w.noGift()
			w.endsWith(g)
		})
	})
	t.Run("an operator released it", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			g, _ := w.vm(1)
			w.written(1)
			w.acquire(g, disk("a"), locking.Exclusive)
			if _, err := w.m.ForceRelease(ctx, disk("a"), nil, true); err != nil {
				t.Fatal(err)
			}
			w.noGift()
			g.Close()
			settle()
			w.empty()
		})
	})
}

// TestTakeAgainNotWritten: what was seen must be newer than the release.
func TestTakeAgainNotWritten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, gift, _ := w.gaveBack(1, locking.Exclusive)
		if err := w.m.TakeAgain(context.Background(), gift, gift.Stamp); !errors.Is(err, locking.ErrTaken) {
			t.Errorf("taken again: %v", err)
		}
		w.holders(disk("a"))
		w.m.ForgetGivenBack(gift)
		g.Close()
		settle()
		w.empty()
	})
}

// TestTakeAgainOvertaken: while it is taken, its owner gives it back once more, as does a
// virtual machine that is suspended just then, or something else is written of it.
func TestTakeAgainOvertaken(t *testing.T) {
	ctx := context.Background()
	for name, happens := range map[string]func(*world, *locking.Registration){
		"released": func(w *world, g *locking.Registration) {
			w.refused(g.Release(ctx, disk("a")), locking.KindNotLocked)
		},
		"written": func(w *world, _ *locking.Registration) { w.written(1) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				g, gift, now := w.gaveBack(1, locking.Exclusive)
				gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
				done := start(func() error { return w.m.TakeAgain(ctx, gift, now) })
				gate.Arrived()
				happens(w, g)
				w.told()
				least := 2
				w.k.Added = func(kept int) { least = min(least, kept) } // what it is kept as now, beside what it was before
				gate.Open()
				if err := <-done; !errors.Is(err, locking.ErrTaken) {
					t.Errorf("taken again: %v", err)
				}
				w.toldIs(locking.TakenAgain, locking.Released)
				w.holders(disk("a"))
				w.check()
				if least < 2 {
					t.Errorf("there was a moment in which it was not kept")
				}
				// It is remembered as before, and as it was released last.
				if err := w.m.TakeAgain(ctx, w.gift(1), w.written(1)); err != nil {
					t.Error(err)
				}
				w.endsWith(g)
			})
		})
	}
}

// endsWith has the one who has the lock give it back for good, and wants nothing to be left of it.
func (w *world) endsWith(g *locking.Registration) {
	w.t.Helper()
	w.release(g, disk("a"))
	w.m.ForgetGivenBack(w.gift(1))
	g.Close()
	settle()
	w.empty()
}

// TestTakeAgainAsked: its owner asks for the lock while it is about to be taken. The owner has it then, and is not what
// keeps itself out.
func TestTakeAgainAsked(t *testing.T) {
	ctx := context.Background()
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		inWorld(t, func(t *testing.T, w *world) {
			g, gift, now := w.gaveBack(1, mode)
			w.told()
			gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
			asked := start(func() error { return g.Acquire(ctx, disk("a"), mode, false) })
			gate.Arrived()
			taken := start(func() error { return w.m.TakeAgain(ctx, gift, now) })
			settle()
			w.pending(taken) // it waits for its turn
			gate.Open()
			if err := <-asked; err != nil {
				t.Errorf("acquire: %v", err)
			}
			if err := <-taken; !errors.Is(err, locking.ErrTaken) {
				t.Errorf("taken again: %v", err)
			}
			w.toldIs(locking.Granted)
			w.holders(disk("a"), 1)
			w.endsWith(g)
		})
	}
}

// TestGivenBackUnwatched: a session ends while it gives back the last lock of an owner, whom nobody watches from then on.
func TestGivenBackUnwatched(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		w.written(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		done := start(func() error { return g.Release(ctx, disk("a")) })
		gate.Arrived()
		g.Close()
		gate.Open()
		if err := <-done; err != nil {
			t.Error(err)
		}
		settle() // until its watch has ended
		p.Kill()
		settle()
		w.noGift()
		w.empty()
	})
}

// TestReleasedAgain: an owner that releases what it has given back already is about to be
// paused, though nothing says so yet.
func TestReleasedAgain(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, gift, now := w.gaveBack(1, locking.Exclusive)
		w.refused(g.Release(ctx, disk("a")), locking.KindNotLocked)
		for _, gift := range []locking.GivenBack{gift, w.gift(1)} {
			if err := w.m.TakeAgain(ctx, gift, now); !errors.Is(err, locking.ErrTaken) {
				t.Errorf("taken again: %v", err)
			}
		}
		other, _ := w.vm(2)
		w.acquire(other, disk("a"), locking.Exclusive)
		now = w.written(1)
		w.refused(g.Release(ctx, disk("a")), locking.KindNotOwner) // as another has it by now
		if err := w.m.TakeAgain(ctx, w.gift(1), now); !errors.Is(err, locking.ErrTaken) {
			t.Errorf("taken again: %v", err)
		}
		w.m.ForgetGivenBack(w.gift(1))
		w.release(other, disk("a"))
		g.Close()
		other.Close()
		settle()
		w.empty()
	})
}

// TestTakeAgainBusy: whoever has the disk now is named, and nobody is told of a refusal, since
// nobody asked.
func TestTakeAgainBusy(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, gift, now := w.gaveBack(1, locking.Exclusive)
		other, _ := w.vm(2)
		w.acquire(other, disk("a"), locking.Exclusive)
		w.told()
		for range 2 {
			if e := w.refused(w.m.TakeAgain(ctx, gift, now), locking.KindBusy); len(e.Holders) != 1 || e.Holders[0].Owner.PID != 2 {
				t.Errorf("refused: %v", e)
			}
		}
		w.toldIs()
		w.release(other, disk("a"))
		if err := w.m.TakeAgain(ctx, gift, now); err != nil {
			t.Error(err)
		}
		w.release(g, disk("a"))
		w.m.ForgetGivenBack(w.gift(1))
		g.Close()
		other.Close()
		settle()
		w.empty()
	})
}

// TestTakeAgainDrained: a host that is drained grants nothing new, and this is not new; nor is
// what its owner asks for later.
func TestTakeAgainDrained(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, gift, now := w.gaveBack(1, locking.Exclusive)
		w.m.Drain(true)
		if err := w.m.TakeAgain(context.Background(), gift, now); err != nil {
			t.Fatal(err)
		}
		w.acquire(g, disk("a"), locking.Exclusive)
		w.release(g, disk("a"))
		w.m.Drain(false)
		w.m.ForgetGivenBack(w.gift(1))
		g.Close()
		settle()
		w.empty()
	})
}

// TestTakeAgainOvertakenDrained: what was taken and given back without its owner's asking changes nothing in what the
// owner may take while the host is drained: what it gave back since the drain began, and nothing else.
func TestTakeAgainOvertakenDrained(t *testing.T) {
	ctx := context.Background()
	for name, before := range map[string]bool{"given back before the drain": true, "since": false} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				g, _ := w.vm(1)
				w.written(1)
				w.acquire(g, disk("a"), locking.Exclusive)
				w.m.Drain(!before)
				w.release(g, disk("a"))
				w.m.Drain(true)
				returning := len(w.m.Returning())
				gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
				seen := w.written(1)
				done := start(func() error { return w.m.TakeAgain(ctx, w.gift(1), seen) })
				gate.Arrived()
				w.written(1)
				gate.Open()
				if err := <-done; !errors.Is(err, locking.ErrTaken) {
					t.Errorf("taken again: %v", err)
				}
				if n := len(w.m.Returning()); n != returning {
					t.Errorf("%d may be taken by their owners, and before that %d", n, returning)
				}
				err := g.Acquire(ctx, disk("a"), locking.Exclusive, false)
				if before {
					w.refused(err, locking.KindUnavailable)
				} else if err != nil {
					t.Error(err)
				}
			})
		})
	}
}
