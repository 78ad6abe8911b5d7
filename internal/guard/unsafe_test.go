package guard

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

type fullDisk struct{ Store }

func (fullDisk) Save(Saved) error { return errors.New("no space left on device") }

// What the guard cannot be trusted with grants nothing, says what to do, and promises nothing to the others.
func TestUnsafe(t *testing.T) {
	for name, c := range map[string]struct {
		spoil, mend func(g *Guard, w *world)
		want        string
	}{
		"mode fencing, and nobody fences": {
			func(g *Guard, _ *world) { g.o.Mode = Fencing },
			func(g *Guard, _ *world) { g.o.Mode = Auto },
			"set enable_fencing=1 in dlm.conf",
		},
		"corosync's timeouts have become longer": {
			func(g *Guard, w *world) {
				longer := g.totem
				longer.Token = w.timing.HoldOff
				g.lockedTotem(longer)
			},
			func(g *Guard, w *world) {
				was := g.totem
				was.Token = w.timing.Token
				g.lockedTotem(was)
			},
			"set guard.hold_off to at least that on all hosts",
		},
		"nothing can be noted": {
			func(g *Guard, _ *world) { g.o.Store = fullDisk{g.o.Store} },
			func(g *Guard, _ *world) { g.o.Store = g.o.Store.(fullDisk).Store },
			"no space left on device",
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, none, func(b *bench) {
				g := b.nodes[0].guard
				promised := func() bool {
					other := b.nodes[1].guard
					other.mu.Lock()
					defer other.mu.Unlock()
					return other.ledger.words[1].Promise
				}
				do := func(f func(*Guard, *world)) {
					g.mu.Lock()
					f(g, b.world)
					g.mu.Unlock()
					b.settle(b.ctx, 2*time.Second)
				}
				if err := g.Admit(b.ctx); err != nil || !promised() {
					b.t.Fatalf("before: %v, promised: %v", err, promised())
				}
				do(c.spoil)
				var r *Refusal
				if err := g.Admit(b.ctx); !errors.As(err, &r) || r.Cause() != "guard_unsafe" || !strings.Contains(err.Error(), c.want) {
					b.t.Errorf("it admits, or does not say what to do: %v", err)
				}
				if st := g.Status(); st.Unsafe == "" || st.Promise || promised() {
					b.t.Errorf("unsafe %q, promise %v, of which the others know %v", st.Unsafe, st.Promise, promised())
				}
				b.is("what has locks", true, false)
				do(c.mend)
				if err := g.Admit(b.ctx); err != nil || !promised() {
					b.t.Errorf("mended: %v, promised: %v", err, promised())
				}
			})
		})
	}
}

// What owns locks and is no process that can be stopped makes the promise void for as long as it does.
func TestOwnerWithoutAProcess(t *testing.T) {
	onBench(t, none, func(b *bench) {
		for _, with := range []bool{true, false} {
			b.mu.Lock()
			b.nodes[0].ghost = with
			b.mu.Unlock()
			b.settle(b.ctx, 2*time.Second)
			other := b.nodes[1].guard
			other.mu.Lock()
			if got := other.ledger.words[1].Promise; got == with {
				b.t.Errorf("with such an owner (%v) the others count on node 1: %v", with, got)
			}
			other.mu.Unlock()
		}
	})
}

// Where dlm_controld fences the watchdog is nobody's, whatever has locks.
func TestNoWatchdogWhereOthersFence(t *testing.T) {
	onBench(t, none, func(b *bench) {
		g, d := b.nodes[0].guard, &dog{}
		b.withDog(g, d)
		b.mu.Lock()
		b.nodes[0].fences = true
		b.mu.Unlock()
		b.settle(b.ctx, 2*learnEvery)
		g.mu.Lock()
		before := d.fed
		if before == 0 || d.disarmed != 1 {
			b.t.Errorf("fed %d times before it was known, and disarmed %d times after", before, d.disarmed)
		}
		g.mu.Unlock()
		b.settle(b.ctx, 2*time.Second)
		g.mu.Lock()
		defer g.mu.Unlock()
		if d.fed != before {
			b.t.Error("it is fed although others fence")
		}
		b.is("what has locks", true, false)
	})
}

// withDog gives a guard a watchdog, and time to use it.
func (b *bench) withDog(g *Guard, d Dog) {
	g.mu.Lock()
	g.o.Dog = d
	g.mu.Unlock()
	b.settle(b.ctx, time.Second)
}

// That a watchdog is armed, or is not any more, is noted and told to the others at once, not with the next beat.
func TestWatchdogIsTold(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x, d := b.nodes[0], &dog{}
		for _, armed := range []bool{true, false} {
			x.guard.mu.Lock()
			x.guard.o.Dog = d
			x.guard.mu.Unlock()
			if !armed {
				b.mu.Lock()
				b.p.lockedEnd()
				b.mu.Unlock()
			}
			now := func() bool {
				x.guard.mu.Lock()
				defer x.guard.mu.Unlock()
				return d.fed > 0 && d.disarmed == 0
			}
			for end := b.now() + time.Second; now() != armed && b.now() < end; {
				time.Sleep(time.Millisecond) // by the bubble's clock: until the guard looks
			}
			saved, err := (store{x}).Load()
			if err != nil || saved.Armed != armed {
				b.t.Errorf("armed: %v; noted: %+v, %v", armed, saved, err)
			}
			time.Sleep(60 * time.Millisecond) // by the bubble's clock: longer than a message takes
			if w := b.nodes[1].hears(1); w.Watchdog != armed {
				b.t.Errorf("armed: %v; node 2 has heard %+v", armed, w)
			}
		}
	})
}

