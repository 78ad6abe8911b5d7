package guard

import (
	"testing"
	"time"
)

// Corosync of a node hangs until the others have dropped it, and meets them again in a ring of
// which the group there is told before corosync's quorum tells its guard: what is delivered in
// between is no proof of the ring before.
func TestHungUntilTheNextRing(t *testing.T) {
	for seed := range uint64(fewSeeds(t, 200)) {
		wellFor(t, seed, 3, func(t *testing.T, w *world) {
			x := w.nodes[2]
			w.mu.Lock()
			hangs := 2*w.timing.Lease() + w.lockedUpTo(2*time.Second)
			w.mu.Unlock()
			w.change("corosync of node 3 hangs", func() { w.parts[2], x.hung = 3, true })
			time.Sleep(hangs) // by the bubble's clock: the fault itself
			// So that nobody who has dropped it is in a ring with quorum when they meet.
			w.change("the others fall apart", func() { copy(w.parts, []int{0, 1, 2}) })
			time.Sleep(w.timing.Token + w.timing.Consensus + time.Second) // by the bubble's clock: until they have their rings
			w.change("the network heals", w.lockedHeal)
			for end := w.now() + 2*time.Second; w.now() < end; time.Sleep(50 * time.Millisecond) { // by the bubble's clock: until it is asked again
				x.guard.mu.Lock()
				r := x.guard.lockedRefusal()
				x.guard.mu.Unlock()
				if r == nil {
					t.Errorf("seed %d: node 3, which was dropped, grants", seed)
					return
				}
			}
		})
	}
}

// The guard of a node hangs, and corosync there does not. Some time later the node is lost: nobody
// stops what it runs, so no time is enough.
func TestHungGuardIsNotCountedOn(t *testing.T) {
	for seed := range uint64(fewSeeds(t, 40)) {
		wellFor(t, seed, 3+int(seed%2), func(t *testing.T, w *world) {
			x := w.nodes[2]
			w.mu.Lock()
			hung := w.timing.Token + 2*silence + 2*beat + w.lockedUpTo(time.Minute) // it speaks for one silence more
			x.pause = w.now() + hung + 3*w.timing.HoldOff
			w.lockedSay("the guard of node 3 hangs")
			w.mu.Unlock()
			time.Sleep(hung) // by the bubble's clock: the fault itself
			w.change("node 3 is cut off", func() { w.parts[2] = 3 })
			w.settle(t.Context(), 2*w.timing.HoldOff)
			for _, y := range w.nodes[:2] {
				y.guard.mu.Lock()
				r := y.guard.lockedRefusal()
				y.guard.mu.Unlock()
				if r == nil || r.Node != 3 || r.Left != 0 {
					t.Errorf("seed %d: node %d would be told %+v", seed, y.id, r)
				}
			}
		})
	}
}
