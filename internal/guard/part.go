package guard

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Settle lets nothing more be granted, and waits until no process is stopped
// any more: each has gone on, or has been killed. It takes as long as the grace at
// most, unless one is to stay stopped for an operator, which is not waited for.
func (g *Guard) Settle(ctx context.Context) error {
	for {
		g.mu.Lock()
		g.closing = true
		left := len(g.unopened)
		for _, f := range g.frozen {
			if !f.expired {
				left++
			}
		}
		changed := g.changed
		g.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d processes are stopped, and stay so until vmlockd is started again: %w", left, ctx.Err())
		}
	}
}

// ErrUnheard is about a withdrawal.
var ErrUnheard = errors.New("it is not certain that the other hosts have heard that nothing guards this one any more, and not everything that owns locks here is stopped")

// Withdraw says that nobody guards this host from now on. It returns when all who are in the
// cluster with it have heard that, or when nothing runs here any more that owns a lock. Until
// then the others count on this host, and it is guarded: should it have lost the cluster,
// what owns locks is stopped, and killed when the grace is over. On a host that is well it takes two
// messages, else until a lost host must have stopped at most: then the error is an
// ErrUnheard. Run must be at work.
func (g *Guard) Withdraw(ctx context.Context) error {
	g.mu.Lock()
	if !g.withdrawn {
		g.closing, g.withdrawn, g.withdrawnAt = true, true, g.o.Clock()
	}
	g.mu.Unlock()
	g.news()
	for {
		owners := g.o.Owners() // the last step may be from before a grant
		g.mu.Lock()
		done := g.lockedParted(owners)
		g.parted = g.parted || done // which is noted when Run ends: nothing is granted any more
		late := g.o.Clock()-g.withdrawnAt > g.timing.FenceBy()+killTime+2*tick
		changed := g.changed
		g.mu.Unlock()
		switch {
		case done:
			return nil
		case late:
			return ErrUnheard
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnheard, ctx.Err())
		}
	}
}

// lockedParted reports whether nobody is in danger when this guard ends.
func (g *Guard) lockedParted(owners []Owner) bool {
	if len(g.unopened) > 0 {
		return false
	}
	for _, f := range g.frozen {
		if !f.stopped || !f.expired {
			return false // it is about to go on, or to be killed
		}
	}
	if g.lockedMode() == Fencing && (g.lockedFenced() || g.introduced || !g.dog.open && !g.dog.left && len(g.left) == 0) {
		return true // nothing was ever promised, and a watchdog that an earlier guard has left armed is not counted on any more
	}
	if !g.heard {
		for _, o := range owners {
			if g.frozen[ownerKey{o.PID, o.Start}] == nil {
				return false
			}
		}
	}
	return true
}

// Leave says that this host holds nothing, and takes nothing any more: Run tells
// the others when it ends. Who does not hear it holds off, for no need but in safety.
func (g *Guard) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closing, g.leaving = true, true
	if !g.withdrawn {
		g.withdrawn, g.withdrawnAt = true, g.o.Clock()
	}
}

// lockedHeard takes a proof of what was sent at first by what was sent at second: the others have heard it, and so this guard. Was it of a
// withdrawal? The group tells who is lost before it delivers anything without them, and
// corosync's quorum a moment later: what is delivered in between proves nothing to them.
func (g *Guard) lockedHeard(v view, first, second time.Duration) {
	if g.introduced && (!g.withdrawn || g.heard || second < g.withdrawnAt) {
		return
	}
	for node, ring := range g.downs {
		if ring == v.ring.ID.Seq && v.inRing(node) {
			return
		}
	}
	g.introduced = true
	if !g.withdrawn || g.heard || second < g.withdrawnAt {
		return
	}
	if first < g.withdrawnAt {
		g.news() // the second one, soon
		return
	}
	g.heard = true
	g.lockedWake()
}
