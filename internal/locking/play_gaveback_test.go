package locking_test

import (
	"context"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// written makes something known of an owner, or something else.
func (p *play) written(rt *rapid.T) {
	p.w.written(rapid.SampledFrom(playPIDs).Draw(rt, "pid"))
}

// takeAgain takes what an owner gave back, as one that uses it all the same, or forgets that it did.
func (p *play) takeAgain(rt *rapid.T) {
	list := p.w.m.GivenBack()
	if len(list) == 0 {
		rt.Skip() // rapid draws another step: nothing is given back yet
	}
	g := rapid.SampledFrom(list).Draw(rt, "gift")
	var a *actor
	for _, of := range p.m.actors {
		if _, ok := of.gave[g.Ref]; ok && of.pid == g.Owner.PID {
			a = of
		}
	}
	if a == nil {
		rt.Fatalf("nobody gave back %v", g)
	}
	if rapid.IntRange(0, 3).Draw(rt, "forget") == 0 {
		p.w.m.ForgetGivenBack(g)
		delete(a.gave, g.Ref)
		return
	}
	gift := a.gave[g.Ref]
	seen := p.w.written(a.pid)
	f, gate := p.trouble(rt, anyFault, locktest.OpLock)
	before := p.w.b.Leads(g.Ref)
	err := p.w.m.TakeAgain(context.Background(), g, seen)
	settle()
	p.untrouble()
	if gate != nil {
		p.late = append(p.late, gate)
	}
	want := locking.KindUnavailable
	if !time.Now().Before(a.ending) {
		want = p.backend(a, g.Ref, gift.mode, gift.auto, f, before)
	}
	if want == granted {
		r := p.m.res[p.m.under(g.Ref)]
		r.holds[len(r.holds)-1].again = true
	}
	if e := p.kind(rt, err, want); e != nil && e.Kind == locking.KindBusy {
		p.names(rt, e, g.Ref)
	}
}
