package guard

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// withdraw takes back the promise of node 1, and ends its guard, and says how long the first took.
func (b *bench) withdraw() (took time.Duration, err error) {
	x := b.nodes[0]
	begun := b.now()
	err = x.guard.Withdraw(b.ctx)
	took = b.now() - begun
	x.kill()
	return took, err
}

// A vmlockd is stopped on a host that is cut off and has not found that out yet. The others
// count on its promise, and so it is kept.
func TestWithdrawUnheard(t *testing.T) {
	onBench(t, none, func(b *bench) {
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		took, err := b.withdraw()
		b.is("it is kept", false, true)
		if err != nil || took > b.timing.FenceBy()+killTime {
			b.t.Errorf("after %v: %v", took, err)
		}
		b.settle(b.ctx, 2*b.timing.HoldOff)
		if err := b.nodes[1].guard.Admit(b.ctx); err != nil {
			b.t.Errorf("node 2, long after: %v", err)
		}
	})
	// Corosync tells nobody: only the lease says that it is time.
	onBench(t, none, func(b *bench) {
		b.change("corosync of node 1 hangs", func() { b.parts[0], b.nodes[0].hung = 1, true })
		if took, err := b.withdraw(); err != nil || took > b.timing.FenceBy()+killTime {
			b.t.Errorf("after %v: %v", took, err)
		}
		b.is("it is kept", false, true)
	})
	// Who got a lock after the guard has looked last counts, too.
	onBench(t, none, func(b *bench) {
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		g := b.nodes[0].guard
		g.mu.Lock()
		g.owners = nil
		g.mu.Unlock()
		if took, err := b.withdraw(); err != nil || took > b.timing.FenceBy()+killTime {
			b.t.Errorf("after %v: %v", took, err)
		}
		b.is("it is kept", false, true)
	})
	// The ring is whole again before anybody is lost: what runs goes on, and is heard of.
	onBench(t, none, func(b *bench) {
		b.mu.Lock()
		b.nodes[0].stall = b.now() + b.timing.Token
		b.mu.Unlock()
		if took, err := b.withdraw(); err != nil || took < b.timing.Token/2 || took > b.timing.Lease() {
			b.t.Errorf("after %v: %v", took, err)
		}
		b.is("nobody was lost", true, false)
		g := b.nodes[1].guard
		g.mu.Lock()
		defer g.mu.Unlock()
		if w := g.ledger.words[1]; w.Promise {
			b.t.Errorf("node 2 has heard %+v", w)
		}
	})
}

// What cannot be stopped is not waited for without end, and is told as what it is.
func TestWithdrawFails(t *testing.T) {
	onBench(t, falseWord, func(b *bench) {
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		took, err := b.withdraw()
		if !errors.Is(err, ErrUnheard) || took > b.timing.HoldOff {
			b.t.Errorf("after %v: %v", took, err)
		}
		b.is("it cannot be stopped", true, false)
	})
	onBench(t, falseWord, func(b *bench) {
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		ctx, cancel := context.WithTimeout(b.ctx, time.Second)
		defer cancel()
		if err := b.nodes[0].guard.Withdraw(ctx); !errors.Is(err, ErrUnheard) || !errors.Is(err, context.DeadlineExceeded) {
			b.t.Error(err)
		}
	})
}

// Where nobody is stopped nobody counts on it.
func TestWithdrawWhereOthersFence(t *testing.T) {
	onBench(t, none, func(b *bench) {
		x := b.nodes[0]
		b.change("fencing is switched on", func() { x.fences = true })
		b.settle(b.ctx, 2*learnEvery)
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		if took, err := b.withdraw(); err != nil || took != 0 {
			b.t.Errorf("after %v: %v", took, err)
		}
		b.is("it goes on", true, false)
	})
}

// told tells the guard of node 1 that node 3 is lost, as the group does, and nothing yet of another ring.
func (b *bench) told() {
	b.mu.Lock()
	defer b.mu.Unlock()
	x, y := b.nodes[0], b.nodes[2]
	m := corosync.Membership{Left: []corosync.Change{{Member: y.member(), Reason: corosync.ReasonNodeDown}}}
	for _, z := range b.nodes[:2] {
		m.Members = append(m.Members, z.member())
	}
	x.deliver(m)
}

// The group delivers nothing more to a node that it has told to be lost, and corosync's quorum tells of that a moment later. What is
// delivered in between proves to nobody that this node has heard it.
func TestHeardByWhoIsLost(t *testing.T) {
	const between = 2 * time.Second // messages come back many times
	t.Run("withdrawn", func(t *testing.T) {
		onBench(t, none, func(b *bench) {
			b.told()
			done := make(chan error, 1)
			go func() { done <- b.nodes[0].guard.Withdraw(b.ctx) }()
			b.settle(b.ctx, between)
			select {
			case err := <-done:
				t.Fatalf("it is heard by a node that is lost: %v", err)
			default:
			}
			b.nodes[2].power()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("introduced", func(t *testing.T) {
		onBench(t, none, func(b *bench) {
			x := b.nodes[0]
			x.kill()
			x.start()
			g := x.guard
			introduced := func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return g.introduced
			}
			for _, err := g.o.Ring(); err != nil; _, err = g.o.Ring() {
				time.Sleep(time.Millisecond) // by the bubble's clock: until it has corosync's quorum, and no proof yet
			}
			if introduced() {
				t.Fatal("it is known to the others at once")
			}
			b.told()
			b.settle(b.ctx, between)
			if introduced() {
				t.Error("it is known to a node that is lost")
			}
			b.nodes[2].power()
			b.settle(b.ctx, 15*time.Second)
			if !introduced() {
				t.Error("it is not known to the others in the new ring")
			}
		})
	})
}
