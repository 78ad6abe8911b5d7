package guard

import (
	"context"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// tell sends a message in regular intervals, and when there is news.
func (g *Guard) tell(ctx context.Context) {
	t := time.NewTicker(beat)
	defer t.Stop()
	for {
		g.mu.Lock()
		// A guard that looks no more is to be as silent as one that is stopped.
		up := g.up && g.o.Clock()-g.stepped <= silence
		b, err := encode(g.lockedMessage())
		g.lockedSave()
		g.mu.Unlock()
		if err != nil {
			g.log.Error("the guard cannot tell the others", "reason", err) // more nodes than there can be
		} else if up {
			// Without a bound: while it waits, there is no proof.
			_ = g.o.Group.Send(ctx, b)
		}
		select {
		case <-t.C:
		case <-g.kick:
		case <-ctx.Done():
			return
		}
	}
}

// bye is the last message.
func (g *Guard) bye(ctx context.Context) {
	g.mu.Lock()
	last, up := g.leaving || g.withdrawn, g.up
	b, err := encode(g.lockedMessage())
	g.lockedSave()
	g.mu.Unlock()
	if last && up && err == nil {
		_ = g.o.Group.Send(ctx, b) // that it was heard is Withdraw's to see
	}
}

// lockedMessage is what is told now.
func (g *Guard) lockedMessage() message {
	m := message{
		Sent: int64(g.o.Clock()), Run: g.run, Promise: g.lockedPromise(), Watchdog: g.dog.open && !g.withdrawn, Leaving: g.leaving,
		Needs: g.timing.LeastHoldOff().Milliseconds(), Ring: g.ledger.ring,
	}
	if g.lost != "" || !g.ledger.entered || g.ledger.restored {
		return m // what an earlier daemon has noted may not be true any more
	}
	m.Complete = g.ledger.complete()
	for node := range g.ledger.known {
		m.Space = append(m.Space, node)
	}
	for _, f := range g.ledger.list() {
		left := max(f.Until-g.o.Clock(), 0).Milliseconds()
		m.Facts = append(m.Facts, told{Node: f.Node, Left: left, Promised: f.Promised, Unsure: !f.sure(), Needs: f.Needs.Milliseconds()})
	}
	for node := range g.ledger.confirmed {
		m.Dead = append(m.Dead, node)
	}
	return m
}

// lockedPromise reports whether everything here that owns a lock is stopped when
// this host loses the cluster.
func (g *Guard) lockedPromise() bool {
	if g.lockedMode() != Freeze || g.withdrawn || !g.timing.Known() || g.tooFast != nil || g.failed != "" || g.unheld != "" || len(g.unopened) > 0 {
		return false
	}
	return !slices.ContainsFunc(g.owners, func(o Owner) bool { return o.Start == 0 || g.wish(o) == WishIgnore })
}

// listen takes what happens in the group.
func (g *Guard) listen(ctx context.Context) {
	for {
		select {
		case ev, ok := <-g.o.Group.Events():
			if !ok {
				return
			}
			g.handle(ev)
		case <-ctx.Done():
			return
		}
	}
}

func (g *Guard) handle(ev corosync.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch ev := ev.(type) {
	case corosync.Up:
		g.up, g.fresh, g.self = true, true, ev.Self
		clear(g.members)
		clear(g.ledger.heard) // something may have been missed
	case corosync.Down:
		g.up = false
	case corosync.Membership:
		g.lockedMembers(ev)
		g.news()
	case corosync.Message:
		g.lockedHear(ev)
	}
}

// lockedMembers compares the guards in the group with those before.
func (g *Guard) lockedMembers(ev corosync.Membership) {
	now := map[uint32]int{}
	for _, m := range ev.Members {
		now[m.Node]++
	}
	for _, c := range ev.Left {
		if now[c.Node] == 0 && c.Node != g.self.Node {
			// Where the whole node is lost, its guard may do its work.
			g.ledger.left(c.Node, c.Reason != corosync.ReasonNodeDown)
		}
		if ring, err := g.o.Ring(); err == nil && c.Reason == corosync.ReasonNodeDown {
			g.downs[c.Node] = ring.ID.Seq
		}
	}
	for _, c := range ev.Joined {
		if c.Node != g.self.Node {
			g.ledger.joined(c.Node)
		}
	}
	for node := range now {
		if g.members[node] == 0 && node != g.self.Node {
			g.ledger.joined(node)
		}
	}
	if g.fresh {
		// A guard that ended while this one was away. Later it is told in Left: what
		// corosync says of the ring comes at another time, and may be older.
		g.fresh = false
		v := g.lockedView()
		for node := range g.ledger.words {
			if now[node] == 0 {
				g.ledger.left(node, v.inRing(node))
			}
		}
	}
	g.members = now
}

func (g *Guard) lockedHear(msg corosync.Message) {
	m, err := decode(msg.Data)
	if err != nil {
		g.log.Debug("a message to the guards cannot be read", "node", msg.From.Node, "reason", err)
		return
	}
	if g.up && msg.From == g.self {
		if m.Run == g.run {
			g.lockedProof(time.Duration(m.Sent))
		}
		return
	}
	if msg.From.Node == g.self.Node {
		return // an earlier guard of this host
	}
	g.ledger.hear(g.lockedView(), msg.From.Node, m)
}

// lockedProof takes a message that came back. It proves that this host was in the
// ring when it was sent, once another one has come back that was sent after that:
// for the second the token had to go round. (The first may be due to a token that
// lay in the socket of a corosync that stood still while the others went on without.)
//
// After a while without a proof it counts only when the ring is still the same a moment later.
//
// A ring of one that has quorum by the vote of a quorum device may have lost that vote while its corosync stood still, and not know it yet:
// no token was missed, and corosync-qdevice stood still with it. So after that nothing is proved for as long as it can take to be told. In a
// new ring the device has voted anew.
//
// After a change of the ring it proves nothing before dlm_controld has agreed to the
// new one: in that ring there may be nodes that have dropped this one, and it is
// dlm_controld that says so.
func (g *Guard) lockedProof(sent time.Duration) {
	v := g.lockedView()
	if v.ring == nil || sent > v.at {
		return
	}
	before := g.returned
	if before.ring == v.ring.ID.Seq && sent <= before.at {
		return // it was on its way together with the one before
	}
	g.returned = trip{ring: v.ring.ID.Seq, sent: sent, at: v.at}
	if before.ring != v.ring.ID.Seq {
		g.news() // the next one
		return
	}
	if v.at-before.at > g.timing.Token+silence {
		g.woke = g.returned
	}
	if g.woke.ring == v.ring.ID.Seq && v.at-g.woke.at < g.timing.Device {
		g.doubtful = trip{}
		return
	}
	doubtful := g.doubtful
	g.doubtful = trip{}
	if g.timing.Known() && before.sent-g.proven > g.timing.Token {
		// The others may have gone on without this host, and be in the next ring with it, of which
		// the group tells before corosync's quorum does. If they were, the ring is another one soon.
		if doubtful.ring != before.ring {
			doubtful = trip{ring: before.ring, sent: before.sent, at: v.at}
		}
		if v.at-doubtful.at < ringLag {
			g.doubtful = doubtful
			return
		}
		before.sent = doubtful.sent
	}
	if before.ring != g.provenRing {
		if !v.agreed(0) {
			g.doubtful = doubtful // it waited for its moment, and does not have to once more
			return
		}
		g.provenRing = before.ring
	}
	if before.sent > g.proven || !g.isProven {
		g.proven, g.isProven = before.sent, true
	}
	g.lockedHeard(v, before.sent, sent)
}

// trip is a message that came back.
type trip struct {
	ring     uint64 // in which
	sent, at time.Duration
}
