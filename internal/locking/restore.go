package locking

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Held is a lock that an earlier process of this host held, for a backend to
// take back.
type Held struct {
	ID         string // Handle.ID of the handle that held it
	Ref        Ref    // the name it was taken under first
	Mode       Mode
	Autocreate bool
	Note       string // Noter.Note of that handle; "" if it had none, or an older version took the lock
	// Told says that a client counts on it: it was granted, and not given back.
	Told bool
}

// Restored is what came of a Held. If Err is nil the Handle holds the lock. If
// Err is ErrUnderway, wrapped, it is not known yet whether the lock is held; the
// Handle's Unlock then returns at once, and the backend gives the lock back as
// soon as it finds that it is. With any other error there is no Handle; if it is
// ErrNotYet, wrapped, nothing was tried.
type Restored struct {
	Handle Handle
	// Err is nil if the lock was held all the time. With ErrNotHeld and a Handle it was not, and is
	// lost, and the Handle has it since now, to keep others out until its owner is gone.
	Err error
	// Either says that the backend cannot tell in which mode the lock was held: it may be
	// that of any record of its ID. The Handle holds it in Mode, the strongest it can have been.
	Either bool
	Mode   Mode // with Either only
}

// Restorer is a Backend whose locks outlive the process that took them.
type Restorer interface {
	// Restore takes back locks, which are in the order in which they were
	// acquired, and says what came of each. It waits for nobody who holds locks.
	// One that is held several times in one mode (as Held several times in held, or
	// in later calls) is taken back as often. If it cannot be told yet what is held
	// it returns soon, with ErrNotYet for all of held.
	Restore(ctx context.Context, held []Held) []Restored
	// Unsettled is how many requests were given up, by the context of a Lock or an
	// Unlock, whose outcome is not certain yet.
	Unsettled() int
}

// errLost is why a resource cannot be had after a lock of it could not be taken
// back.
var errLost = withCause("lost", "a lock on it from before the lock daemon's restart could not be taken back, "+
	"so it is not known whether its owner is safe: end that virtual machine, then it can be used again")

// Restore takes back what earlier processes of this host held. It must be called
// before the Manager is used, with what the journal has, in order of Seq. It
// releases what belongs to owners who are gone, and what no client was told of.
//
// With doubt, which says that the journal may lack records, every entry may be
// of a lock that is in use: then nothing is released that its owner does not
// give back or leave.
//
// A lock that cannot be taken back makes its resource unusable until its owner
// releases it or is gone; Observe is told of each.
//
// later is how many entries wait for the backend to say what is held (ErrNotYet).
// Their resources are refused until then, and the Manager goes on asking.
func (m *Manager) Restore(ctx context.Context, b Restorer, entries []Entry, lockspaces []string, doubt bool) (later int) {
	m.mu.Lock()
	m.unsettled = b.Unsettled
	for _, path := range lockspaces {
		m.lockspaces[path] = struct{}{}
	}
	m.counts.lockspaces.Store(int64(len(m.lockspaces)))
	m.mu.Unlock()
	granted := entries
	var open []Entry
	for _, e := range entries {
		if e.State != EntryGranted {
			open = append(open, e)
		}
	}
	if len(open) > 0 && !doubt {
		granted = slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return e.State != EntryGranted })
	}
	// What was granted comes first: of a shared lock there can be two on this host,
	// one in use and one being released, and they cannot be told apart.
	claims, why := m.takeBack(ctx, b, granted)
	if why == nil {
		open, why = m.settle(ctx, b, open, doubt)
	}
	if why == nil {
		m.mu.Lock()
		m.restored = true
		m.mu.Unlock()
		return 0
	}
	return m.restoreLater(&laterRestore{b: b, doubt: doubt, claims: claims, open: open}, why)
}

// claim is what entries say of one resource.
type claim struct {
	entries []*Entry // in order of Seq
	held    []Held   // one for each mode
	results []Restored
	r       *resource // what came of it
	one     [1]*Entry // room for entries in the usual case
}

// claims sorts entries by resource. Only with doubt, or after one, can there be two
// modes of one, and then at most one of them is still held.
//
// A restart waits for this with perhaps ten thousand entries, and most of its time
// is for memory that was never touched before: so nothing is copied.
func claims(entries []Entry) []claim {
	byID := make(map[string]int32, len(entries))
	list := make([]claim, 0, len(entries)) // never moved, as one is pointed at
	for i := range entries {
		e := &entries[i]
		at, ok := byID[e.ID]
		if !ok {
			at = int32(len(list))
			byID[e.ID] = at
			list = append(list, claim{})
			list[at].entries = list[at].one[:0]
		}
		list[at].entries = append(list[at].entries, e)
	}
	return list
}

