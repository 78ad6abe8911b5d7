package locking_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// model says what a Manager must answer and who holds what, written as plainly
// as it can be. It knows nothing of how the Manager works; what names lead to it
// asks the world.
type model struct {
	spaces map[string]bool
	res    map[string]*modelResource // by ID
	actors map[string]*actor
	last   map[int32]string // the actor that a registration of this pid joins
	// departed are pids whose owner's death was seen: nothing is granted in their
	// name unless a process has it.
	departed map[int32]bool
	// unsettled are locks whose release was given up, and that the backend has
	// until it answers.
	unsettled map[string]locking.Mode
	count     int
	draining  bool
}

// actor is one owner: a process, or a pid that none could be found for.
type actor struct {
	name     string
	pid      int32
	process  bool
	gone     bool
	sessions int // and acquires under way
	// ending is until when it is being ended after its connection closed.
	ending time.Time
	// returning is what it gave back since the drain began.
	returning map[locking.Ref]int
	// gave is what it released, of those of which something is known, and has not taken since.
	gave map[locking.Ref]modelGift
}

type modelGift struct {
	mode locking.Mode
	auto bool
}

type modelHold struct {
	actor *actor
	ref   locking.Ref
	auto  bool
	again bool // it was taken again, and not asked for since
}

type modelResource struct {
	mode  locking.Mode
	holds []modelHold
}

func newModel() *model {
	return &model{
		spaces: map[string]bool{"": true}, res: map[string]*modelResource{}, actors: map[string]*actor{},
		last: map[int32]string{}, departed: map[int32]bool{}, unsettled: map[string]locking.Mode{},
	}
}

func (m *model) holdsOf(a *actor) (n int) {
	for _, r := range m.res {
		for _, h := range r.holds {
			if h.actor == a {
				n++
			}
		}
	}
	return n
}

// known says whether anybody still needs an owner, so that its death is seen.
func (m *model) known(a *actor) bool {
	return !a.gone && (a.sessions > 0 || m.holdsOf(a) > 0 || len(a.gave) > 0 || time.Now().Before(a.ending))
}

// register returns who a new session of pid speaks for.
func (m *model) register(pid int32, running bool) *actor {
	a := m.actors[m.last[pid]]
	if a == nil || !m.known(a) || a.process != (running && pid > 0) {
		m.count++
		a = &actor{name: fmt.Sprintf("%d#%d", pid, m.count), pid: pid, process: running && pid > 0, returning: map[locking.Ref]int{}, gave: map[locking.Ref]modelGift{}}
		m.actors[a.name] = a
		if !running && m.departed[pid] {
			a.gone = true
		} else {
			m.last[pid] = a.name
		}
	}
	a.sessions++
	return a
}

// died is told when the process with this pid has ended.
func (m *model) died(pid int32, keep string, last ...locking.Holder) {
	for _, a := range m.actors {
		if a.pid == pid && a.process && !a.gone {
			m.gone(a, keep, last...)
		}
	}
}

// gone ends an owner. The lock on keep cannot be given back by the backend, and is held as last says then.
func (m *model) gone(a *actor, keep string, last ...locking.Holder) {
	if !m.known(a) {
		a.gone = true
		return
	}
	a.gone = true
	clear(a.gave)
	m.departed[a.pid] = true
	for id, r := range m.res {
		if id == keep && !slices.ContainsFunc(r.holds, func(h modelHold) bool { return h.actor != a }) {
			// All are its own: those before the last go, the last one cannot. They are released at once, and which comes last is
			// nobody's to say; but it is one.
			i := slices.IndexFunc(r.holds, func(h modelHold) bool { return len(last) == 1 && h.ref == last[0].Ref })
			r.holds = r.holds[max(i, 0) : max(i, 0)+1]
			continue
		}
		m.remove(id, func(h modelHold) bool { return h.actor == a })
	}
}

func (m *model) remove(id string, which func(modelHold) bool) {
	r := m.res[id]
	r.holds = slices.DeleteFunc(r.holds, which)
	if len(r.holds) == 0 {
		delete(m.res, id)
	}
}

// drop ends one hold.
func (m *model) drop(id string, hold int) {
	r := m.res[id]
	r.holds = slices.Delete(r.holds, hold, hold+1)
	if len(r.holds) == 0 {
		delete(m.res, id)
	}
}

