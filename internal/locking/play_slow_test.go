package locking_test

import (
	"context"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// acquireSlowly is an acquire that stays in the backend while other things
// happen, which must not wait for it.
func (p *play) acquireSlowly(rt *rapid.T) {
	s, ref := p.pick(rt), p.where(rt)
	id := p.w.b.Leads(ref)
	_, unsettled := p.m.unsettled[id]
	_, outside := p.outside[id]
	if id == "" || p.m.res[id] != nil || p.m.under(ref) != "" || unsettled || outside || s.actor.gone || !p.m.spaces[ref.Lockspace] ||
		p.m.drained(s.actor, ref) {
		rt.Skip()
	}
	mode := rapid.SampledFrom([]locking.Mode{locking.Exclusive, locking.Shared}).Draw(rt, "mode")
	gate := p.w.b.Block(locktest.On(locktest.OpLock, id))
	done := start(func() error { return s.g.Acquire(context.Background(), ref, mode, false) })
	gate.Arrived()
	p.w.b.Forget()
	s.actor.sessions++
	p.busyID, p.busyRef = id, ref
	for range rapid.IntRange(0, 4).Draw(rt, "steps meanwhile") {
		switch rapid.IntRange(0, 6).Draw(rt, "step") {
		case 0:
			if p.procs[s.actor.pid] != nil {
				p.procs[s.actor.pid].Kill()
				settle()
				delete(p.procs, s.actor.pid)
				p.m.died(s.actor.pid, "")
			}
		case 1:
			if len(p.sessions) > 0 {
				p.closeSession(rt)
			}
		case 2, 3:
			if len(p.sessions) > 0 {
				p.meanwhile(rt)
			}
		case 4:
			p.registerPID(s.actor.pid)
		case 5:
			p.drain(rt) // which comes too late for what the backend was asked
		}
		p.compareMeanwhile(rt, done)
	}
	p.busyID = ""
	var answer error
	if rapid.Bool().Draw(rt, "it fails") {
		answer = errIO
	}
	gate.OpenWith(answer)
	err := <-done
	settle()
	want := granted
	switch {
	case answer != nil:
		want = locking.KindSystem
	case s.actor.gone:
		want = locking.KindOwnerGone
	default:
		p.m.decide(s.actor, id, ref, mode, false, false)
	}
	s.actor.sessions--
	p.kind(rt, err, want)
}

// meanwhile is an acquire or a release of something else, if there is something.
func (p *play) meanwhile(rt *rapid.T) {
	for _, ref := range playRefs {
		if ref == p.busyRef || p.w.b.Leads(ref) == p.busyID {
			continue
		}
		s := p.pick(rt)
		before := p.w.b.Leads(ref)
		err := s.g.Acquire(context.Background(), ref, locking.Shared, true)
		p.kind(rt, err, p.expect(s, ref, locking.Shared, true, faultNone, before))
		if err == nil && rapid.Bool().Draw(rt, "and back") {
			p.releaseRef(rt, s, ref, noFault)
		}
	}
}

func (p *play) compareMeanwhile(rt *rapid.T, done <-chan error) {
	p.compare(rt)
	p.w.pending(done)
}
