package guard

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// bench is a world of three nodes with a process on node 1.
type bench struct {
	*world
	t   *testing.T
	ctx context.Context
	p   *proc
}

// onBench runs f when the process runs and all guards know all.
func onBench(t *testing.T, b breach, f func(*bench)) {
	t.Helper()
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(1, 3, b)
		for _, x := range w.nodes {
			x.start()
		}
		be := &bench{world: w, t: t, ctx: t.Context()}
		t.Cleanup(func() {
			if t.Failed() {
				report(t, w)
			}
			for _, x := range w.nodes {
				if x.guard != nil {
					x.kill()
				}
			}
		})
		be.settle(be.ctx, 5*time.Second)
		if be.p = w.nodes[0].acquire(be.ctx, "disk0"); be.p == nil {
			t.Fatalf("nothing is granted in a whole cluster: %v", w.nodes[0].guard.Admit(be.ctx))
		}
		be.settle(be.ctx, time.Second)
		f(be)
	})
}

func (b *bench) state() (running, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.p.running, b.p.ended
}

func (b *bench) is(what string, running, ended bool) {
	b.t.Helper()
	if r, e := b.state(); r != running || e != ended {
		b.t.Errorf("%s: it runs: %v, it has ended: %v", what, r, e)
	}
}

// fall takes the network apart and returns when node 1 has noticed.
func (b *bench) fall() {
	b.change("the network falls apart", func() { copy(b.parts, []int{1, 2, 3}) })
	for b.ctx.Err() == nil && b.now() < time.Minute {
		b.mu.Lock()
		quorate := b.nodes[0].ring.Quorate
		b.mu.Unlock()
		if !quorate {
			return
		}
		b.settle(b.ctx, 100*time.Millisecond)
	}
	b.t.Error("node 1 has quorum for ever")
}

// stops returns when the process is stopped, which it is within a second.
func (b *bench) stops() {
	b.t.Helper()
	for end := b.now() + time.Second; b.now() < end; b.settle(b.ctx, 50*time.Millisecond) {
		if running, _ := b.state(); !running {
			break
		}
	}
	b.is("a second after quorum was lost", false, false)
}

func TestStoppedWithinASecond(t *testing.T) {
	onBench(t, none, func(b *bench) {
		b.fall()
		b.settle(b.ctx, time.Second)
		b.is("a second after quorum was lost", false, false)
		b.settle(b.ctx, b.timing.Grace)
		b.is("after the grace", false, true)
	})
}

// The guard is killed while a process is stopped.
func TestStoppedOutlivesTheGuard(t *testing.T) {
	for name, tc := range map[string]struct {
		heals          bool
		away           time.Duration
		running, ended bool
	}{
		"its time is over when the next one starts":      {true, 20 * time.Second, false, true},
		"the cluster is back in time":                    {true, 100 * time.Millisecond, true, false},
		"the cluster is not back":                        {false, 100 * time.Millisecond, false, true},
		"the cluster is back, and the next guard is not": {true, 7 * time.Second, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, none, func(b *bench) {
				x := b.nodes[0]
				b.fall()
				b.stops()
				x.kill()
				if tc.heals {
					b.change("the network heals", b.lockedHeal)
				}
				b.settle(b.ctx, tc.away)
				b.is("without a guard", false, false)
				x.start()
				b.settle(b.ctx, 12*time.Second)
				b.is("with the next guard", tc.running, tc.ended)
			})
		})
	}
}

// A guard that was not there for longer than a lease, as after 'systemctl stop' and a
// long look at the logs, stops what owns locks, and lets it go on when it knows that the
// cluster is well.
func TestLongWithoutAGuard(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		b.settle(b.ctx, 2*b.timing.FenceBy())
		b.is("without a guard", true, false)
		x.start()
		b.settle(b.ctx, 10*time.Second)
		b.is("with the next guard", true, false)
		if s := x.guard.Status(); s.Lost != "" || !s.Promise {
			b.t.Errorf("the guard: %+v", s)
		}
	})
	// The same while the host is cut off: it never goes on.
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		b.settle(b.ctx, 2*b.timing.FenceBy())
		b.is("without a guard", true, false)
		x.start()
		b.settle(b.ctx, 2*time.Second)
		b.is("with the next guard", false, false)
		b.settle(b.ctx, b.timing.FenceBy())
		b.is("when its time is over", false, true)
	})
}

// Corosync hangs, and the guard is killed and started again: the new one is told
// nothing by corosync, and knows what the one before has noted.
func TestCorosyncHangsAndTheGuardIsKilled(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		b.change("corosync of node 1 hangs", func() { b.parts[0], x.hung = 1, true })
		b.settle(b.ctx, 2*time.Second)
		x.kill()
		b.settle(b.ctx, 500*time.Millisecond)
		x.start()
		b.is("just started", true, false)
		b.settle(b.ctx, b.timing.Lease()+time.Second)
		b.is("after the lease", false, false)
		b.settle(b.ctx, b.timing.Grace+time.Second)
		b.is("after the grace", false, true)
	})
}

