package locking

import (
	"context"
	"slices"
	"time"
)

// resource is one thing that can be locked, under whatever names.
type resource struct {
	id string
	// turn is taken while somebody works on the resource. Whoever took it may call
	// the handle's methods.
	turn turn

	// Guarded by Manager.mu.
	users  int32 // who works on it or waits for that; it stays in the table for them
	mode   Mode
	notYet bool    // it is not known yet whether lost has to be set; until then no hold ends
	handle Handle  // holds the lock while holds is not empty
	holds  []*hold // oldest first
	lost   error   // why the lock of holds could not be taken back after a restart
}

// hold is one owner's use of a resource. An owner that shares a resource twice
// has two.
type hold struct {
	owner *owner
	info  *Owner    // as registered by the session that acquired it; never changed
	of    *resource // nil before and after its time among the resource's holds
	ref   Ref
	at    int32     // its place in owner.holds
	auto  bool      // it was acquired with autocreate
	again bool      // by TakeAgain, and its owner has not asked for it since
	since time.Time // of the grant; in the journal, of the request
	seq   uint64    // of its entry in the journal
}

func (r *resource) enter(ctx context.Context) error { return r.turn.take(ctx) }

func (r *resource) exit() { r.turn.give() }

func (r *resource) lockedHolders() []Holder {
	list := make([]Holder, len(r.holds))
	for i, h := range r.holds {
		list[i] = Holder{Owner: *h.info, Ref: h.ref, Mode: r.mode, Since: h.since, ID: r.id}
	}
	return list
}

// lockedHoldOf finds the hold that o may release. That can be one of an
// unverified owner with the same pid: when a process gets this pid later, there
// is nobody else to speak for it.
func (r *resource) lockedHoldOf(o *owner, ref Ref) *hold {
	var other *hold
	for _, h := range r.holds {
		if h.ref != ref {
			continue
		}
		if h.owner == o {
			return h
		}
		if other == nil && h.owner.proc == nil && h.owner.pid == o.pid {
			other = h
		}
	}
	return other
}

// lockedHeldByGone lists what owners who are gone still have.
func (r *resource) lockedHeldByGone() (list []*hold) {
	for _, h := range r.holds {
		if h.owner.gone {
			list = append(list, h)
		}
	}
	return list
}

// lockedUse finds or makes the resource and keeps it in the table until leave.
func (m *Manager) lockedUse(id string) *resource {
	r := m.resources.Get(id)
	if r == nil {
		r = &resource{id: id}
		m.resources.Put(r)
	}
	r.users++
	return r
}

func (m *Manager) leave(r *resource) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.users--
	if r.users == 0 && len(r.holds) == 0 {
		m.resources.Remove(r.id)
	}
}

func (m *Manager) lockedAddHold(r *resource, h *hold) {
	m.holding = holding{}
	r.holds = append(r.holds, h)
	h.of = r
	m.names.Put(h)
	h.owner.lockedAdd(h)
	m.counts.changed(r, h, 1)
}

func (m *Manager) lockedRemoveHold(r *resource, h *hold) {
	m.holding = holding{}
	i := slices.Index(r.holds, h)
	r.holds = slices.Delete(r.holds, i, i+1)
	if m.names.Get(h.ref) == h {
		m.names.Remove(h.ref)
		if i := slices.IndexFunc(r.holds, func(o *hold) bool { return o.ref == h.ref }); i >= 0 {
			m.names.Put(r.holds[i])
		}
	}
	if h.again {
		m.lockedUnkept(h.owner.lockedTakeKept(h.ref))
	}
	m.counts.changed(r, h, -1)
	h.owner.lockedRemove(h)
	h.of = nil
	if len(r.holds) == 0 {
		r.handle, r.lost = nil, nil
	}
	m.lockedForgetOwner(h.owner)
}

// lockedNamed is the resource that is held under a name, or nil.
func (m *Manager) lockedNamed(ref Ref) *resource {
	if h := m.names.Get(ref); h != nil {
		return h.of
	}
	return nil
}

// lockedAdd notes that h is the owner's.
func (o *owner) lockedAdd(h *hold) {
	h.owner, h.at = o, int32(len(o.holds))
	o.holds = append(o.holds, h)
}

// lockedRemove is the opposite. What was the last takes its place.
func (o *owner) lockedRemove(h *hold) {
	last := len(o.holds) - 1
	o.holds[h.at] = o.holds[last]
	o.holds[h.at].at = h.at
	o.holds[last] = nil
	o.holds = o.holds[:last]
	switch {
	case last == 0:
		o.holds = nil
	case cap(o.holds) > 4*last+64:
		o.holds = slices.Clone(o.holds)
	}
}