// allHeld lists what is to be taken back, and tells each claim its part.
func allHeld(list []claim) []Held {
	all := make([]Held, 0, len(list))
	for i := range list {
		first := len(all)
		for _, e := range list[i].entries {
			if !slices.ContainsFunc(all[first:], func(h Held) bool { return h.Mode == e.Mode }) {
				all = append(all, Held{ID: e.ID, Ref: e.Ref, Mode: e.Mode, Autocreate: e.Autocreate, Note: e.Note, Told: e.State == EntryGranted})
			}
		}
	}
	rest := all
	for i := range list {
		n := 1
		for n < len(rest) && rest[n].ID == rest[0].ID {
			n++
		}
		list[i].held, rest = rest[:n:n], rest[n:]
	}
	return all
}

// resolve gives the resource what came of it. If nothing was taken back it is
// lost; if one mode was, the entries of the other are of locks that ended: they are
// returned, and are not among those of the claim any more. If the backend cannot tell
// the modes apart each entry may be the one, and all stay.
func (c *claim) resolve(b Restorer) (ended []*Entry) {
	r := c.r
	var maybe []Held
	var anew Handle
	for i, res := range c.results {
		switch {
		case res.Err == nil:
			r.mode, r.handle, r.lost = c.held[i].Mode, res.Handle, nil
			if res.Either {
				r.mode = res.Mode
				return nil
			}
			if len(c.held) > 1 {
				other := func(e *Entry) bool { return e.Mode != r.mode }
				ended = slices.DeleteFunc(slices.Clone(c.entries), func(e *Entry) bool { return !other(e) })
				c.entries = slices.DeleteFunc(c.entries, other)
			}
			return ended
		case !errors.Is(res.Err, ErrNotHeld):
			h := c.held[i]
			h.Told = false // when it is asked for again its owner does not count on it any more
			maybe = append(maybe, h)
			r.lost = res.Err
		default:
			if r.lost == nil {
				r.lost = res.Err
			}
			if res.Handle != nil {
				anew = res.Handle
			}
		}
	}
	r.handle = lostHandle{id: r.id, b: b, held: maybe, anew: anew}
	return nil
}

