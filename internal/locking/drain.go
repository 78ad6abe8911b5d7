package locking

import (
	"cmp"
	"errors"
	"slices"
)

// errDraining is why nothing is granted on a host that is being drained.
var errDraining = errors.New("this host is being drained and grants no new locks: use another host, or end it with 'vmlockctl drain --undo'")

// Drain makes the Manager grant nothing new, or ends that. What is held stays
// held, and releases are carried out. A request that the backend was asked for
// already is still granted, so Holders may get longer for a moment; Waiting lists
// such requests.
//
// What an owner gives back while the host is drained that same owner may take
// again: libvirt does so with the disks of a virtual machine whose migration to
// another host has failed, and of one that is suspended and resumed.
func (m *Manager) Drain(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining == on {
		return
	}
	m.draining = on
	for o := range m.returners {
		o.returning = nil
	}
	m.returners = map[*owner]struct{}{}
}

// Draining says whether the Manager grants nothing new.
func (m *Manager) Draining() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.draining
}

// lockedDrained is why the owner cannot have ref now; nil if no drain forbids it.
func (m *Manager) lockedDrained(g *Registration, ref Ref) error {
	if !m.draining || g.owner.returning[ref] > 0 || g.again != nil || m.lockedTakenAgain(g.owner, ref) != nil {
		return nil
	}
	return &Error{Kind: KindUnavailable, Op: "acquire", Ref: ref, Err: errDraining}
}

// lockedGaveBack notes what an owner may take again. There is no more of it than
// was held when the drain began.
func (m *Manager) lockedGaveBack(o *owner, ref Ref) {
	if !m.draining || o.gone {
		return
	}
	if o.returning == nil {
		o.returning = map[Ref]int{}
		m.returners[o] = struct{}{}
	}
	o.returning[ref]++
}

// lockedTookAgain notes that the owner has what it may have given back before.
func (m *Manager) lockedTookAgain(g *Registration, ref Ref) {
	o := g.owner
	had := m.lockedForgetGift(o, ref)
	if g.again != nil {
		g.again.had = had // and it stays kept, so that the next process knows that its owner has not asked for it
	} else {
		m.lockedUnkept(o.lockedTakeKept(ref))
		o.lockedReturned(ref)
	}
}

// lockedReturned counts what the owner has back.
func (o *owner) lockedReturned(ref Ref) {
	if o.returning[ref] == 0 {
		return
	}
	if o.returning[ref]--; o.returning[ref] == 0 {
		delete(o.returning, ref)
	}
}

// Returner is an owner that lives, and what it gave back while the host is drained: a
// virtual machine that is suspended, as far as anybody can tell, which may take it again.
type Returner struct {
	Owner Owner
	Ref   Ref
}

// Returning lists them, by owner and resource. It is empty without a drain.
func (m *Manager) Returning() []Returner {
	m.mu.Lock()
	list := []Returner{}
	for o := range m.returners {
		info := Owner{PID: o.pid}
		if o.info != nil {
			info = *o.info
		}
		for ref := range o.returning {
			list = append(list, Returner{Owner: info, Ref: ref})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b Returner) int {
		return cmp.Or(cmp.Compare(a.Owner.PID, b.Owner.PID), cmp.Compare(a.Ref.Lockspace, b.Ref.Lockspace), cmp.Compare(a.Ref.Name, b.Ref.Name))
	})
	return list
}
