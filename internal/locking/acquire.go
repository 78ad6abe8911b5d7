package locking

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxTries bounds how often an Acquire starts again because the name led
// somewhere else meanwhile. Twice is rare; a file that somebody replaces
// without end is not one to grant.
const maxTries = 16

// errAgain says that what a name leads to has changed since it was looked up.
var errAgain = errors.New("changed meanwhile")

// Acquire takes a lock for the registered owner, and never waits for another
// owner to give it back. It returns nil if and only if the owner holds it now;
// every error is an *Error.
func (g *Registration) Acquire(ctx context.Context, ref Ref, mode Mode, autocreate bool) error {
	m := g.m
	start := time.Now()
	ctx, cancel := m.deadlines.of(ctx)
	defer cancel()
	err := g.tryAcquire(ctx, start, ref, mode, autocreate)
	if err != nil {
		findHolders(ctx, err)
		m.observe(Event{Kind: Refused, Ref: ref, Owner: *g.info, Mode: mode, Err: err, Took: time.Since(start)})
	}
	return err
}

func (g *Registration) tryAcquire(ctx context.Context, start time.Time, ref Ref, mode Mode, autocreate bool) error {
	err := errAgain
	for try := 0; err == errAgain && try < maxTries; try++ {
		err = g.m.acquire(ctx, start, g, ref, mode, autocreate)
	}
	if err == errAgain {
		err = &Error{Kind: KindUnavailable, Op: "acquire", Ref: ref,
			Err: fmt.Errorf("the name led to another file in each of %d tries", maxTries)}
	}
	return err
}

func (m *Manager) acquire(ctx context.Context, start time.Time, g *Registration, ref Ref, mode Mode, autocreate bool) error {
	m.mu.Lock()
	err := m.lockedCheck("acquire", ref)
	if err == nil && g.owner.gone {
		err = &Error{Kind: KindOwnerGone, Ref: ref, PID: g.info.PID}
	}
	if err == nil {
		err = m.lockedDrained(g, ref)
	}
	if err != nil {
		m.mu.Unlock()
		return err
	}
	defer m.ended(g, m.lockedBegin(g, ref, mode, start))
	// A name that is held stays with the resource it was held for, even if
	// another file has that name by now: so it is not opened again.
	r := m.lockedNamed(ref)
	if r != nil {
		r.users++
	}
	m.mu.Unlock()

	var h Handle
	if r == nil {
		h, err = m.backend.Open(ctx, ref, autocreate)
		if err != nil {
			return m.failed("acquire", ref, err)
		}
		m.mu.Lock()
		r = m.lockedUse(h.ID())
		m.mu.Unlock()
	}
	defer m.leave(r)
	if err := r.enter(ctx); err != nil {
		closeHandle(h)
		return &Error{Kind: KindUnavailable, Op: "acquire", Ref: ref,
			Err: fmt.Errorf("another operation on it has not ended: %w", err)}
	}
	defer r.exit()
	granted, err := m.acquireInTurn(ctx, g, ref, mode, autocreate, r, h)
	if err != nil {
		return err
	}
	m.forgetKept()
	// Told before the turn is over, so that nobody hears of the release first.
	now := time.Now()
	kind := Granted
	if g.again != nil {
		kind = TakenAgain
	}
	m.observe(Event{Kind: kind, Ref: ref, Owner: *g.info, Mode: mode, Time: now, Took: now.Sub(start)})
	if g.ownerGone() {
		// It ended while the backend was granting: its locks were released
		// already, and nobody would ever come for this one.
		_ = m.drop(ctx, r, granted, ReleasedGone)
		return &Error{Kind: KindOwnerGone, Ref: ref, PID: g.info.PID}
	}
	if g.again == nil {
		return nil
	}
	if !m.stands(g) {
		return m.giveBackAgain(ctx, r, g, granted)
	}
	m.mu.Lock()
	g.owner.lockedReturned(ref)
	m.mu.Unlock()
	return nil
}

// giveBackAgain ends what TakeAgain took, as its owner does not use it any more.
func (m *Manager) giveBackAgain(ctx context.Context, r *resource, g *Registration, h *hold) error {
	o := g.owner
	m.mu.Lock()
	kept := o.lockedTakeKept(h.ref) // not to be forgotten together with the hold
	returning := o.returning[h.ref]
	m.mu.Unlock()
	err := m.drop(ctx, r, h, Released)
	m.mu.Lock()
	if o.returning[h.ref] > returning {
		o.lockedReturned(h.ref) // while the host is drained its owner may take as much as before, and no more
	}
	anew := h.of == nil && g.again.had != nil && m.lockedRemember(o, h.ref, g.again.had)
	if anew || h.of != nil {
		m.lockedKept(o, h.ref, kept)
	} else {
		m.lockedUnkept(kept)
	}
	m.mu.Unlock()
	if anew {
		m.keepAnew(o, h.ref) // it may have been released once more meanwhile
	}
	m.forgetKept()
	if err != nil {
		return err
	}
	return &Error{Kind: KindUnavailable, Op: "take again", Ref: h.ref, Err: ErrTaken}
}

