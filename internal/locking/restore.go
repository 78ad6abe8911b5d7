package locking

import (
	"context"
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
	Restore(ctx context.Context, held []Held) []Restored
	// DropOthers releases what earlier processes of this host held and Restore
	// was not asked for, and returns how many locks that were, or -1 if the
	// backend cannot tell.
	DropOthers(ctx context.Context) (int, error)
}

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
	OwnerStart uint64 // Process.StartTime; 0 if there was no process
	Since      time.Time
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