// under finds what is held under a name.
func (m *model) under(ref locking.Ref) string {
	for id, r := range m.res {
		for _, h := range r.holds {
			if h.ref == ref {
				return id
			}
		}
	}
	return ""
}

const granted locking.Kind = 255

// decide says whether a may have id, if the backend has no objection. What cannot
// be noted in the journal is not granted.
func (m *model) decide(a *actor, id string, ref locking.Ref, mode locking.Mode, auto, unnoted bool) locking.Kind {
	r := m.res[id]
	hold := modelHold{actor: a, ref: ref, auto: auto}
	switch {
	case r != nil && (mode == locking.Exclusive || r.mode == locking.Exclusive):
		return locking.KindBusy
	case unnoted:
		return locking.KindUnavailable
	case r == nil:
		m.res[id] = &modelResource{mode: mode, holds: []modelHold{hold}}
	default:
		r.holds = append(r.holds, hold)
	}
	a.returning[ref] = max(a.returning[ref]-1, 0)
	delete(a.gave, ref)
	return granted
}

// takenAgain is the first hold that a has under a name, if that is one it has not asked for; nil if not.
func (m *model) takenAgain(a *actor, ref locking.Ref) *modelHold {
	if r := m.res[m.under(ref)]; r != nil {
		if i := slices.IndexFunc(r.holds, func(h modelHold) bool { return h.ref == ref && h.actor == a }); i >= 0 && r.holds[i].again {
			return &r.holds[i]
		}
	}
	return nil
}

// drained says whether the drain keeps a from having ref.
func (m *model) drained(a *actor, ref locking.Ref) bool {
	return m.draining && a.returning[ref] == 0 && m.takenAgain(a, ref) == nil
}

func (m *model) drain(on bool) {
	if m.draining != on {
		m.draining = on
		for _, a := range m.actors {
			clear(a.returning)
		}
	}
}

// gaveBack is told of a release by the owner.
func (m *model) gaveBack(h modelHold) {
	if m.draining && !h.actor.gone {
		h.actor.returning[h.ref]++
	}
}

// remember is told of a release that is over, of whose owner something is known.
func (m *model) remember(h modelHold, mode locking.Mode) {
	has := false
	for _, r := range m.res {
		has = has || slices.ContainsFunc(r.holds, func(o modelHold) bool { return o.actor == h.actor && o.ref == h.ref })
	}
	if h.actor.process && !h.actor.gone && !has {
		h.actor.gave[h.ref] = modelGift{mode, h.auto}
	}
}

// gifts is everything that is remembered, to compare.
func (m *model) gifts() []string {
	list := []string{}
	for _, a := range m.actors {
		for ref, g := range a.gave {
			list = append(list, fmt.Sprint(a.pid, ref, g.mode))
		}
	}
	slices.Sort(list)
	return list
}

// dropDead releases what those hold who are gone, which whoever wants id tries.
func (m *model) dropDead(id string) {
	if m.res[id] != nil {
		m.remove(id, func(h modelHold) bool { return h.actor.gone })
	}
}

// release finds which hold a release ends: the first of its own, or else of one
// who was nobody's process and had the same pid.
func (m *model) release(a *actor, ref locking.Ref) (id string, hold int, kind locking.Kind) {
	id = m.under(ref)
	if !m.spaces[ref.Lockspace] {
		return "", -1, locking.KindNoLockspace
	}
	if id == "" {
		return "", -1, locking.KindNotLocked
	}
	holds := m.res[id].holds
	hold = slices.IndexFunc(holds, func(h modelHold) bool { return h.ref == ref && h.actor == a })
	if hold < 0 {
		hold = slices.IndexFunc(holds, func(h modelHold) bool {
			return h.ref == ref && !h.actor.process && h.actor.pid == a.pid
		})
	}
	if hold < 0 {
		return id, -1, locking.KindNotOwner
	}
	return id, hold, granted
}

// holders is the whole table, as text in any order, to compare.
func (m *model) holders() []string {
	list := []string{}
	for _, r := range m.res {
		for _, h := range r.holds {
			list = append(list, fmt.Sprint(h.actor.pid, h.ref, r.mode))
		}
	}
	slices.Sort(list)
	return list
}