// takeBack restores the granted locks with their owners. If why is not nil it is
// ErrNotYet, wrapped: only the owners were restored, and list is what is left to do.
func (m *Manager) takeBack(ctx context.Context, b Restorer, entries []Entry) (list []claim, why error) {
	list = claims(entries)
	results := b.Restore(ctx, allHeld(list))
	why = notYet(results)
	var unseen []Event
	var ended, late []*Entry
	owners := map[ownerKey]*owner{}
	m.mu.Lock()
	m.resources.Expect(len(list))
	m.names.Expect(len(list))
	for i := range list {
		c := &list[i]
		c.results, results = results[:len(c.held)], results[len(c.held):]
		c.r = &resource{id: c.held[0].ID, mode: c.held[0].Mode}
		if why != nil {
			c.r.notYet = true
		} else {
			ended = append(ended, c.resolve(b)...)
		}
		m.resources.Put(c.r)
		if len(c.entries) > 0 && why == nil {
			describe(c.r.handle, c.entries[0].Owner, c.entries[0].Since)
		}
		for _, e := range c.entries {
			o, err := m.lockedRestoreOwner(owners, e)
			if err != nil {
				unseen = append(unseen, Event{Kind: OwnerUnverified, Owner: e.Owner, Err: err})
			}
			m.lockedAddHold(c.r, &hold{owner: o, info: o.lockedInfo(e.Owner), ref: e.Ref, since: e.Since, seq: e.Seq, auto: e.Autocreate})
			if e.State != EntryGranted {
				late = append(late, e)
			}
		}
	}
	var gone []*owner
	for _, o := range owners {
		if o.gone || o.isGone() {
			o.gone = false // so that lockedOwnerGone does its work
			gone = append(gone, o)
		}
	}
	m.mu.Unlock()
	for _, e := range unseen {
		m.observe(e)
	}
	now := time.Now() // once: the clock may be dear, and there may be ten thousand
	for i := range list {
		c := &list[i]
		if why != nil {
			break
		}
		for _, e := range c.entries {
			ev := Event{Kind: TakenBack, Ref: e.Ref, Owner: e.Owner, Mode: e.Mode, Time: now, Held: now.Sub(e.Since)}
			if c.r.lost != nil {
				ev.Kind, ev.Err = Lost, c.r.lost
			}
			m.observe(ev)
		}
	}
	for _, e := range ended {
		m.forget(e.Seq, true)
	}
	for _, e := range late {
		// Its owner may count on it now, also when the doubt is over.
		_ = m.journal.Grant(e.Seq)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range gone {
		m.lockedOwnerGone(o)
	}
	return list, why
}

type ownerKey struct {
	pid   int32
	start uint64
}

// lockedRestoreOwner finds the process of an entry, if it is still the same one.
// One that cannot be looked at keeps its locks, and is looked for again; the error
// says why, once.
func (m *Manager) lockedRestoreOwner(owners map[ownerKey]*owner, e *Entry) (_ *owner, unseen error) {
	key := ownerKey{e.Owner.PID, e.OwnerStart}
	if o := owners[key]; o != nil {
		return o, nil
	}
	o := &owner{pid: key.pid, forgotten: make(chan struct{})}
	owners[key] = o
	if key.start != 0 {
		proc, err := m.procs.Open(key.pid)
		switch {
		case err == nil && proc.StartTime() == key.start:
			o.proc = proc
			m.work.Go(func() { m.watch(o) })
		case err == nil:
			proc.Close()
			o.gone = true
		case errors.Is(err, ErrNoProcess):
			o.gone = true
		default:
			unseen = err
			m.lockedUnseen(o, key.start)
		}
	}
	// Sessions that register with this pid join the process, if there is one.
	if now := m.owners[key.pid]; !o.gone && (now == nil || now.proc == nil) {
		m.owners[key.pid] = o
	}
	return o, unseen
}

// settle releases what was being acquired or released when the earlier process
// ended. No client was told of it, or its client does not need it any more.
//
// With doubt the entries are kept, and one lock of each resource was taken back
// for them already. What is left can only be a second shared one, which keeps
// nobody out whom the first lets in. Of what is lost none was taken back: that is left alone.
//
// If why is not nil it is ErrNotYet, wrapped, and nothing was done about left.
func (m *Manager) settle(ctx context.Context, b Restorer, entries []Entry, doubt bool) (left []Entry, why error) {
	if doubt {
		m.mu.Lock()
		entries = slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool {
			r := m.resources.Get(e.ID)
			return r != nil && r.lost != nil
		})
		m.mu.Unlock()
	}
	held := make([]Held, len(entries))
	for i, e := range entries {
		held[i] = Held{ID: e.ID, Ref: e.Ref, Mode: e.Mode, Autocreate: e.Autocreate, Note: e.Note}
	}
	results := b.Restore(ctx, held)
	if why := notYet(results); why != nil {
		return entries, why
	}
	for i, res := range results {
		e := entries[i]
		switch {
		case doubt:
			if res.Handle != nil {
				_ = res.Handle.Unlock(ctx)
			}
		case res.Err == nil, errors.Is(res.Err, ErrUnderway):
			err := res.Handle.Unlock(ctx)
			m.observe(Event{Kind: ReleasedUntold, Ref: e.Ref, Owner: e.Owner, Mode: e.Mode, Err: err})
			if err == nil || ctx.Err() != nil || errors.Is(err, ErrUnderway) {
				m.forget(e.Seq, err == nil)
			} else {
				m.keepForNobody(e, res.Handle, err)
			}
		case errors.Is(res.Err, ErrNotHeld):
			m.forget(e.Seq, true)
		default:
			m.observe(Event{Kind: ReleaseFailed, Ref: e.Ref, Owner: e.Owner, Mode: e.Mode, Err: res.Err})
			m.keepForNobody(e, lostHandle{id: e.ID, b: b, held: held[i : i+1]}, res.Err)
		}
	}
	return nil, nil
}

// keepForNobody notes a lock that could not be released, so that whoever asks for
// the resource first makes another attempt.
func (m *Manager) keepForNobody(e Entry, h Handle, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resources.Get(e.ID) != nil {
		return // a second shared lock; the next process finds it
	}
	r := &resource{id: e.ID, mode: e.Mode, handle: h, lost: why}
	m.resources.Put(r)
	o := nobody(e.Owner.PID)
	m.lockedAddHold(r, &hold{owner: o, info: o.lockedInfo(e.Owner), ref: e.Ref, since: e.Since, seq: e.Seq})
}

// nobody is an owner of what its owner does not need any more.
func nobody(pid int32) *owner {
	return &owner{pid: pid, gone: true, nobody: true, forgotten: make(chan struct{})}
}

// lostHandle stands for a lock that could not be taken back.
type lostHandle struct {
	id   string
	b    Restorer
	held []Held // what may be held all the same
	anew Handle // what keeps others out since the loss; may be nil
}

func (h lostHandle) ID() string                     { return h.id }
func (lostHandle) Lock(context.Context, Mode) error { return errLost }

func (h lostHandle) Close() {
	if h.anew != nil {
		h.anew.Close()
	}
}

// Unlock releases what the backend may still hold, which nobody else would ever
// get otherwise.
func (h lostHandle) Unlock(ctx context.Context) error {
	if h.anew != nil {
		if err := h.anew.Unlock(ctx); err != nil {
			return err
		}
	}
	for _, res := range h.b.Restore(ctx, h.held) {
		err := res.Err
		if res.Handle != nil {
			err = res.Handle.Unlock(ctx)
		}
		if err != nil && !errors.Is(err, ErrNotHeld) {
			return err
		}
	}
	return nil
}
