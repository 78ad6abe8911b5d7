package guard

import (
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

func (x *node) isRestarting() bool {
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	return x.restarting
}

// restart restarts the guard in place, and lets others do something else meanwhile: it is
// away for that long. Without power there is none.
func (x *node) restart(away time.Duration) {
	w := x.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !x.on || x.restarting {
		return
	}
	w.lockedSay("vmlockd of node %d is restarted in place, for %v", x.id, away.Round(time.Millisecond))
	x.restarting = true
	w.again.Go(func() {
		x.kill()
		time.Sleep(away) // by the bubble's clock: the restart itself
		x.start()
		w.mu.Lock()
		defer w.mu.Unlock()
		x.restarting = false
		w.lockedSay("vmlockd of node %d is back", x.id)
	})
}

// restarts restarts some guards in place at about the same time, now and then for longer than
// a lease.
func (w *world) restarts() {
	w.mu.Lock()
	most := 4 * time.Second
	if w.rng.IntN(3) == 0 {
		most = 3 * w.timing.Lease() / 2
	}
	aways := make([]time.Duration, len(w.nodes))
	for i := range aways {
		if w.rng.IntN(3) > 0 {
			aways[i] = 50*time.Millisecond + w.lockedUpTo(most)
		}
	}
	w.mu.Unlock()
	for i, x := range w.nodes {
		if aways[i] > 0 {
			x.restart(aways[i])
		}
	}
}

// fewSeeds is seeds, and less with the race detector, which takes ten times as long.
func fewSeeds(t *testing.T, usual int) int {
	if testenv.WithRace {
		usual /= 4
	}
	return seeds(t, usual)
}

// soonAfterRestart is how long after a restart in place something is granted at last, on a
// host that is well. Two beats, and a second in which dlm_controld is asked.
const soonAfterRestart = 3 * time.Second

// wellFor plays a cluster in which nothing is wrong, and calls f when all guards know all.
func wellFor(t *testing.T, seed uint64, n int, f func(t *testing.T, w *world)) {
	t.Helper()
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(seed, n, none)
		for _, x := range w.nodes {
			x.start()
		}
		w.settle(t.Context(), 5*time.Second)
		f(t, w)
		w.again.Wait()
		for _, x := range w.nodes {
			x.kill()
		}
		if t.Failed() {
			report(t, w)
		}
	})
}

// grants requires that a guard which was just started admits something soon.
func (x *node) grants(t *testing.T) {
	t.Helper()
	begun := x.w.now()
	if err := x.guard.Admit(t.Context()); err != nil {
		t.Errorf("node %d, after %v: %v", x.id, x.w.now()-begun, err)
	} else if took := x.w.now() - begun; took > soonAfterRestart {
		t.Errorf("node %d grants after %v", x.id, took)
	}
}

// All guards are restarted in place over and over, each for longer than a moment and at
// other times than the rest, as when a cluster is upgraded during a migration. Each grants soon after it is
// back, although the others may be away just then.
func TestGrantsBetweenRestartsInPlace(t *testing.T) {
	for seed := range uint64(fewSeeds(t, 12)) {
		wellFor(t, seed, 2+int(seed%4), func(t *testing.T, w *world) {
			for range 4 {
				for _, x := range w.nodes {
					w.mu.Lock()
					later, away := w.lockedUpTo(4*time.Second), absence+w.lockedUpTo(w.timing.Lease()-2*absence)
					w.mu.Unlock()
					w.again.Go(func() {
						time.Sleep(later) // by the bubble's clock: another time for each
						x.kill()
						time.Sleep(away) // by the bubble's clock: the restart itself
						x.start()
						x.grants(t)
					})
				}
				w.again.Wait()
			}
		})
	}
}

// With a host that is off all the same goes. Where that one might have got quorum meanwhile the others
// have to be heard again, of whom one was there all the time: a request waits for them.
func TestGrantsAfterRestartsInPlaceWithoutOne(t *testing.T) {
	for seed := range uint64(fewSeeds(t, 12)) {
		static := seed%2 == 0
		wellFor(t, seed, 4+int(seed%2), func(t *testing.T, w *world) {
			w.nodes[0].power()
			w.static = static
			w.settle(t.Context(), totemEvery+2*w.timing.HoldOff)
			up := w.nodes[1:]
			if !static {
				up = w.nodes[2:]
			}
			for range 3 {
				for _, x := range up {
					x.kill()
				}
				w.mu.Lock()
				away := absence + w.lockedUpTo(w.timing.Lease()-2*absence)
				w.mu.Unlock()
				time.Sleep(away) // by the bubble's clock: the restart itself
				for _, x := range up {
					x.start()
				}
				for _, x := range up {
					w.again.Go(func() { x.grants(t) })
				}
				w.again.Wait()
			}
			w.nodes[0].boot()
		})
	}
}

// All guards are restarted in place, and a node with a process loses the lockspace meanwhile, in the ring
// that all have noted. Node 3 may be back and not have noticed, and says that all is well.
func TestLostBetweenRestartsInPlace(t *testing.T) {
	granted := 0
	for seed := range uint64(fewSeeds(t, 40)) {
		wellFor(t, seed, 3, func(t *testing.T, w *world) {
			x, y := w.nodes[2], w.nodes[1]
			x.acquire(t.Context(), "disk0")
			w.mu.Lock()
			wait := w.lockedUpTo(4 * time.Second)
			var aways []time.Duration
			for range w.nodes {
				aways = append(aways, 2*time.Second+w.lockedUpTo(2*time.Second))
			}
			w.mu.Unlock()
			for i, z := range w.nodes {
				z.restart(aways[i])
			}
			time.Sleep(wait) // by the bubble's clock: until the fault
			w.mu.Lock()
			w.lockedEndControld(x)
			w.mu.Unlock()
			for end := w.now() + 3*w.timing.HoldOff/2; w.now() < end; time.Sleep(100 * time.Millisecond) { // by the bubble's clock: until it asks again
				if !y.isRestarting() && y.acquire(t.Context(), "disk0") != nil {
					granted++
					break
				}
			}
			if w.worst != "" {
				t.Errorf("seed %d: %s", seed, w.worst)
			}
		})
	}
	if granted == 0 {
		t.Error("nothing was granted after a hold-off")
	}
}
