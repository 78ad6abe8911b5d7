package guard

import (
	"strings"
	"testing"
	"time"
)

// A process is stopped also where nothing can be opened any more when the cluster is lost.
func TestStoppedWithoutDescriptors(t *testing.T) {
	onBench(t, none, func(b *bench) {
		b.nodes[0].opensNothing(true)
		b.fall()
		b.stops()
		b.settle(b.ctx, b.timing.Grace+time.Second)
		b.is("after the grace", false, true)
	})
	// It may be stopped twice.
	onBench(t, none, func(b *bench) {
		b.fall()
		b.stops()
		b.change("the network heals", b.lockedHeal)
		b.settle(b.ctx, b.timing.Grace)
		b.is("the cluster is back", true, false)
		b.nodes[0].opensNothing(true)
		b.fall()
		b.stops()
	})
}

// What an earlier guard has stopped, and the next one cannot open, keeps its time: it is killed when that is over, and does
// not go on after it, also when a later guard can open it.
func TestStoppedAndNotOpened(t *testing.T) {
	for name, tc := range map[string]struct {
		without, again time.Duration // for how long there are no descriptors; and until another guard is started, 0 for none
		heals          bool
		running, ended bool
	}{
		"the cluster is not back":                 {2 * time.Second, 0, false, false, true},
		"it is, and its time is over":             {10 * time.Second, 0, true, false, true},
		"it is in time":                           {time.Second, 0, true, true, false},
		"it is, and there is yet another guard":   {10 * time.Second, 3 * time.Second, true, false, true},
		"it is not, and there is yet another one": {2 * time.Second, time.Second, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, none, func(b *bench) {
				x := b.nodes[0]
				b.fall()
				b.stops()
				x.kill()
				x.opensNothing(true)
				if tc.heals {
					b.change("the network heals", b.lockedHeal)
				}
				b.settle(b.ctx, 100*time.Millisecond)
				x.start()
				if tc.again > 0 {
					b.settle(b.ctx, tc.again)
					x.kill()
					x.start()
				}
				b.settle(b.ctx, tc.without-tc.again)
				b.is("while it cannot be opened", false, false)
				if s := x.guard.Status(); len(s.Stopped) != 1 || len(s.NotStopped) != 0 {
					b.t.Errorf("status: %+v", s)
				}
				x.opensNothing(false)
				b.settle(b.ctx, 10*time.Second)
				b.is("with the next guard", tc.running, tc.ended)
			})
		})
	}
}

// While an owner cannot be opened nothing is promised, and the others are told at once.
func TestNoPromiseForWhatCannotBeOpened(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		promise := func() bool { return b.nodes[1].hears(1).Promise }
		x.opensNothing(true)
		b.settle(b.ctx, 2*time.Second)
		if !promise() {
			b.t.Error("what was opened before counts for nothing")
		}
		if x.acquire(b.ctx, "disk1") == nil {
			b.t.Fatal("disk1 is not granted")
		}
		b.settle(b.ctx, 500*time.Millisecond)
		if promise() {
			b.t.Error("node 2 counts on a process being stopped that could not be opened")
		}
		x.opensNothing(false)
		b.settle(b.ctx, 500*time.Millisecond)
		if !promise() {
			b.t.Error("it can be opened again, and node 2 does not know")
		}
	})
}

// What an earlier guard has noted as stopped may run, as when it was killed before the stop, or after it had let it go on. While
// it cannot be opened nothing is promised.
func TestNoPromiseForWhatWasStopped(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		b.fall()
		b.stops()
		x.kill()
		x.opensNothing(true)
		b.change("the network heals", b.lockedHeal)
		b.settle(b.ctx, 100*time.Millisecond)
		x.start()
		b.settle(b.ctx, b.timing.Token+b.timing.Consensus)
		g := b.nodes[1].guard
		heard := func() (ok bool) {
			g.mu.Lock()
			defer g.mu.Unlock()
			_, ok = g.ledger.heard[1]
			return ok
		}
		// The ring may be whole only now, and each node is told of it a moment later.
		for end := b.now() + 2*time.Second; !heard() && b.now() < end; {
			b.settle(b.ctx, 100*time.Millisecond)
		}
		promise := func() bool {
			if !heard() {
				b.t.Error("node 2 has not heard node 1")
			}
			return b.nodes[1].hears(1).Promise
		}
		if promise() || x.guard.Status().Promise {
			b.t.Error("it is promised that a process is stopped that cannot be opened")
		}
		x.opensNothing(false)
		b.settle(b.ctx, time.Second)
		if !promise() {
			b.t.Error("it can be opened, and node 2 does not know")
		}
	})
}

// That the members of the lockspace cannot be read for a moment is no loss of the cluster;
// but nothing is granted meanwhile, and it is when it lasts.
func TestMembersUnknown(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		b.mu.Lock()
		x.noSpace = true
		b.mu.Unlock()
		b.settle(b.ctx, b.timing.Lease()-time.Second)
		b.is("not for long", true, false)
		if err := x.guard.Admit(b.ctx); err == nil || !strings.Contains(err.Error(), "members") {
			b.t.Errorf("granted by whoever does not know who has vanished: %v", err)
		}
		b.settle(b.ctx, time.Second)
		b.is("for longer than a lease", false, false)
		b.mu.Lock()
		x.noSpace = false
		b.mu.Unlock()
		b.settle(b.ctx, 5*time.Second)
		b.is("known again", true, false)
		if err := x.guard.Admit(b.ctx); err != nil {
			b.t.Errorf("known again: %v", err)
		}
	})
}
