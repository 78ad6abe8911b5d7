package locking_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// Random sequences of all that can happen, each step compared with the model:
// what is answered, who holds what, and what the backend has locked. In the end
// everything is released, and nothing may be left.
func TestAgainstModel(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		rapid.Check(bubbled{t}, func(rt *rapid.T) {
			p := newPlay(rt)
			defer p.w.abandon()
			defer settle()
			rt.Repeat(map[string]func(*rapid.T){
				"":                p.compare,
				"start":           p.start,
				"kill":            p.kill,
				"register":        p.register,
				"close":           p.closeSession,
				"acquire":         func(rt *rapid.T) { p.acquire(rt, anyFault) },
				"acquire more":    func(rt *rapid.T) { p.acquire(rt, noFault) },
				"acquire slowly":  p.acquireSlowly,
				"release":         func(rt *rapid.T) { p.release(rt, anyFault) },
				"release own":     p.releaseOwn,
				"lockspace":       p.lockspace,
				"create resource": p.createResource,
				"delete resource": p.deleteResource,
				"written":         p.written,
				"take again":      p.takeAgain,
				"drain":           p.drain,
				"force release":   p.forceRelease,
				"world":           p.world,
				"late answers":    func(*rapid.T) { p.lateAnswers() },
			})
			p.finish()
		})
	})
}

// bubbled keeps rapid from asking for the deadline, which a bubble has not.
type bubbled struct{ *testing.T }

var (
	playPIDs   = []int32{-1, 0, 1, 2, 3}
	playSpaces = []string{"", "/a", "/b"}
	playRefs   = []locking.Ref{
		{Name: "x"}, {Name: "y"}, {Lockspace: "/a", Name: "x"}, {Lockspace: "/a", Name: "y"},
		{Lockspace: "/b", Name: "x"}, {Lockspace: "/b", Name: "y"},
	}
	playIDs = []string{"disk 1", "disk 2", "disk 3"}
)

// fault is what goes wrong in the backend during one step.
type fault string

const (
	faultNone    fault = "none"
	faultOpen    fault = "open fails"
	faultLock    fault = "lock or unlock fails"
	faultStale   fault = "the name has changed once"
	faultOpenLag fault = "open is not answered in time"
	faultLockLag fault = "lock or unlock is not answered in time"
	faultIntend  fault = "the journal cannot be written, before"
	faultGrant   fault = "the journal cannot be written, after"
)

var (
	noFault  = []fault{faultNone}
	anyFault = []fault{faultNone, faultNone, faultNone, faultOpen, faultLock, faultStale, faultOpenLag, faultLockLag, faultIntend, faultGrant}
)

type session struct {
	g     *locking.Registration
	actor *actor
}

// play is one run: a world and the model of it.
type play struct {
	w        *world
	m        *model
	procs    map[int32]*locktest.Process
	stubborn map[int32]bool
	sessions []*session
	outside  map[string]locking.Mode
	late     []*locktest.Gate

	// While an acquire is in the backend: what nobody else may touch, because it
	// would have to wait.
	busyID  string
	busyRef locking.Ref
}

func newPlay(rt *rapid.T) *play {
	p := &play{w: newWorld(rt), m: newModel(), procs: map[int32]*locktest.Process{},
		stubborn: map[int32]bool{}, outside: map[string]locking.Mode{}}
	for i, ref := range playRefs[:4] {
		p.w.b.Point(ref, playIDs[i%3]) // the first and the last of them are aliases
	}
	return p
}

// compare is the check after each step.
func (p *play) compare(rt *rapid.T) {
	settle()
	p.w.check()
	got := []string{}
	for _, h := range p.w.m.Holders() {
		got = append(got, fmt.Sprint(h.Owner.PID, h.Ref, h.Mode))
	}
	slices.Sort(got)
	if want := p.m.holders(); !slices.Equal(got, want) {
		rt.Fatalf("held is %q, want %q", got, want)
	}
	gifts := []string{}
	for _, g := range p.w.m.GivenBack() {
		gifts = append(gifts, fmt.Sprint(g.Owner.PID, g.Ref, g.Mode))
	}
	slices.Sort(gifts)
	if want := p.m.gifts(); !slices.Equal(gifts, want) {
		rt.Fatalf("given back is %q, want %q", gifts, want)
	}
	want := maps.Clone(p.m.unsettled)
	for id, r := range p.m.res {
		want[id] = r.mode
	}
	if got := p.w.b.Locked(); !maps.Equal(got, want) {
		rt.Fatalf("the backend has %v locked, want %v", got, want)
	}
	p.compareJournal(rt)
}

// compareJournal checks that a next process would find what is held, and nothing
// else but what is being asked for at this moment.
func (p *play) compareJournal(rt *rapid.T) {
	got, open := []string{}, 0
	for _, e := range p.w.j.Entries() {
		if e.State != locking.EntryGranted {
			open++
			continue
		}
		got = append(got, fmt.Sprint(e.Owner.PID, e.Ref, e.Mode))
		if r := p.m.res[e.ID]; r == nil || r.mode != e.Mode {
			rt.Fatalf("the journal has %+v, and the resource is %+v", e, r)
		}
	}
	slices.Sort(got)
	if want := p.m.holders(); !slices.Equal(got, want) {
		rt.Fatalf("the journal has %q granted, want %q", got, want)
	}
	if asked := p.busyID != ""; open > 0 && !asked || open > 1 {
		rt.Fatalf("the journal has %d entries of what nobody asks for", open)
	}
}

