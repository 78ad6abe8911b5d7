package guard

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// lockedWell reports whether nothing is wrong with any node.
func (w *world) lockedWell() bool {
	return w.whole && !slices.ContainsFunc(w.nodes, func(x *node) bool {
		return !x.on || x.hung || !x.inSpace || x.dropped || x.merge || !x.running || x.controldGone || x.controldHung || !x.ring.Quorate || x.restarting ||
			len(x.ring.Members) != len(w.nodes) || x.guard == nil || max(x.pause, x.stall) > w.now()
	})
}

// stop ends the guard as 'systemctl stop' does. What owns locks goes on.
func (x *node) stop() {
	x.w.mu.Lock()
	x.w.lockedSay("vmlockd of node %d is stopped", x.id)
	g := x.guard
	x.w.mu.Unlock()
	err := g.Withdraw(context.Background())
	x.w.mu.Lock()
	if err != nil && x.w.worst == "" {
		x.w.worst = fmt.Sprintf("the guard of node %d is stopped and its promise stays: %v", x.id, err)
	}
	x.w.mu.Unlock()
	x.kill()
}

// stops stops the guards of two nodes, one of which is lost then and has nobody who
// stops its processes. One guard was there all the time, and knows that.
func (w *world) stops(ctx context.Context) {
	w.mu.Lock()
	well := len(w.nodes) > 2 && w.lockedWell()
	order := w.rng.Perm(len(w.nodes))
	cut, again := w.rng.IntN(4) > 0, w.rng.IntN(2) == 0
	early := cut && w.rng.IntN(3) == 0 // x has not noticed that it is cut off
	moment := w.lockedUpTo(w.timing.Lease())
	waits := make([]time.Duration, 4)
	for i, most := range []time.Duration{10 * time.Second, 5 * time.Second, 20 * time.Second, 10 * time.Second} {
		waits[i] = w.lockedUpTo(most)
	}
	w.mu.Unlock()
	if !well {
		return
	}
	x, y := w.nodes[order[0]], w.nodes[order[1]]
	w.settle(ctx, time.Second+waits[0])
	y.stop()
	w.settle(ctx, waits[1])
	if again { // the guard of y is back, and nothing was heard of x yet
		y.start()
		y.kill()
	}
	if early {
		w.change(fmt.Sprintf("node %d is cut off", x.id), func() { w.parts[x.id-1] = int(x.id) })
		w.settle(ctx, moment)
	}
	x.stop()
	w.settle(ctx, 100*time.Millisecond+waits[2])
	if cut && !early {
		w.change(fmt.Sprintf("node %d is cut off", x.id), func() { w.parts[x.id-1] = int(x.id) })
		w.settle(ctx, waits[3])
	}
	y.start()
	w.settle(ctx, 2*w.timing.HoldOff)
	if cut {
		x.power()
		w.change("the network heals", w.lockedHeal)
		w.settle(ctx, 5*time.Second)
		x.boot()
	} else {
		x.start()
	}
	w.settle(ctx, 10*time.Second)
}
