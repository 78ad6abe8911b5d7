package locking

import (
	"context"
	"errors"
	"time"
)

// Mode says whether a resource is used by one owner or by several.
type Mode uint8

// The two modes that libvirt asks for: a disk, and a disk marked <shareable/>.
const (
	Exclusive Mode = iota
	Shared
)

func (m Mode) String() string {
	if m == Shared {
		return "shared"
	}
	return "exclusive"
}

// Owner is a virtual machine as libvirt registers it
// (virLockSpaceProtocolOwner in src/locking/lock_protocol.x).
//
// Only PID decides who an owner is. Name, ID and UUID are what the client says
// of it, for people to read.
type Owner struct {
	PID  int32 // libvirt sends it unsigned, virtlockd reads it signed; 0 and less is accepted, and names no process
	ID   uint32
	Name string
	UUID [16]byte
}

// Ref is how a client names a resource: a lockspace's path ("" is the default
// one) and a name in it.
type Ref struct {
	Lockspace string
	Name      string
}

// Holder is an owner of a lock, as refusals and listings show it.
type Holder struct {
	Owner Owner
	Ref   Ref
	Mode  Mode
	Since time.Time
	ID    string // Handle.ID of what is held
}

// ErrBusy is what Handle.Lock returns, wrapped or not, when somebody outside
// this Manager holds the resource. The text of the wrapping error says who, or
// it is a HolderFinder.
var ErrBusy = errors.New("held by another host or program")

// ErrStale is what Handle.Lock returns when the name no longer leads to what
// was opened, for example because the file was replaced. Opening again helps.
var ErrStale = errors.New("the name leads to another file now")

// ErrNotAsked is what Handle.Lock returns, wrapped, when it is certain that nothing
// is locked and nothing will be, as nobody was asked.
var ErrNotAsked = errors.New("nobody was asked")

// ErrNotHeld is what Restored.Err is, wrapped or not, when the backend knows
// that the lock to take back is not held any more.
var ErrNotHeld = errors.New("not held any more")

// ErrNotYet is what Restored.Err is, wrapped, when the backend cannot tell yet
// whether the lock is held. The text of the wrapping error says what it waits for.
// That is no alarm: the lock is as safe as before.
var ErrNotYet = errors.New("the locks from before the lock daemon's restart cannot be taken back yet")

// ErrUnderway is what Handle.Unlock returns, wrapped, when the lock cannot be
// given back now and the backend finishes the job by itself.
var ErrUnderway = errors.New("it is given back as soon as possible, which is not now")

// ErrNoProcess is what Processes.Open returns when no such process exists.
var ErrNoProcess = errors.New("no such process")

// Backend is where locks are really held. All methods may be called from many
// goroutines, and must return soon after their context ends.
type Backend interface {
	// CreateLockspace prepares a lockspace. It is called again for one that
	// exists, and never for "". An error that is an *Error is passed on as it is.
	CreateLockspace(ctx context.Context, path string) error
	// CreateResource makes what Open without autocreate needs to find.
	CreateResource(ctx context.Context, ref Ref) error
	// DeleteResource is the opposite; that there is nothing to delete is no error. What
	// somebody outside this Manager holds is not deleted: ErrBusy, wrapped or not.
	DeleteResource(ctx context.Context, ref Ref) error
	// Open finds out what ref stands for at this moment, and locks nothing.
	// With autocreate a missing resource is made, and the handle's Unlock
	// removes it again.
	Open(ctx context.Context, ref Ref, autocreate bool) (Handle, error)
}

// Handle is a resource that was opened. Its methods are never called at the
// same time. It may be a Describer too.
type Handle interface {
	// ID is equal for two names of the same resource and different for
	// different ones. It does not change.
	ID() string
	// Lock takes the lock without waiting for its holder. ErrBusy, ErrStale, or
	// whatever went wrong; in each of these cases, and when the context ended,
	// nothing stays locked: a grant that comes later is undone by the backend.
	Lock(ctx context.Context, mode Mode) error
	// Unlock gives the lock back and closes the handle. When the context ends
	// first it returns the context's error and the backend finishes the job by
	// itself, as it does when it returns ErrUnderway. After any other error the
	// lock is still held and the handle open.
	Unlock(ctx context.Context) error
	// Close is for a handle that holds no lock.
	Close()
}

// Noter is a Handle that knows more than its ID of what it stands for.
type Noter interface {
	// Note is for the journal, and comes back in Held.Note after a restart; "" if there is
	// nothing to note. It does not change while the lock is held, and may be forgotten: what
	// is longer than a journal keeps is.
	Note() string
}

// Processes watches the processes that own locks.
type Processes interface {
	// Open finds the process that has this pid now. ErrNoProcess if none has.
	Open(pid int32) (Process, error)
}

// Process is one process, which another one with the same pid later is not.
type Process interface {
	// Gone is closed once the process has ended.
	Gone() <-chan struct{}
	// StartTime is when the process started, in units and from an origin that are
	// the same for all processes of this boot, and never 0. It tells the process
	// from an earlier or later one with its pid.
	StartTime() uint64
	// End asks the process to end, makes it end a while later, and returns when
	// it is gone. It returns an error when the context ends first.
	End(ctx context.Context) error
	// Close forgets the process.
	Close()
}

// EventKind says what an Event tells of.
type EventKind uint8

// What is told to Options.Observe.
const (
	Granted         EventKind = iota // a lock was granted
	Refused                          // a lock was not granted, Err says why
	Released                         // the owner released its lock
	ReleasedGone                     // the lock was released because its owner is gone
	ReleaseFailed                    // the backend could not release, Err says why; the lock is still held
	OwnerEnding                      // an owner with locks closed its connection and is being ended
	OwnerEndFailed                   // it could not be ended, Err says why; it keeps its locks
	OwnerUnverified                  // an owner was registered that no process can be found for
	TakenBack                        // a lock of an earlier process of this host was taken back
	ReleasedUntold                   // a lock that an earlier process had just taken or was giving back was released
	Lost                             // it could not be, Err says why; the resource is refused until its owner is gone or releases it
	Forced                           // an operator released the lock; Err is set if the backend is still about it
	OwnerGone                        // the process of an owner with locks has ended, Locks says how many it had; they are released from now on
	TakenAgain                       // a lock was taken for an owner that had released it and uses it all the same
	NotTakenAgain                    // it could not be, Err says why, for the first time
)

// Event is one thing that happened, for logs, metrics and watchers.
type Event struct {
	Kind  EventKind
	Ref   Ref
	Owner Owner
	Mode  Mode
	Err   error         // for the kinds that say so
	Took  time.Duration // how long the operation lasted
	Time  time.Time     // when it happened; Options.Observe is never told of the zero time
	Held  time.Duration // for Released, ReleasedGone and Forced: how long the lock was held
	Locks int           // for OwnerGone
}

// endsNow says that it happened at this moment, and began at start.
func (e *Event) endsNow(start time.Time) {
	e.Time = time.Now()
	e.Took = e.Time.Sub(start)
}