func (p *play) kind(rt *rapid.T, err error, want locking.Kind) *locking.Error {
	if err == nil {
		if want != granted {
			rt.Fatalf("no error, want one of kind %d", want)
		}
		return nil
	}
	if want == granted {
		rt.Fatalf("refused: %v", err)
	}
	return p.w.refused(err, want)
}

func (p *play) start(rt *rapid.T) {
	pid := rapid.SampledFrom(playPIDs[2:]).Draw(rt, "pid")
	if p.procs[pid] != nil {
		rt.Skip()
	}
	p.procs[pid] = p.w.ps.Start(pid)
	p.stubborn[pid] = rapid.Bool().Draw(rt, "stubborn")
	if p.stubborn[pid] {
		p.procs[pid].Stubborn()
	}
}

func (p *play) kill(rt *rapid.T) {
	pid := rapid.SampledFrom(playPIDs[2:]).Draw(rt, "pid")
	if p.procs[pid] == nil {
		rt.Skip()
	}
	keep := ""
	if rapid.Bool().Draw(rt, "with a lock that cannot be given back") {
		keep = rapid.SampledFrom(playIDs).Draw(rt, "id")
		if keep == p.busyID {
			keep = ""
		}
	}
	p.w.b.Fail(locktest.On(locktest.OpUnlock, keep), errIO, len(keep)) // "" fails 0 times
	p.procs[pid].Kill()
	settle()
	p.w.b.Forget()
	delete(p.procs, pid)
	p.m.died(pid, keep, p.w.m.HoldersOf(keep)...)
}

func (p *play) register(rt *rapid.T) {
	if len(p.sessions) >= 8 {
		rt.Skip()
	}
	p.registerPID(rapid.SampledFrom(playPIDs).Draw(rt, "pid"))
}

func (p *play) registerPID(pid int32) *session {
	s := &session{g: p.w.register(pid), actor: p.m.register(pid, p.procs[pid] != nil)}
	p.sessions = append(p.sessions, s)
	return s
}

func (p *play) pick(rt *rapid.T) *session {
	if len(p.sessions) == 0 {
		rt.Skip()
	}
	return rapid.SampledFrom(p.sessions).Draw(rt, "session")
}

func (s *session) String() string { return s.actor.name }

func (p *play) closeSession(rt *rapid.T) {
	s := p.pick(rt)
	a := s.actor
	if rapid.Bool().Draw(rt, "it is the owner itself") {
		s.g.Disconnected()
		settle()
		switch holds := p.m.holdsOf(a); {
		case holds == 0 || a.gone || time.Now().Before(a.ending) || a.pid <= 0:
		case !a.process:
			p.m.gone(a, "")
		case p.stubborn[a.pid]:
			a.ending = time.Now().Add(locking.EndTimeout)
		default:
			delete(p.procs, a.pid)
			p.m.died(a.pid, "")
		}
	}
	s.g.Close()
	a.sessions--
	p.sessions = slices.DeleteFunc(p.sessions, func(o *session) bool { return o == s })
}

// where picks a name that does not lead to what is being worked on.
func (p *play) where(rt *rapid.T) locking.Ref {
	ref := rapid.SampledFrom(playRefs).Draw(rt, "ref")
	if p.busyID != "" && (ref == p.busyRef || p.w.b.Leads(ref) == p.busyID || p.m.under(ref) == p.busyID) {
		rt.Skip()
	}
	return ref
}

// trouble prepares the backend for a fault, op being what faultLock concerns.
func (p *play) trouble(rt *rapid.T, faults []fault, op locktest.Op) (fault, *locktest.Gate) {
	f := rapid.SampledFrom(faults).Draw(rt, "fault")
	switch f {
	case faultOpen:
		p.w.b.Fail(locktest.On(locktest.OpOpen, ""), errIO, 1)
	case faultLock:
		p.w.b.Fail(locktest.On(op, ""), errIO, 1)
	case faultStale:
		p.w.b.Fail(locktest.On(locktest.OpLock, ""), fmt.Errorf("lock: %w", locking.ErrStale), 1)
	case faultIntend:
		p.w.j.Fail("Intend", errIO)
	case faultGrant:
		p.w.j.Fail("Grant", errIO)
	case faultOpenLag:
		return f, p.w.b.Block(locktest.On(locktest.OpOpen, ""))
	case faultLockLag:
		return f, p.w.b.Block(locktest.On(op, ""))
	}
	return f, nil
}

// untrouble ends the fault, if it has not struck.
func (p *play) untrouble() {
	p.w.b.Forget()
	p.w.j.Fail("Intend", nil)
	p.w.j.Fail("Grant", nil)
}

