package guard

import (
	"context"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// simDog is a watchdog of a node, which cuts its power when it was armed and is not fed. It is guarded by world.mu.
type simDog struct {
	x     *node
	armed bool
	fed   time.Duration // when it was last
	reset bool
}

func (d *simDog) Feed() error {
	w := d.x.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !d.x.on {
		return nil
	}
	now := w.now()
	d.armed, d.fed = true, now
	time.AfterFunc(w.timing.Watchdog, func() {
		w.mu.Lock()
		over := d.armed && d.fed == now && d.x.on
		if over {
			d.armed, d.reset = false, true
			w.lockedSay("the watchdog of node %d resets it", d.x.id)
		}
		w.mu.Unlock()
		if over {
			d.x.power()
		}
	})
	return nil
}

func (d *simDog) Disarm() error {
	d.x.w.mu.Lock()
	defer d.x.w.mu.Unlock()
	d.x.w.lockedSay("the watchdog of node %d is disarmed", d.x.id)
	d.armed = false
	return nil
}

func (d *simDog) runs() (armed, reset bool) {
	d.x.w.mu.Lock()
	defer d.x.w.mu.Unlock()
	return d.armed, d.reset
}

// vmlockd is killed while its watchdog is armed, and started again with a configuration that has no watchdog any more, or no guard. The
// others count on that watchdog until they have heard of it: until then it stays armed, and is fed only as long as the promise is
// kept. On a host that is well nothing is reset or stopped.
func TestWatchdogLeftByAnother(t *testing.T) {
	const path = "/dev/watchdog"
	for name, next := range map[string]struct {
		options func(*Options)
		off     bool
	}{
		"without a watchdog":                                     {func(*Options) {}, false},
		"and the process is ignored":                             {func(o *Options) { o.Wish = func(Owner) Wish { return WishIgnore } }, false},
		"mode fencing, where nobody fences":                      {func(o *Options) { o.Mode = Fencing }, false},
		"mode fencing, where nobody fences, and stopped at once": {func(o *Options) { o.Mode = Fencing }, true},
		"mode off":                             {func(*Options) {}, true},
		"mode off, and the process is ignored": {func(o *Options) { o.Wish = func(Owner) Wish { return WishIgnore } }, true},
	} {
		t.Run(name, func(t *testing.T) {
			granted := 0
			// In few seeds there may be none that shows something, so there are more until there is one.
			for seed, few := uint64(0), uint64(fewSeeds(t, 60)); seed < few || granted == 0 && seed < 8*few; seed++ {
				fakeclock.Test(t, func(t *testing.T) {
					w := newWorld(seed, 3, none)
					w.timing.Watchdog = 10 * time.Second
					w.timing.HoldOff = w.timing.LeastHoldOff()
					x := w.nodes[0]
					d := &simDog{x: x}
					x.options = func(o *Options) { o.Dog = d }
					for _, y := range w.nodes {
						y.start()
					}
					w.settle(t.Context(), 5*time.Second)
					p := x.acquire(t.Context(), "disk0")
					if p == nil {
						t.Fatal("nothing is granted in a whole cluster")
					}
					w.settle(t.Context(), 3*time.Second)
					if armed, _ := d.runs(); !armed {
						t.Fatal("the watchdog is not armed")
					}
					w.mu.Lock()
					cut, until, away := seed%4 > 0, w.lockedUpTo(8*time.Second), w.lockedUpTo(2*time.Second)
					w.mu.Unlock()
					if cut {
						w.again.Go(func() {
							time.Sleep(until) // by the bubble's clock: until the fault
							w.change("node 1 is cut off", func() { w.parts[0] = 1 })
						})
					}
					time.Sleep(2 * time.Second) // by the bubble's clock: it may be cut off before
					w.mu.Lock()
					w.lockedSay("vmlockd of node 1 is killed")
					w.mu.Unlock()
					x.kill()
					time.Sleep(away) // by the bubble's clock: the time that a service manager takes
					x.options = func(o *Options) {
						o.Timing.Watchdog = 0
						o.Left = map[string]Dog{path: d}
						next.options(o)
					}
					if w.isOn(x) {
						x.start()
						if g := x.guard; next.off {
							ctx, cancel := context.WithTimeout(t.Context(), w.timing.HoldOff) // the watchdog may end it
							err := g.Withdraw(ctx)
							cancel()
							if w.isOn(x) {
								x.kill()
							}
							if err == nil {
								g.Disarm()
							}
						}
					}
					for end := w.now() + 2*w.timing.HoldOff; w.now() < end; w.settle(t.Context(), 100*time.Millisecond) {
						if q := w.nodes[1].acquire(t.Context(), "disk0"); q != nil {
							granted++
							break
						}
					}
					w.settle(t.Context(), 10*time.Second)
					armed, reset := d.runs()
					w.mu.Lock()
					worst, running := w.worst, p.running
					w.mu.Unlock()
					if worst != "" {
						t.Errorf("seed %d: %s", seed, worst)
					}
					if !cut && (armed || reset || !running) {
						t.Errorf("seed %d: nothing was wrong; armed: %v, reset: %v, the process runs: %v", seed, armed, reset, running)
					}
					w.again.Wait()
					for _, y := range w.nodes {
						if w.isOn(y) {
							y.kill()
						}
					}
					if t.Failed() {
						report(t, w)
					}
				})
				if t.Failed() {
					return
				}
			}
			if granted == 0 {
				t.Error("nothing was granted after a hold-off: it shows nothing")
			}
		})
	}
}
