package locking

import (
	"errors"
	"fmt"
	"time"
)

// A backend may be unable to say for a while, after a restart, what is held. Then
// the Manager serves all the same: owners are known and watched, what the journal
// has is listed as held, and those resources are refused. The backend is asked
// again until it knows.

// againInterval is how often.
const againInterval = 250 * time.Millisecond

// laterRestore is what is left to do of a Restore. One goroutine works on it.
type laterRestore struct {
	b      Restorer
	doubt  bool
	since  time.Time
	claims []claim // in order of acquisition; their resources have notYet set
	open   []Entry // to be settled after the claims

	// Guarded by Manager.mu.
	why     error               // ErrNotYet, wrapped
	openIDs map[string]struct{} // of open; not changed
}

// notYet is the ErrNotYet of a Restore, or nil.
func notYet(results []Restored) error {
	if len(results) > 0 && errors.Is(results[0].Err, ErrNotYet) {
		return results[0].Err
	}
	return nil
}

// NotYet is why locks from before a restart are not taken back yet: ErrNotYet, wrapped.
// It is nil if none waits.
func (m *Manager) NotYet() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.later == nil {
		return nil
	}
	return m.later.why
}

// restoreLater begins to ask again, and returns how many entries wait.
func (m *Manager) restoreLater(l *laterRestore, why error) (n int) {
	l.since, l.why = time.Now(), why
	l.openIDs = make(map[string]struct{}, len(l.open))
	for _, e := range l.open {
		l.openIDs[e.ID] = struct{}{}
	}
	n = len(l.open)
	for i := range l.claims {
		n += len(l.claims[i].entries)
	}
	m.tellLater(n, why, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.later = l
	if !m.closed {
		m.work.Go(func() { m.askAgain(l, n) })
	}
	return n
}

func (m *Manager) askAgain(l *laterRestore, n int) {
	m.every(againInterval, func() (done bool) {
		why := m.again(l)
		if m.ctx.Err() != nil {
			return true // the next process finds all of it in the journal
		}
		m.mu.Lock()
		if l.why = why; why == nil {
			m.later, m.restored = nil, true
		}
		m.mu.Unlock()
		if why == nil {
			m.tellLater(n, nil, time.Since(l.since))
		}
		return why == nil
	})
}

// again asks once, and returns nil when nothing is left to do. What it returns
// after Close has begun means nothing.
func (m *Manager) again(l *laterRestore) error {
	if len(l.claims) > 0 {
		var all []Held
		for i := range l.claims {
			all = append(all, l.claims[i].held...)
		}
		results := l.b.Restore(m.ctx, all)
		if why := notYet(results); why != nil || m.ctx.Err() != nil {
			return why
		}
		var freed []freedHold
		for i := range l.claims {
			c := &l.claims[i]
			c.results, results = results[:len(c.held)], results[len(c.held):]
			freed = append(freed, m.resolveLate(l.b, c)...)
		}
		l.claims = nil
		m.giveBackLate(freed)
	}
	var why error
	l.open, why = m.settle(m.ctx, l.b, l.open, l.doubt)
	return why
}

// freedHold is a hold that its owner does not need any more.
type freedHold struct {
	r *resource
	h *hold
}

// resolveLate gives a resource what came of it, and returns those of its holds that
// nobody needs any more.
func (m *Manager) resolveLate(b Restorer, c *claim) (freed []freedHold) {
	r := c.r
	if r.enter(m.ctx) != nil {
		return nil // Close has begun
	}
	defer r.exit()
	m.mu.Lock()
	for _, h := range r.holds {
		m.counts.changed(r, h, -1)
	}
	ended := c.resolve(b)
	r.notYet = false
	for _, h := range r.holds {
		m.counts.changed(r, h, 1)
	}
	for _, e := range ended {
		for _, h := range r.holds {
			if h.seq == e.Seq {
				m.lockedRemoveHold(r, h)
				break
			}
		}
	}
	first, now := r.holds[0], time.Now()
	var events []Event
	for _, h := range r.holds {
		if h.owner.nobody {
			freed = append(freed, freedHold{r, h})
			continue
		}
		e := Event{Kind: TakenBack, Ref: h.ref, Owner: *h.info, Mode: r.mode, Time: now, Held: now.Sub(h.since)}
		if r.lost != nil {
			e.Kind, e.Err = Lost, r.lost
		}
		events = append(events, e)
	}
	m.mu.Unlock()
	describe(r.handle, *first.info, first.since)
	for _, e := range events {
		m.observe(e)
	}
	for _, e := range ended {
		m.forget(e.Seq, true)
	}
	m.forgetKept()
	return freed
}

// giveBackLate releases what owners gave back, or left, meanwhile.
func (m *Manager) giveBackLate(freed []freedHold) {
	jobs := make(chan freedHold, len(freed))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return // the journal says that nobody needs them
	}
	for _, f := range freed {
		f.r.users++
		jobs <- f
	}
	close(jobs)
	for range min(maxReleases, len(freed)) {
		m.work.Go(func() {
			for f := range jobs {
				m.releaseHold(f.r, f.h, ReleasedUntold)
				m.leave(f.r)
			}
		})
	}
}

// dropLater is drop for a resource of which it is not known yet whether it is held.
// The owner does not have it any more, and it is released once that is known.
func (m *Manager) dropLater(r *resource, h *hold, kind EventKind) error {
	m.mu.Lock()
	why := ErrNotYet // an owner may be found gone before the reason is noted
	if m.later != nil {
		why = m.later.why
	}
	mode, given := r.mode, h.owner.nobody
	m.mu.Unlock()
	err := &Error{Kind: KindUnavailable, Op: "release", Ref: h.ref, Err: fmt.Errorf("%w: %w", ErrUnderway, why)}
	if given {
		return err
	}
	_ = m.journal.Releasing(h.seq)
	m.mu.Lock()
	m.lockedAddHold(r, &hold{owner: nobody(h.owner.pid), info: h.info, ref: h.ref, since: h.since, seq: h.seq})
	if kind == Released {
		m.lockedGaveBack(h.owner, h.ref)
	}
	m.lockedRemoveHold(r, h)
	m.mu.Unlock()
	m.forgetKept()
	m.observe(Event{Kind: kind, Ref: h.ref, Owner: *h.info, Mode: mode, Held: time.Since(h.since), Err: err})
	return err
}

// lockedNotYet is why nothing can be done with a resource yet; nil if it can.
func (m *Manager) lockedNotYet(r *resource, ref Ref) error {
	if m.later == nil {
		return nil
	}
	if _, open := m.later.openIDs[r.id]; !open && !r.notYet {
		return nil
	}
	return &Error{Kind: KindUnavailable, Op: "acquire", Ref: ref, Err: m.later.why}
}
