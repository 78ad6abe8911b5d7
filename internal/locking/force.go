package locking

import (
	"context"
	"errors"
	"slices"
)

// ForceRelease gives back, for an operator, what is held under a name, or those
// holds of it that only picks; nil picks all. It says what was released.
//
// Without force it does nothing if one of the owners may be alive; the error is
// of KindOwnerLives and names them. An owner without a process that can be found
// - unverified, or in another pid namespace - may be alive unless no process has
// its pid. With force a living owner loses its lock and is not told: the same
// disk can then be used by another one, which destroys it.
//
// A lock that the backend cannot give back stays, as with Release; the error is
// that of Release, and there may be holds that were released before it.
func (m *Manager) ForceRelease(ctx context.Context, ref Ref, only func(Holder) bool, force bool) (released []Holder, err error) {
	ctx, cancel := m.deadlines.of(ctx)
	defer cancel()
	released = []Holder{}
	var r *resource
	for try := 0; try < maxTries; try++ {
		if r, err = m.heldInTurn(ctx, ref); err != errAgain {
			break
		}
	}
	if err == errAgain {
		err = &Error{Kind: KindNotLocked, Ref: ref}
	}
	if err != nil {
		return released, err
	}
	defer m.leave(r)
	defer r.exit()
	holds, living := m.pick(r, ref, only)
	switch {
	case len(holds) == 0:
		return released, &Error{Kind: KindNotLocked, Ref: ref}
	case len(living) > 0 && !force:
		return released, &Error{Kind: KindOwnerLives, Ref: ref, Holders: living}
	}
	for _, h := range holds {
		m.mu.Lock()
		holder := Holder{Owner: *h.info, Ref: h.ref, Mode: r.mode, Since: h.since, ID: r.id}
		m.mu.Unlock()
		err = m.drop(ctx, r, h, Forced)
		m.mu.Lock()
		still := slices.Contains(r.holds, h)
		m.mu.Unlock()
		if !still {
			released = append(released, holder)
		}
		if err != nil {
			break
		}
	}
	return released, err
}

// pick lists the holds of r, whose turn is taken, that an operator means, and
// the holders among them that may be alive.
func (m *Manager) pick(r *resource, ref Ref, only func(Holder) bool) (holds []*hold, living []Holder) {
	m.mu.Lock()
	var doubtful []*hold
	holders := map[*hold]Holder{}
	for _, h := range r.holds {
		holder := Holder{Owner: *h.info, Ref: h.ref, Mode: r.mode, Since: h.since, ID: r.id}
		if h.ref != ref || only != nil && !only(holder) {
			continue
		}
		holds, holders[h] = append(holds, h), holder
		switch o := h.owner; {
		case o.gone || o.isGone():
		case o.proc != nil:
			living = append(living, holder)
		default:
			doubtful = append(doubtful, h)
		}
	}
	starts := map[*hold]uint64{}
	for _, h := range doubtful {
		starts[h] = h.owner.start
	}
	m.mu.Unlock()
	for _, h := range doubtful {
		if m.mayLive(h.info.PID, starts[h]) {
			living = append(living, holders[h])
		}
	}
	return holds, living
}

// mayLive says whether an owner without a process may be alive all the same.
// start is when its process started, or 0 if that is not known.
func (m *Manager) mayLive(pid int32, start uint64) bool {
	if pid <= 0 {
		return true
	}
	proc, err := m.procs.Open(pid)
	if err != nil {
		return !errors.Is(err, ErrNoProcess)
	}
	defer proc.Close()
	return start == 0 || proc.StartTime() == start
}
