package locking_test

import (
	"context"
	"slices"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

func (p *play) drain(rt *rapid.T) {
	on := rapid.Bool().Draw(rt, "on")
	p.w.m.Drain(on)
	p.m.drain(on)
	if p.w.m.Draining() != on {
		rt.Fatalf("draining is %v", !on)
	}
}

// mayLive is what an operator's release without force must not take from.
func (p *play) mayLive(a *actor) bool {
	switch {
	case a.gone:
		return false
	case a.process, a.pid <= 0:
		return true
	}
	return p.procs[a.pid] != nil // somebody has its pid
}

// forceRelease releases all holds of a name, or one pid's.
func (p *play) forceRelease(rt *rapid.T) {
	ref := p.where(rt)
	id := p.m.under(ref)
	force := rapid.Bool().Draw(rt, "force")
	all := rapid.Bool().Draw(rt, "all")
	pid := rapid.SampledFrom(playPIDs).Draw(rt, "pid")
	fails := rapid.IntRange(0, 3).Draw(rt, "fails") == 0
	if fails {
		p.w.b.Fail(locktest.On(locktest.OpUnlock, ""), errIO, 1)
	}
	only := func(h locking.Holder) bool { return h.Owner.PID == pid }
	if all {
		only = nil
	}
	released, err := p.w.m.ForceRelease(context.Background(), ref, only, force)
	settle()
	p.w.b.Forget()

	if !p.m.spaces[ref.Lockspace] {
		p.kind(rt, err, locking.KindNoLockspace)
		return
	}
	meant := func(h modelHold) bool { return h.ref == ref && (all || h.actor.pid == pid) }
	if id == "" || !slices.ContainsFunc(p.m.res[id].holds, meant) {
		p.kind(rt, err, locking.KindNotLocked)
		return
	}
	if !force && slices.ContainsFunc(p.m.res[id].holds, func(h modelHold) bool { return meant(h) && p.mayLive(h.actor) }) {
		p.kind(rt, err, locking.KindOwnerLives)
		return
	}
	before := p.m.holdsOfResource(id)
	want := granted
	switch all := !slices.ContainsFunc(p.m.res[id].holds, func(h modelHold) bool { return !meant(h) }); {
	case all && fails: // the last one cannot be given back
		last := p.m.res[id].holds[len(p.m.res[id].holds)-1]
		p.m.res[id].holds = []modelHold{last}
		want = locking.KindSystem
	default:
		p.m.remove(id, meant)
	}
	p.kind(rt, err, want)
	if n := before - p.m.holdsOfResource(id); len(released) != n {
		rt.Fatalf("released are %v, which should be %d", released, n)
	}
}

func (m *model) holdsOfResource(id string) int {
	if r := m.res[id]; r != nil {
		return len(r.holds)
	}
	return 0
}
