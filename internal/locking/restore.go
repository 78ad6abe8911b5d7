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
}

// Restored is what came of a Held. If Err is nil the Handle holds the lock.
type Restored struct {
	Handle Handle
	Err    error
}

// Restorer is a Backend whose locks outlive the process that took them.
type Restorer interface {
	// Restore takes back locks, which are in the order in which they were
	// acquired, and says what came of each. It waits for nobody who holds locks.
	// One that is held several times in one mode (as Held several times in held, or
	// in later calls) is taken back as often.
	Restore(ctx context.Context, held []Held) []Restored
	// Unsettled is how many requests were given up, by the context of a Lock or an
	// Unlock, whose outcome is not certain yet.
	Unsettled() int
}

// errLost is why a resource cannot be had after a lock of it could not be taken
// back.
var errLost = errors.New("a lock on it from before the lock daemon's restart could not be taken back, " +
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
func (m *Manager) Restore(ctx context.Context, b Restorer, entries []Entry, lockspaces []string, doubt bool) {
	if doubt {
		entries = slices.Clone(entries)
		for i := range entries {
			entries[i].State = EntryGranted
		}
	}
	m.mu.Lock()
	m.unsettled = b.Unsettled
	for _, path := range lockspaces {
		m.lockspaces[path] = struct{}{}
	}
	m.mu.Unlock()
	// What was granted comes first: of a shared lock there can be two on this host,
	// one in use and one being released, and they cannot be told apart.
	m.takeBack(ctx, b, entries)
	m.settle(ctx, b, entries)
}

// takeBack restores the granted locks with their owners.
func (m *Manager) takeBack(ctx context.Context, b Restorer, entries []Entry) {
	var held []Held
	byID := map[string][]Entry{}
	for _, e := range entries {
		if e.State != EntryGranted {
			continue
		}
		if byID[e.ID] == nil {
			held = append(held, Held{ID: e.ID, Ref: e.Ref, Mode: e.Mode, Autocreate: e.Autocreate})
		}
		byID[e.ID] = append(byID[e.ID], e)
	}
	owners := map[ownerKey]*owner{}
	results := b.Restore(ctx, held)
	m.mu.Lock()
	for i, res := range results {
		r := &resource{id: held[i].ID, turn: make(chan struct{}, 1), mode: held[i].Mode, handle: res.Handle}
		if res.Err != nil {
			r.handle, r.lost = lostHandle{id: r.id}, res.Err
		}
		m.resources[r.id] = r
		for _, e := range byID[r.id] {
			o := m.lockedRestoreOwner(owners, e)
			m.lockedAddHold(r, &hold{owner: o, info: e.Owner, ref: e.Ref, since: e.Since, seq: e.Seq})
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
	for i, res := range results {
		for _, e := range byID[held[i].ID] {
			ev := Event{Kind: TakenBack, Ref: e.Ref, Owner: e.Owner, Mode: e.Mode, Held: time.Since(e.Since)}
			if res.Err != nil {
				ev.Kind, ev.Err = Lost, res.Err
			}
			m.observe(ev)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range gone {
		m.lockedOwnerGone(o)
	}
}

type ownerKey struct {
	pid   int32
	start uint64
}

// lockedRestoreOwner finds the process of an entry, if it is still the same one.
// One that cannot be looked at keeps its locks, as one that was never seen.
func (m *Manager) lockedRestoreOwner(owners map[ownerKey]*owner, e Entry) *owner {
	key := ownerKey{e.Owner.PID, e.OwnerStart}
	if o := owners[key]; o != nil {
		return o
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
			m.observe(Event{Kind: OwnerUnverified, Owner: e.Owner, Err: err})
		}
	}
	// Sessions that register with this pid join the process, if there is one.
	if now := m.owners[key.pid]; !o.gone && (now == nil || now.proc == nil) {
		m.owners[key.pid] = o
	}
	return o
}

// settle releases what was being acquired or released when the earlier process
// ended. No client was told of it, or its client does not need it any more.
func (m *Manager) settle(ctx context.Context, b Restorer, entries []Entry) {
	var open []Entry
	var held []Held
	for _, e := range entries {
		if e.State == EntryGranted {
			continue
		}
		open = append(open, e)
		held = append(held, Held{ID: e.ID, Ref: e.Ref, Mode: e.Mode, Autocreate: e.Autocreate})
	}
	for i, res := range b.Restore(ctx, held) {
		e := open[i]
		switch {
		case res.Err == nil:
			err := res.Handle.Unlock(ctx)
			m.observe(Event{Kind: ReleasedUntold, Ref: e.Ref, Owner: e.Owner, Mode: e.Mode, Err: err})
			if err == nil || ctx.Err() != nil || errors.Is(err, ErrUnderway) {
				m.forget(e.Seq, err == nil)
			}
		case errors.Is(res.Err, ErrNotHeld):
			m.forget(e.Seq, true)
		default:
			m.observe(Event{Kind: ReleaseFailed, Ref: e.Ref, Owner: e.Owner, Mode: e.Mode, Err: res.Err})
		}
	}
}

// lostHandle stands for a lock that could not be taken back.
type lostHandle struct{ id string }

func (h lostHandle) ID() string                     { return h.id }
func (lostHandle) Lock(context.Context, Mode) error { return errLost }
func (lostHandle) Unlock(context.Context) error     { return nil }
func (lostHandle) Close()                           {}