// ownerGone says whether the owner was proven gone.
func (g *Registration) ownerGone() bool {
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	return g.owner.gone
}

// acquireInTurn decides, with r's turn taken. h is nil if the name was held
// when it was looked up; it is closed here unless it comes to hold the lock.
func (m *Manager) acquireInTurn(ctx context.Context, g *Registration, ref Ref, mode Mode, autocreate bool, r *resource, h Handle) (*hold, error) {
	m.mu.Lock()
	gone := r.lockedHeldByGone()
	m.mu.Unlock()
	for _, dead := range gone {
		// Its release has failed before, or its turn has not come. Without another
		// try here nobody would ever get what it held.
		_ = m.drop(ctx, r, dead, ReleasedGone)
	}
	m.mu.Lock()
	if now := m.lockedNamed(ref); now != r && (now != nil || h == nil) {
		m.mu.Unlock()
		closeHandle(h)
		return nil, errAgain
	}
	if err := m.lockedDrained(g, ref); err != nil {
		m.mu.Unlock()
		closeHandle(h)
		return nil, err
	}
	if err := m.lockedNotYet(r, ref); err != nil {
		m.mu.Unlock()
		closeHandle(h)
		return nil, err
	}
	if err := g.lockedOvertaken(ref); err != nil {
		m.mu.Unlock()
		closeHandle(h)
		return nil, err
	}
	if had := m.lockedTakenAgain(g.owner, ref); had != nil && g.again == nil && had.of == r && r.mode == mode {
		handle := r.handle
		m.mu.Unlock()
		closeHandle(h)
		if err := m.admit(ctx, handle, ref); err != nil {
			return nil, err
		}
		m.mu.Lock()
		had.again = false // its owner has asked for it
		m.lockedUnkept(g.owner.lockedTakeKept(ref))
		m.mu.Unlock()
		return had, nil
	}
	granted := &hold{owner: g.owner, info: g.info, ref: ref, since: time.Now(), auto: autocreate, again: g.again != nil}
	if len(r.holds) > 0 {
		defer closeHandle(h)
		err := r.lockedRefusal(ref, mode)
		handle := r.handle
		m.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if err := m.admit(ctx, handle, ref); err != nil {
			return nil, err
		}
		// The backend's lock serves this owner too. The turn keeps the others away.
		if granted.seq, err = m.journal.Intend(entryOf(EntryGranted, handle, granted, mode, autocreate)); err != nil {
			return nil, noted(ref, err)
		}
		granted.since = time.Now()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.lockedAddHold(r, granted)
		m.lockedTookAgain(g, ref)
		return granted, nil
	}
	m.mu.Unlock()
	if err := m.lock(ctx, h, granted, mode, autocreate); err != nil {
		return nil, err
	}
	describe(h, *granted.info, granted.since)
	m.mu.Lock()
	defer m.mu.Unlock()
	r.mode, r.handle = mode, h
	m.lockedAddHold(r, granted)
	m.lockedTookAgain(g, ref)
	return granted, nil
}

// admit asks whether somebody may have what the backend need not be asked for.
func (m *Manager) admit(ctx context.Context, h Handle, ref Ref) error {
	if a, ok := h.(Admitter); ok {
		return m.failed("acquire", ref, a.Admit(ctx))
	}
	return nil
}

// lockedRefusal is why one more owner cannot have the resource; nil if it can
// share it.
func (r *resource) lockedRefusal(ref Ref, mode Mode) error {
	switch {
	case r.lost != nil:
		return &Error{Kind: KindUnavailable, Op: "acquire", Ref: ref, Err: fmt.Errorf("%w (%w)", errLost, r.lost)}
	case mode == Exclusive || r.mode == Exclusive:
		e := &Error{Kind: KindBusy, Ref: ref, Holders: r.lockedHolders()}
		if s, ok := r.handle.(Sharer); ok && r.mode == Shared {
			e.sharers = s.Sharers()
		}
		return e
	}
	return nil
}

// lock asks the backend, between two records of the journal. When it fails h is
// closed and nothing is held.
func (m *Manager) lock(ctx context.Context, h Handle, granted *hold, mode Mode, autocreate bool) (err error) {
	granted.seq, err = m.journal.Intend(entryOf(EntryIntended, h, granted, mode, autocreate))
	if err != nil {
		h.Close()
		return noted(granted.ref, err)
	}
	if err := h.Lock(ctx, mode); err != nil {
		h.Close()
		stale, busy := errors.Is(err, ErrStale), errors.Is(err, ErrBusy)
		m.forget(granted.seq, stale || busy || errors.Is(err, ErrNotAsked))
		if stale {
			return errAgain
		}
		return m.failed("acquire", granted.ref, err)
	}
	if err := m.journal.Grant(granted.seq); err != nil {
		// If this fails too the lock stays in the backend, and keeps all others out,
		// until the next process finds the entry.
		if h.Unlock(ctx) == nil {
			m.forget(granted.seq, true)
		}
		return noted(granted.ref, err)
	}
	granted.since = time.Now()
	return nil
}

func closeHandle(h Handle) {
	if h != nil {
		h.Close()
	}
}
