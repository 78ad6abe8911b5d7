package locking

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Release gives back one lock of the registered owner. Whoever registered the
// same pid may release it. When the backend does not answer in time the error
// is of KindUnavailable; the owner has lost the lock all the same, and the
// backend goes on giving it back. When the turn of this release did not come in
// time the error is of KindUnavailable too, and the owner still has the lock.
func (g *Registration) Release(ctx context.Context, ref Ref) error {
	ctx, cancel := g.m.deadlines.of(ctx)
	defer cancel()
	m := g.m
	stamp := m.stamp(g)
	err := errAgain
	for try := 0; err == errAgain && try < maxTries; try++ {
		err = m.release(ctx, g, ref, stamp)
	}
	if err == errAgain {
		err = &Error{Kind: KindNotLocked, Ref: ref}
	}
	return err
}

func (m *Manager) release(ctx context.Context, g *Registration, ref Ref, stamp Stamp) error {
	m.mu.Lock()
	again := m.lockedNamed(ref) == nil && m.lockedReleasedAgain(g.owner, ref, stamp) // a TakeAgain under way comes after this, and finds it
	m.mu.Unlock()
	if again {
		m.keepAnew(g.owner, ref)
	}
	r, err := m.heldInTurn(ctx, ref)
	if err != nil {
		return err
	}
	defer m.leave(r)
	defer r.exit()
	m.mu.Lock()
	h := r.lockedHoldOf(g.owner, ref)
	again = h == nil && m.lockedReleasedAgain(g.owner, ref, stamp)
	worth := h != nil && m.lockedWorth(h.owner, ref, stamp, h)
	given := &gift{info: g.info, mode: r.mode, stamp: stamp}
	m.mu.Unlock()
	if again {
		m.keepAnew(g.owner, ref)
	}
	if h == nil {
		return &Error{Kind: KindNotOwner, Ref: ref, PID: g.info.PID}
	}
	given.autocreate = h.auto
	kept := uint64(0)
	if worth {
		kept = m.keep(h.owner, ref, given) // before it is released, or a kill in between would have it forgotten
	}
	err = m.drop(ctx, r, h, Released)
	m.mu.Lock()
	more := h.of == nil && m.lockedRemember(h.owner, ref, given)
	if more {
		m.lockedKept(h.owner, ref, kept)
	} else {
		m.lockedUnkept(kept)
	}
	m.mu.Unlock()
	m.forgetKept()
	if more {
		m.witness.GaveBack()
	}
	return err
}

// heldInTurn finds what is held under a name, and takes its turn, so that the
// name leads there until r.exit. m.leave has to be called after that.
func (m *Manager) heldInTurn(ctx context.Context, ref Ref) (*resource, error) {
	m.mu.Lock()
	r := m.lockedNamed(ref)
	err := m.lockedCheck("release", ref)
	if err == nil && r == nil {
		err = &Error{Kind: KindNotLocked, Ref: ref}
	}
	if err != nil {
		m.mu.Unlock()
		return nil, err
	}
	r.users++
	m.mu.Unlock()
	if err := r.enter(ctx); err != nil {
		m.leave(r)
		return nil, &Error{Kind: KindUnavailable, Op: "release", Ref: ref,
			Err: fmt.Errorf("another operation on it has not ended: %w", err)}
	}
	m.mu.Lock()
	same := m.lockedNamed(ref) == r
	m.mu.Unlock()
	if !same {
		r.exit()
		m.leave(r)
		return nil, errAgain
	}
	return r, nil
}

// drop ends one hold, with r's turn taken, and gives the lock back if it was
// the last one.
func (m *Manager) drop(ctx context.Context, r *resource, h *hold, kind EventKind) error {
	start := time.Now()
	m.mu.Lock()
	if r.notYet {
		m.mu.Unlock()
		return m.dropLater(r, h, kind)
	}
	last := len(r.holds) == 1
	e := Event{Kind: kind, Ref: h.ref, Owner: *h.info, Mode: r.mode, Held: start.Sub(h.since)}
	m.mu.Unlock()
	certain := true
	if last {
		// If this record fails the next process may ask for a lock that is gone, and
		// raise an alarm for nothing; a release must not fail for that.
		_ = m.journal.Releasing(h.seq)
		if err := r.handle.Unlock(ctx); err != nil {
			certain = false
			e.Err = m.failed("release", h.ref, err)
			if !errors.Is(err, ErrUnderway) && (ctx.Err() == nil || !errors.Is(err, ctx.Err())) {
				// The owner still has it, so the next process must not release it.
				_ = m.journal.Grant(h.seq)
				e.Kind = ReleaseFailed
				e.endsNow(start)
				m.observe(e)
				return e.Err
			}
		}
	}
	m.forget(h.seq, certain)
	m.mu.Lock()
	if kind == Released {
		m.lockedGaveBack(h.owner, h.ref)
	}
	m.lockedRemoveHold(r, h)
	m.mu.Unlock()
	m.forgetKept()
	e.endsNow(start)
	m.observe(e)
	return e.Err
}