// A vmlockd that is stopped disarms its watchdog, and so the others must not count on
// it any more, whatever it was that they counted on.
func TestWithdraw(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.guard.mu.Lock()
		x.guard.o.Dog = &dog{}
		x.guard.mu.Unlock()
		b.settle(b.ctx, 2*time.Second)
		word := func() word {
			g := b.nodes[1].guard
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.ledger.words[1]
		}
		if w := word(); !w.Promise || !w.Watchdog {
			b.t.Fatalf("node 2 has heard %+v", w)
		}
		begun := b.now()
		if err := x.guard.Withdraw(b.ctx); err != nil {
			b.t.Error(err)
		}
		if took := b.now() - begun; took > 2*beat {
			b.t.Errorf("it took %v to be heard", took)
		}
		x.kill()
		b.settle(b.ctx, 2*time.Second)
		if w := word(); w.Promise || w.Watchdog {
			b.t.Errorf("node 2 counts on a guard that has ended: %+v", w)
		}
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		b.settle(b.ctx, b.timing.FenceBy()+2*b.timing.HoldOff)
		b.is("nobody guards it", true, false)
		if err := b.nodes[1].guard.Admit(b.ctx); err == nil || !strings.Contains(err.Error(), "no promise") {
			b.t.Errorf("node 2: %v", err)
		}
	})
}

// Where dlm_controld fences nobody is stopped, also when that is known late; and who was
// stopped before goes on.
func TestStoppedBeforeFencingIsKnown(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		b.change("fencing is switched on", func() { x.fences = true })
		b.nodes[2].power() // so that the ring is another one
		b.settle(b.ctx, 2*b.timing.FenceBy())
		x.start() // the one before has noted that nobody fences
		b.settle(b.ctx, 10*time.Second)
		b.is("where dlm_controld fences", true, false)
		if s := x.guard.Status(); s.Mode != Fencing {
			b.t.Errorf("the mode is %v", s.Mode)
		}
		if err := x.guard.ConfirmDead(2); err == nil || !strings.Contains(err.Error(), "fence_ack") {
			b.t.Errorf("confirmed where dlm_controld fences: %v", err)
		}
		x.kill()
		b.settle(b.ctx, 2*b.timing.FenceBy())
		x.start()
		b.settle(b.ctx, 100*time.Millisecond)
		b.is("that is known from the notes", true, false)
	})
}

// Without a proof by the kernel a process does not go on, although the cluster is back.
func TestNoProofNoGo(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		b.fall()
		b.stops()
		x.guard.mu.Lock()
		x.guard.o.Prove = func(context.Context, Owner) error { return errors.New("the kernel does not know it") }
		x.guard.mu.Unlock()
		b.change("the network heals", b.lockedHeal)
		b.settle(b.ctx, 12*time.Second)
		b.is("the cluster is back, the proof is not", false, true)
	})
}

func TestWishes(t *testing.T) {
	for name, tc := range map[string]struct {
		wish             Wish
		running, ended   bool
		promise, granted bool
	}{
		"kill":   {WishKill, false, true, true, true},
		"freeze": {WishFreeze, false, false, true, true},
		"ignore": {WishIgnore, true, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, none, func(b *bench) {
				g := b.nodes[0].guard
				g.mu.Lock()
				g.o.Wish = func(Owner) Wish { return tc.wish }
				g.mu.Unlock()
				b.settle(b.ctx, 2*time.Second)
				if got := g.Status().Promise; got != tc.promise {
					b.t.Errorf("it promises: %v", got)
				}
				b.change("node 1 is cut off", func() { b.parts[0] = 1 })
				b.settle(b.ctx, b.timing.FenceBy()+5*time.Second)
				b.is("after its time", tc.running, tc.ended)
				// An operator sees who goes on, and who is stopped and stays so.
				s := g.Status()
				if s.Lost == "" || len(s.NotStopped) > 0 != tc.running || len(s.Stopped) > 0 != (tc.wish == WishFreeze) {
					b.t.Errorf("status: %+v", s)
				}
				for _, f := range s.Stopped {
					if !f.Stays || f.Deadline > g.o.Clock() {
						b.t.Errorf("stopped: %+v", f)
					}
				}
				for _, v := range b.nodes[1].guard.Status().Vanished {
					if v.Node != 1 || v.Promised != tc.promise || v.Forever == tc.promise {
						b.t.Errorf("vanished: %+v", v)
					}
				}
				b.settle(b.ctx, b.timing.HoldOff)
				// Who ignores has told the others, and so they never take its disks.
				err := b.nodes[1].guard.Admit(b.ctx)
				if (err == nil) != tc.granted {
					b.t.Errorf("node 2, long after: %v", err)
				}
				if !tc.granted && !strings.Contains(err.Error(), "confirm-dead 1") {
					b.t.Errorf("what can be done is not said: %v", err)
				}
				if err := b.nodes[1].guard.ConfirmDead(1); err != nil {
					b.t.Error(err)
				}
				b.settle(b.ctx, time.Second)
				for _, x := range b.nodes[1:] {
					if err := x.guard.Admit(b.ctx); err != nil {
						b.t.Errorf("node %d, after an operator has confirmed it: %v", x.id, err)
					}
				}
			})
		})
	}
}