func (p *play) acquire(rt *rapid.T, faults []fault) {
	s, ref := p.pick(rt), p.where(rt)
	mode := rapid.SampledFrom([]locking.Mode{locking.Exclusive, locking.Shared}).Draw(rt, "mode")
	auto := rapid.Bool().Draw(rt, "autocreate")
	f, gate := p.trouble(rt, faults, locktest.OpLock)
	before := p.w.b.Leads(ref)
	err := s.g.Acquire(context.Background(), ref, mode, auto)
	settle()
	p.untrouble()
	if gate != nil {
		p.late = append(p.late, gate)
	}
	want := p.expect(s, ref, mode, auto, f, before)
	if e := p.kind(rt, err, want); e != nil && e.Kind == locking.KindBusy {
		p.names(rt, e, ref)
	}
}

// expect is the answer to an acquire, given what the name led to before it.
func (p *play) expect(s *session, ref locking.Ref, mode locking.Mode, auto bool, f fault, before string) locking.Kind {
	if !p.m.spaces[ref.Lockspace] {
		return locking.KindNoLockspace
	}
	if s.actor.gone {
		return locking.KindOwnerGone
	}
	if p.m.drained(s.actor, ref) {
		return locking.KindUnavailable
	}
	if h := p.m.takenAgain(s.actor, ref); h != nil && p.m.res[p.m.under(ref)].mode == mode {
		h.again = false
		return granted
	}
	return p.backend(s.actor, ref, mode, auto, f, before)
}

// backend is the answer if neither a drain nor what the owner has already decides.
func (p *play) backend(a *actor, ref locking.Ref, mode locking.Mode, auto bool, f fault, before string) locking.Kind {
	if id := p.m.under(ref); id != "" {
		p.m.dropDead(id)
		if p.m.under(ref) != "" {
			return p.m.decide(a, id, ref, mode, auto, f == faultIntend)
		}
	}
	switch {
	case f == faultOpen:
		return locking.KindSystem
	case f == faultOpenLag:
		return locking.KindUnavailable
	case before == "" && !auto:
		return locking.KindSystem
	}
	id := p.w.b.Leads(ref)
	p.m.dropDead(id)
	if p.m.res[id] != nil {
		return p.m.decide(a, id, ref, mode, auto, f == faultIntend)
	}
	switch f {
	case faultIntend:
		return locking.KindUnavailable
	case faultLock:
		return locking.KindSystem
	case faultLockLag:
		return locking.KindUnavailable
	}
	for _, others := range []map[string]locking.Mode{p.outside, p.m.unsettled} {
		if held, ok := others[id]; ok && (held == locking.Exclusive || mode == locking.Exclusive) {
			return locking.KindBusy
		}
	}
	return p.m.decide(a, id, ref, mode, auto, f == faultGrant)
}

// names checks that a refusal names those who hold the resource here.
func (p *play) names(rt *rapid.T, e *locking.Error, ref locking.Ref) {
	id := p.m.under(ref)
	if id == "" {
		id = p.w.b.Leads(ref)
	}
	var got, want []string
	for _, h := range e.Holders {
		got = append(got, fmt.Sprint(h.Owner.PID, h.Ref, h.Mode))
	}
	if r := p.m.res[id]; r != nil {
		for _, h := range r.holds {
			want = append(want, fmt.Sprint(h.actor.pid, h.ref, r.mode))
		}
	}
	if !slices.Equal(got, want) {
		rt.Fatalf("the refusal names %q, want %q", got, want)
	}
}

func (p *play) release(rt *rapid.T, faults []fault) {
	p.releaseRef(rt, p.pick(rt), p.where(rt), faults)
}

func (p *play) releaseOwn(rt *rapid.T) {
	s := p.pick(rt)
	for _, ref := range playRefs {
		if _, hold, _ := p.m.release(s.actor, ref); hold >= 0 && rapid.Bool().Draw(rt, "this one") {
			p.releaseRef(rt, s, ref, noFault)
			return
		}
	}
	rt.Skip()
}

func (p *play) releaseRef(rt *rapid.T, s *session, ref locking.Ref, faults []fault) {
	f, gate := p.trouble(rt, faults, locktest.OpUnlock)
	err := s.g.Release(context.Background(), ref)
	settle()
	p.untrouble()
	id, hold, want := p.m.release(s.actor, ref)
	last := hold >= 0 && len(p.m.res[id].holds) == 1
	if last && f == faultLock {
		p.kind(rt, err, locking.KindSystem)
		return
	}
	if gate != nil {
		p.late = append(p.late, gate)
	}
	if last && f == faultLockLag {
		want = locking.KindUnavailable
		p.m.unsettled[id] = p.m.res[id].mode
	}
	if hold >= 0 {
		h, mode := p.m.res[id].holds[hold], p.m.res[id].mode
		p.m.gaveBack(h)
		p.m.drop(id, hold)
		if s.actor.process && p.w.known(s.actor.pid) {
			p.m.remember(h, mode)
		}
	}
	p.kind(rt, err, want)
}
