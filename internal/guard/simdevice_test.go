package guard

import (
	"context"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// simDevice is for how long two parts may count the vote of the quorum device. It is longer than a lease.
const simDevice = 20 * time.Second

// withDevice adds a quorum device to a world in which nothing has happened yet.
func (w *world) withDevice() {
	w.device, w.static = true, false
	if w.breach != untoldVote {
		w.timing.Device = simDevice
	}
	w.timing.HoldOff = w.timing.LeastHoldOff()
}

// lockedParts counts the nodes of each part.
func (w *world) lockedParts() map[int]int {
	count := map[int]int{}
	for _, x := range w.nodes {
		if x.on {
			count[w.parts[x.id-1]]++
		}
	}
	return count
}

// lockedVote has the device choose a part after a change: the larger one, and of two that are as large most often the one that it had
// chosen before. Parts of less than half of the nodes get nothing (qnetd-algo-ffsplit.c).
func (w *world) lockedVote() {
	if !w.device {
		return
	}
	count := w.lockedParts()
	before, best := w.vote, -1
	for _, x := range w.nodes { // in an order that a seed decides
		part := w.parts[x.id-1]
		switch {
		case !x.on || 2*count[part] < len(w.nodes) || part == best:
		case best == -1 || count[part] > count[best] || part == before && w.rng.IntN(3) > 0:
			best = part
		}
	}
	w.vote = best
}

// lockedMoveVote has the device give its vote to the other one of two halves, in the rings that they have. Nobody tells those who had
// it: they find out within the time that they are known to need, from moment until on.
func (w *world) lockedMoveVote(until time.Duration) (lost time.Duration) {
	to := -1
	for _, x := range w.nodes {
		if part := w.parts[x.id-1]; x.on && part != w.vote && 2*w.lockedParts()[part] == len(w.nodes) && x.deafAt == 0 && !x.hung {
			to = part
		}
	}
	if !w.device || to == -1 || !w.whole {
		return 0
	}
	from := w.vote
	w.vote = to
	w.moved++
	lag := simDevice
	if w.breach == lateVote {
		lag *= 3
	}
	lost = max(until-w.now(), 0) + lag - w.lockedUpTo(lag/40)
	var gains corosync.Ring
	for _, x := range w.nodes {
		switch {
		case !x.on:
		case w.parts[x.id-1] == to:
			x.ring.Quorate = true
			gains = x.ring
		case w.parts[x.id-1] == from:
			ring := x.ring.ID
			time.AfterFunc(lost, func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				if x.ring.ID == ring && !x.hung && w.vote != from {
					w.lockedSay("node %d has lost the vote", x.id)
					x.ring.Quorate, x.running = false, false
				}
			})
		}
	}
	w.lockedSay("the vote moves to %v, and the others lose it after %v", gains.Members, lost)
	form := w.forms
	// The second time is for what the others have been granted meanwhile, of which the DLM of this part knows nothing.
	for _, after := range []time.Duration{250*time.Millisecond + w.lockedUpTo(time.Second), lost + time.Millisecond} {
		time.AfterFunc(after, func() { w.recover(form, gains) })
	}
	return lost
}

// A part that has had the vote of the device may count it for a while after another one has got it, and its corosync may stand still
// meanwhile and before. Nobody writes then when the other part does.
func TestVoteMoves(t *testing.T) {
	granted := 0
	for seed := range uint64(fewSeeds(t, 200)) {
		fakeclock.Test(t, func(t *testing.T) {
			w := moveVote(t.Context(), seed, none)
			if w.worst != "" {
				report(t, w)
				t.Fatalf("seed %d: %s", seed, w.worst)
			}
			granted += w.grant - 1
		})
	}
	if granted == 0 {
		t.Error("nobody got the lock of who lost the vote")
	}
}

// If the vote counts twice for longer than is known, or for a time that nobody knows, there is an overlap.
func TestDeviceCounts(t *testing.T) {
	for name, b := range map[string]breach{"A9 vote": lateVote, "its time": untoldVote} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(1000) { // a few are enough
				found := ""
				fakeclock.Test(t, func(t *testing.T) { found = moveVote(t.Context(), seed, b).worst })
				if found != "" {
					t.Logf("seed %d: %s", seed, found)
					return
				}
			}
			t.Error("no overlap was found: the simulation cannot find one, or it is not needed")
		})
	}
}

// moveVote cuts two nodes from each other. Node 1 has a lock and the vote, which moves.
func moveVote(ctx context.Context, seed uint64, b breach) *world {
	w := newWorld(seed, 2, b)
	// So long a lease that a corosync which stands still for it would count, if the guard took what comes back then.
	w.timing.Consensus = 20 * time.Second
	w.withDevice()
	for _, x := range w.nodes {
		x.start()
	}
	x, y := w.nodes[0], w.nodes[1]
	w.settle(ctx, 5*time.Second)
	if x.acquire(ctx, "disk0") == nil {
		panic("nothing is granted in a whole cluster")
	}
	w.change("the nodes are cut from each other", func() { w.parts[0], w.vote = 1, 1 })
	w.settle(ctx, w.timing.Token+w.timing.Consensus+5*time.Second)
	w.mu.Lock()
	until, soon := time.Duration(0), w.lockedUpTo(2*time.Second)
	switch seed % 4 {
	case 0: // corosync stands still for as long as its process may live
		until = w.now() + w.lockedUpTo(w.timing.FenceBy())
	case 2: // and all comes as badly as it can
		until, soon = w.now()+w.timing.FenceBy()-5*time.Second-w.lockedUpTo(2*time.Second), 0
	}
	if until > 0 {
		w.lockedSay("corosync of node 1 stands still until %v", until)
		x.stall = until
	}
	w.mu.Unlock()
	w.settle(ctx, soon)
	w.mu.Lock()
	lost := w.lockedMoveVote(until)
	before := w.lockedUpTo(200 * time.Millisecond)
	w.mu.Unlock()
	if lost == 0 {
		panic("the vote does not move")
	}
	ends := w.now() + 2*w.timing.HoldOff
	if seed%4 > 1 {
		w.settle(ctx, lost-before)
		w.mu.Lock()
		w.lockedSay("corosync of node 1 stands still for ever")
		x.hung = true
		w.mu.Unlock()
	}
	for w.now() < ends && y.acquire(ctx, "disk0") == nil {
		w.settle(ctx, 200*time.Millisecond)
	}
	w.settle(ctx, 5*time.Second)
	for _, n := range w.nodes {
		n.kill()
	}
	return w
}
