package guard

import (
	"testing"
	"time"
)

// due reports whether a start without a guard would still have to take back what the guards of a node before have promised.
func (x *node) due(t *testing.T) bool {
	t.Helper()
	_, due, err := LeftArmed(store{x}, "")
	if err != nil {
		t.Error(err)
	}
	return due
}

// What was taken back once is not taken back again by each start after that: the guard that does it stops what runs here until it has
// heard the others, and kills it where corosync does not run, on a host whose vmlockd is to have no guard.
func TestPartedOnce(t *testing.T) {
	const path = "/dev/watchdog"
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		x.options = func(o *Options) { o.Left = map[string]Dog{path: &endlessDog{}} }
		x.start()
		b.settle(b.ctx, time.Second)
		x.kill()
		if !x.due(t) {
			t.Error("a guard that was killed has left a watchdog armed, and nothing is to be taken back")
		}
		x.start()
		if _, err := b.withdraw(); err != nil {
			t.Fatal(err)
		}
		if x.due(t) {
			t.Error("a watchdog that cannot be disarmed: what all others have heard is to be taken back once more")
		}
		if paths, _, err := LeftArmed(store{x}, ""); err != nil || len(paths) != 1 {
			t.Errorf("to be fed: %v, %v", paths, err)
		}
		// A further guard promises anew.
		x.start()
		b.settle(b.ctx, 5*time.Second)
		x.kill()
		if !x.due(t) {
			t.Error("a further guard has promised something and was killed, and nothing is to be taken back")
		}
		b.is("what has locks", true, false)
	})
	// A process stays stopped for an operator.
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		x.options = func(o *Options) { o.Wish = func(Owner) Wish { return WishFreeze } }
		x.start()
		b.settle(b.ctx, 5*time.Second)
		b.fall()
		b.stops()
		if _, err := b.withdraw(); err != nil {
			t.Fatal(err)
		}
		if x.due(t) {
			t.Error("a process that never goes on: nothing is left to be taken back")
		}
		if saved, err := (store{x}).Load(); err != nil || len(saved.Frozen) != 1 {
			t.Errorf("noted: %+v, %v", saved, err)
		}
		b.is("what was stopped", false, false)
	})
}

// Where it is known late that dlm_controld fences, a guard that withdraws does not leave processes stopped: those that it has stopped
// before, or the one before it, go on first.
func TestPartedWithoutStopped(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		x.kill()
		b.mu.Lock()
		b.timing.Grace = 20 * time.Second // so that it is not killed before its locks are proved
		b.timing.HoldOff = b.timing.LeastHoldOff()
		b.mu.Unlock()
		x.start()
		b.settle(b.ctx, 5*time.Second)
		b.fall()
		b.stops()
		x.kill()
		b.change("the network heals", b.lockedHeal)
		b.mu.Lock()
		x.fences = true
		b.mu.Unlock()
		x.start()
		took, err := b.withdraw()
		if err != nil || took > b.timing.FenceBy()+killTime {
			t.Errorf("after %v: %v", took, err)
		}
		b.is("what was stopped", true, false)
	})
}
