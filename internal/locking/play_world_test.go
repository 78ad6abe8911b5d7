package locking_test

import (
	"context"
	"maps"
	"slices"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

func (p *play) lockspace(rt *rapid.T) {
	path := rapid.SampledFrom(playSpaces).Draw(rt, "path")
	mustBeNew := rapid.Bool().Draw(rt, "new")
	fails := rapid.Bool().Draw(rt, "fails")
	if fails {
		p.w.b.Fail(locktest.On(locktest.OpCreateLockspace, ""), errIO, 1)
	}
	want, do := granted, p.w.m.CreateLockspace
	if mustBeNew {
		do = p.w.m.NewLockspace
	}
	err := do(context.Background(), path)
	p.w.b.Forget()
	switch {
	case path == "" && mustBeNew:
		want = locking.KindDefaultLockspace
	case p.m.spaces[path] && mustBeNew:
		want = locking.KindLockspaceExists
	case !p.m.spaces[path] && fails:
		want = locking.KindSystem
	default:
		p.m.spaces[path] = true
	}
	p.kind(rt, err, want)
}

func (p *play) createResource(rt *rapid.T) {
	ref := rapid.SampledFrom(playRefs).Draw(rt, "ref")
	err := p.w.m.CreateResource(context.Background(), ref)
	switch {
	case !p.m.spaces[ref.Lockspace]:
		p.kind(rt, err, locking.KindNoLockspace)
	case p.m.under(ref) != "":
		p.kind(rt, err, locking.KindBusy)
	default:
		p.kind(rt, err, granted)
	}
}

func (p *play) deleteResource(rt *rapid.T) {
	ref := rapid.SampledFrom(playRefs).Draw(rt, "ref")
	id := p.w.b.Leads(ref)
	err := p.w.m.DeleteResource(context.Background(), ref)
	switch {
	case !p.m.spaces[ref.Lockspace]:
		p.kind(rt, err, locking.KindNoLockspace)
	case p.m.under(ref) != "" || p.m.res[id] != nil:
		p.kind(rt, err, locking.KindBusy)
	default:
		p.kind(rt, err, granted)
		if p.w.b.Leads(ref) != "" {
			rt.Fatalf("%v was deleted and is still there", ref)
		}
	}
}

// world changes what names lead to, and what other hosts hold.
func (p *play) world(rt *rapid.T) {
	id := rapid.SampledFrom(playIDs).Draw(rt, "id")
	if rapid.Bool().Draw(rt, "a name") {
		p.w.b.Point(rapid.SampledFrom(playRefs).Draw(rt, "ref"), id)
		return
	}
	_, unsettled := p.m.unsettled[id]
	if _, ok := p.outside[id]; !ok && p.m.res[id] == nil && !unsettled {
		p.outside[id] = rapid.SampledFrom([]locking.Mode{locking.Exclusive, locking.Shared}).Draw(rt, "mode")
		p.w.b.Outside(id, p.outside[id], true)
		return
	}
	delete(p.outside, id)
	p.w.b.Outside(id, locking.Exclusive, false)
}

func (p *play) lateAnswers() {
	for _, gate := range p.late {
		gate.Open()
	}
	p.late = nil
	settle()
	clear(p.m.unsettled)
}

// finish ends all processes and sessions, and releases what is left in the name
// of pids that were nobody's.
func (p *play) finish() {
	p.lateAnswers()
	p.w.m.Drain(false)
	p.m.drain(false)
	for pid, proc := range p.procs {
		proc.Kill()
		settle()
		p.m.died(pid, "")
	}
	clear(p.procs)
	for _, s := range slices.Clone(p.sessions) {
		s.g.Close()
		s.actor.sessions--
	}
	for _, pid := range playPIDs {
		s := &session{g: p.w.register(pid), actor: p.m.register(pid, false)}
		for _, ref := range playRefs {
			for {
				id, hold, _ := p.m.release(s.actor, ref)
				if hold < 0 {
					break
				}
				p.w.release(s.g, ref)
				p.m.drop(id, hold)
			}
		}
		s.g.Close()
		s.actor.sessions--
	}
	// What the dead could not give back goes when somebody wants it.
	heir := p.w.register(99)
	for id, r := range maps.Clone(p.m.res) {
		p.w.b.Outside(id, locking.Exclusive, false)
		ref := r.holds[0].ref
		p.w.b.Point(ref, id)
		p.w.acquire(heir, ref, locking.Exclusive)
		p.w.release(heir, ref)
	}
	heir.Close()
	settle()
	p.w.empty()
}
