package locking

import (
	"errors"
	"time"
)

// EntryState is how far the journal knows a lock to have come.
type EntryState uint8

// The states of an Entry.
const (
	EntryIntended  EntryState = iota // the backend is about to be asked; no client was told of a grant
	EntryGranted                     // the backend granted it; its client may have been told
	EntryReleasing                   // its owner no longer needs it; the backend may hold it still
)

// Entry is what a journal keeps of one owner's use of a resource.
type Entry struct {
	Seq        uint64 // order of acquisition
	State      EntryState
	ID         string // Handle.ID
	Ref        Ref
	Mode       Mode
	Autocreate bool
	Owner      Owner
	OwnerStart uint64    // Process.StartTime; 0 if there was no process
	Since      time.Time // when it was asked for
	Note       string    // Noter.Note of the handle, "" if it has none
}

// Journal keeps what must survive the daemon. When a method returns nil its
// record is there for the next process, at whatever instruction this one is
// killed. Methods may be called from many goroutines.
type Journal interface {
	// Intend adds an entry, in the state that it has, and returns its Seq.
	Intend(Entry) (uint64, error)
	Grant(seq uint64) error
	Releasing(seq uint64) error
	// Forget removes an entry.
	Forget(seq uint64) error
	AddLockspace(path string) error
}

// noJournal is for a Manager whose locks end with it.
type noJournal struct{}

func (noJournal) Intend(Entry) (uint64, error) { return 0, nil }
func (noJournal) Grant(uint64) error           { return nil }
func (noJournal) Releasing(uint64) error       { return nil }
func (noJournal) Forget(uint64) error          { return nil }
func (noJournal) AddLockspace(string) error    { return nil }

// sweepInterval is how often it is looked whether requests that were given up
// have settled.
const sweepInterval = time.Second

// entryOf is what the journal has to know of a hold of what a handle stands for.
func entryOf(state EntryState, by Handle, h *hold, mode Mode, autocreate bool) Entry {
	e := Entry{State: state, ID: by.ID(), Ref: h.ref, Mode: mode, Autocreate: autocreate, Owner: *h.info, Since: h.since}
	if n, ok := by.(Noter); ok {
		e.Note = n.Note()
	}
	if h.owner.proc != nil {
		e.OwnerStart = h.owner.proc.StartTime()
	}
	return e
}

var errJournal = withCause("journal", "the lock daemon's journal cannot be written")

// noted makes the error of a grant that the journal did not take: what the next
// process would not know of must not be granted.
func noted(ref Ref, err error) error {
	return &Error{Kind: KindUnavailable, Op: "acquire", Ref: ref, Err: errors.Join(errJournal, err)}
}

// forget removes an entry once the backend is certain about it. A failure is the
// next grant's problem: an entry too many makes a later process ask the backend,
// an entry too few cannot come of it.
func (m *Manager) forget(seq uint64, certain bool) {
	if certain || m.unsettled == nil || m.unsettled() == 0 {
		_ = m.journal.Forget(seq)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uncertain = append(m.uncertain, seq)
	if len(m.uncertain) == 1 && !m.closed {
		m.work.Go(m.sweep)
	}
}

// sweep forgets the uncertain entries as soon as nothing is uncertain any more.
func (m *Manager) sweep() {
	m.every(sweepInterval, func() (done bool) {
		m.mu.Lock()
		// An entry that comes between this and the question is in a later list.
		list := m.uncertain
		m.mu.Unlock()
		if m.unsettled() > 0 {
			return false
		}
		for _, seq := range list {
			_ = m.journal.Forget(seq)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.uncertain = m.uncertain[len(list):]; len(m.uncertain) > 0 {
			return false
		}
		m.uncertain = nil
		return true
	})
}

// every calls f again and again, for the first time after d, until f is done or Close begins.
func (m *Manager) every(d time.Duration, f func() (done bool)) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		if f() {
			return
		}
	}
}
