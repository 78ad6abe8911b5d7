package guard

import (
	"context"
	"log/slog"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm/controld"
)

// Owner is a process that owns locks.
type Owner struct {
	PID   int32  `json:"pid"`
	Start uint64 `json:"start"` // owner.Process.StartTime; 0 if nobody has found the process
	Name  string `json:"name,omitempty"`
	UUID  string `json:"uuid,omitempty"`
}

// Process is a process of this host. Its methods return at once.
type Process interface {
	// Stop stops all threads; it may be called again.
	Stop() error
	// Stopped reports whether none of them runs.
	Stopped() bool
	// Suspended reports whether Stop has stopped it, or somebody else in the same way: Stopped is true also of a
	// process that only waits in the kernel.
	Suspended() bool
	Continue() error
	Kill() error
	// Gone is closed when it has ended.
	Gone() <-chan struct{}
	Close()
}

// Processes finds processes. locking.ErrNoProcess: there is none with that pid and
// start time any more.
type Processes interface {
	Open(pid int32, start uint64) (Process, error)
}

// Group is a corosync process group; *corosync.Group is one.
type Group interface {
	Events() <-chan corosync.Event
	Send(ctx context.Context, data []byte) error
	Close(ctx context.Context) error
}

// Controld is what is asked of dlm_controld; *controld.Client is one.
type Controld interface {
	Status(ctx context.Context) (controld.Status, error)
	Known(ctx context.Context, lockspace string) error
	Config(ctx context.Context) (controld.Config, error)
}

// Totem is what corosync's configuration says, as it computed it.
type Totem struct {
	Token, Consensus time.Duration
	// Device is for how long a part of the cluster may count the vote of the quorum device while another part has it already; 0 without a device.
	Device time.Duration
	// Majority: what has quorum has a majority of votes, so that no other part has it.
	Majority bool
	// Static: while the ring stays the same, what has quorum keeps it, and what has none gets none.
	Static bool
	Nodes  []uint32 // that are configured
}

// Store keeps what survives the daemon; a File is one.
type Store interface {
	Load() (*Saved, error)
	Save(Saved) error
}

// Dog is a watchdog. A Device is one.
type Dog interface {
	// Feed opens it first if it is not open.
	Feed() error
	// Disarm closes it such that it resets nothing.
	Disarm() error
}

// Wish is what an operator wants for a virtual machine that lost the cluster.
type Wish uint8

// The wishes.
const (
	WishKill   Wish = iota // stop it, and kill it after the grace
	WishFreeze             // stop it, and leave it so for an operator to end
	WishIgnore             // let it write: the host gives no promise
)

// Mode says what a guard does.
type Mode uint8

// The modes; one that is off needs no Guard.
const (
	Auto    Mode = iota // Fencing where dlm_controld fences, else Freeze
	Fencing             // only see that fencing is on
	Freeze
)

func (m Mode) String() string {
	switch m {
	case Fencing:
		return "fencing"
	case Freeze:
		return "freeze"
	}
	return "auto"
}

// Options are the parts of a Guard. All must be set but those that say so.
type Options struct {
	Mode      Mode
	Timing    Timing // Token and Consensus may be 0; Totem is asked for them
	Lockspace string // of the DLM
	// Clock goes on while the host sleeps, and only forward (CLOCK_BOOTTIME).
	Clock func() time.Duration
	Node  func() (uint32, error) // this node
	Group Group
	Ring  func() (corosync.Ring, error) // as last heard of
	Totem func(ctx context.Context) (Totem, error)
	// Members are the members of the lockspace as the kernel was told. It returns at once.
	Members   func() ([]uint32, error)
	Controld  Controld
	Owners    func() []Owner // of cluster locks; returns at once
	Processes Processes
	// Prove has the kernel convert every lock of an owner.
	Prove func(ctx context.Context, o Owner) error
	Wish  func(Owner) Wish // nil: all WishKill
	Store Store
	Dog   Dog // nil: none
	// Left are watchdogs that earlier daemons have left armed (LeftArmed), by their paths, without Dog. They are disarmed when nobody counts
	// on them any more.
	Left map[string]Dog
	Name func(node uint32) string // of a node, "" if it is not known; may be nil
	Log  *slog.Logger             // may be nil
}