func TestRefusalNamesNodeAndSeconds(t *testing.T) {
	onBench(t, none, func(b *bench) {
		b.nodes[2].power()
		b.settle(b.ctx, 5*time.Second)
		err := b.nodes[1].guard.Admit(b.ctx)
		var r *Refusal
		if !errors.As(err, &r) || r.Cause() != "hold_off" || r.Node != 3 || r.Left <= 0 || r.Left > b.timing.HoldOff {
			b.t.Fatalf("%v", err)
		}
		if text := err.Error(); !strings.Contains(text, "node 3") || !strings.Contains(text, "seconds more") {
			b.t.Errorf("%q", text)
		}
		for node, word := range map[uint32]string{1: "node 1 is a member", 2: "node 2 is this host"} {
			if err := b.nodes[1].guard.ConfirmDead(node); !errors.Is(err, ErrMember) || !strings.HasPrefix(err.Error(), word) {
				b.t.Errorf("a member was confirmed dead: %v", err)
			}
		}
		b.settle(b.ctx, r.Left+time.Second)
		if err := b.nodes[1].guard.Admit(b.ctx); err != nil {
			b.t.Errorf("after that: %v", err)
		}
		b.is("and node 1 went on", true, false)
	})
}

// A guard that leaves in good order makes nobody wait.
func TestLeave(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[2]
		if err := x.guard.Settle(b.ctx); err != nil {
			b.t.Fatal(err)
		}
		if err := x.guard.Admit(b.ctx); err == nil {
			b.t.Error("something is granted by a guard that is about to end")
		}
		x.guard.Leave()
		x.kill()
		b.settle(b.ctx, time.Second)
		b.change("node 3 is shut down", func() { x.on, x.inSpace, x.running = false, false, false })
		b.settle(b.ctx, 5*time.Second)
		if err := b.nodes[1].guard.Admit(b.ctx); err != nil {
			b.t.Errorf("after a node has left: %v", err)
		}
	})
}

// dog is a watchdog that notes what is done with it.
type dog struct {
	fed, disarmed int
	err           error
}

func (d *dog) Feed() error {
	if d.err == nil {
		d.fed++
	}
	return d.err
}

func (d *dog) Disarm() error {
	d.disarmed++
	return nil
}

func TestWatchdog(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x, d := b.nodes[0], &dog{}
		use := func(f func()) {
			x.guard.mu.Lock()
			defer x.guard.mu.Unlock()
			f()
		}
		fed := func(during time.Duration) (n int) {
			use(func() { n = d.fed })
			b.settle(b.ctx, during)
			use(func() { n = d.fed - n })
			return n
		}
		use(func() { x.guard.o.Dog = d })
		if fed(time.Second) == 0 {
			b.t.Error("not fed while a process has a lock")
		}
		b.fall()
		if fed(time.Second) == 0 {
			b.t.Error("not fed while all is stopped as promised")
		}
		b.settle(b.ctx, b.timing.Grace+2*time.Second)
		b.is("after the grace", false, true)
		if n := fed(time.Second); n != 0 || d.disarmed != 1 {
			b.t.Errorf("with nothing left it was fed %d times, and disarmed %d times", n, d.disarmed)
		}
	})
	// What cannot be stopped is what it is for.
	onBench(t, falseWord, func(b *bench) {
		x, d := b.nodes[0], &dog{}
		x.guard.mu.Lock()
		x.guard.o.Dog = d
		x.guard.mu.Unlock()
		b.fall()
		b.settle(b.ctx, b.timing.Lease()+2*time.Second)
		x.guard.mu.Lock()
		before := d.fed
		x.guard.mu.Unlock()
		b.settle(b.ctx, 5*time.Second)
		x.guard.mu.Lock()
		defer x.guard.mu.Unlock()
		if d.fed != before {
			b.t.Error("fed although a process runs that was to be stopped")
		}
	})
}

// A process that is stopped, of which the notes say nothing as they are damaged, is killed.
func TestUnreadableNotes(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		b.fall()
		b.stops()
		x.kill()
		b.mu.Lock()
		x.saved = []byte("{")
		b.mu.Unlock()
		b.change("the network heals", b.lockedHeal)
		x.start()
		b.settle(b.ctx, 3*time.Second)
		b.is("nobody knows until when it may go on", false, true)
	})
}

// One that only waits for a disk when that is looked at was stopped by nobody, and goes on.
func TestUnreadableNotesAndAProcessInTheKernel(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		b.mu.Lock()
		x.saved = []byte("{")
		b.p.running, b.p.inKernel = false, true
		b.mu.Unlock()
		x.start()
		b.settle(b.ctx, time.Second)
		b.mu.Lock()
		b.p.running, b.p.inKernel = true, false
		b.mu.Unlock()
		b.settle(b.ctx, 3*time.Second)
		b.is("nobody had stopped it", true, false)
	})
}