type endlessDog struct{ dog }

func (*endlessDog) Disarm() error { return fmt.Errorf("/dev/watchdog %w", ErrStays) }

// A watchdog that cannot be stopped is fed for as long as there is somebody to feed it, and people are told so from then on.
func TestWatchdogThatCannotBeStopped(t *testing.T) {
	onBench(t, none, func(b *bench) {
		g, d := b.nodes[0].guard, &endlessDog{}
		b.withDog(g, d)
		if st := g.Status(); st.Watchdog != "open" || len(st.WatchdogStays) != 0 {
			b.t.Errorf("before it is known the status is %q, %q", st.Watchdog, st.WatchdogStays)
		}
		b.mu.Lock()
		b.p.lockedEnd()
		delete(b.locks, "disk0")
		b.mu.Unlock()
		is := func(what string) {
			b.t.Helper()
			b.settle(b.ctx, time.Second)
			g.mu.Lock()
			before := d.fed
			g.mu.Unlock()
			b.settle(b.ctx, 5*time.Second)
			if st := g.Status(); st.Watchdog != "open" || len(st.WatchdogStays) != 1 {
				b.t.Errorf("%s: the status is %q, %q", what, st.Watchdog, st.WatchdogStays)
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if d.fed-before < 5 {
				b.t.Errorf("%s: it was fed %d times in 5 s, and would reset the host", what, d.fed-before)
			}
		}
		is("nothing has locks any more")
		if b.nodes[0].acquire(b.ctx, "disk0") == nil {
			b.t.Error("nothing is granted")
		}
		is("something has again, and the host is reset if vmlockd is stopped now")
	})
}

// One that an earlier guard has left armed, and that the configuration does not name any more, is fed and noted just the same.
func TestLeftWatchdogThatCannotBeStopped(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x, d := b.nodes[0], &endlessDog{}
		x.kill()
		x.options = func(o *Options) { o.Left = map[string]Dog{"/dev/watchdog": d} }
		x.start()
		b.settle(b.ctx, 5*time.Second)
		x.guard.mu.Lock()
		before := d.fed
		x.guard.mu.Unlock()
		b.settle(b.ctx, 5*time.Second)
		if st := x.guard.Status(); st.Watchdog != "" || len(st.WatchdogStays) != 1 {
			b.t.Errorf("the status is %q, %q", st.Watchdog, st.WatchdogStays)
		}
		x.guard.mu.Lock()
		defer x.guard.mu.Unlock()
		if d.fed-before < 5 {
			b.t.Errorf("it was fed %d times in 5 s, and would reset the host", d.fed-before)
		}
		if paths, _, err := LeftArmed(store{x}, ""); err != nil || len(paths) != 1 {
			b.t.Errorf("the next one knows of %v, %v", paths, err)
		}
		b.is("what has locks", true, false)
	})
}

// A watchdog that an earlier guard has left armed, and that cannot be opened at once, is tried again when nothing needs it any more, and when
// vmlockd ends: it would reset a host that is well.
func TestLeftWatchdogThatCannotBeOpenedAtOnce(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x, d := b.nodes[0], &dog{}
		b.withDog(x.guard, d)
		x.kill()
		b.mu.Lock()
		b.p.lockedEnd()
		delete(b.locks, "disk0")
		b.mu.Unlock()
		d.err, d.disarmed = errors.New("device or resource busy"), 0
		x.options = func(o *Options) { o.Dog = d }
		x.start()
		b.settle(b.ctx, 5*time.Second)
		if saved, err := (store{x}).Load(); err != nil || !saved.Armed {
			b.t.Errorf("the next one is not to know of it: %+v, %v", saved, err)
		}
		x.guard.mu.Lock()
		d.err = nil
		x.guard.mu.Unlock()
		b.settle(b.ctx, time.Second)
		x.guard.mu.Lock()
		if d.disarmed != 1 {
			b.t.Errorf("it was disarmed %d times", d.disarmed)
		}
		x.guard.mu.Unlock()
		if saved, err := (store{x}).Load(); err != nil || saved.Armed {
			b.t.Errorf("noted after that: %+v, %v", saved, err)
		}
	})
	onBench(t, none, func(b *bench) {
		x, d := b.nodes[0], &dog{}
		b.withDog(x.guard, d)
		x.kill()
		d.err, d.disarmed = errors.New("device or resource busy"), 0
		x.options = func(o *Options) { o.Dog = d }
		x.start()
		b.settle(b.ctx, 5*time.Second)
		g := x.guard
		if err := g.Withdraw(b.ctx); err != nil {
			b.t.Error(err)
		}
		x.kill()
		d.err = nil
		if g.Disarm(); d.disarmed != 1 {
			b.t.Errorf("at the end it was disarmed %d times", d.disarmed)
		}
	})
}
