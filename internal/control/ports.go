package control

import (
	"context"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Locks is what the API needs of a locking.Manager.
type Locks interface {
	Holders() []locking.Holder
	Waiting() []locking.Waiter
	Returning() []locking.Returner
	ForceRelease(ctx context.Context, ref locking.Ref, only func(locking.Holder) bool, force bool) ([]locking.Holder, error)
}

// Drainer makes this host grant nothing new, also after a restart of the daemon.
type Drainer interface {
	// Drained is nil unless the host is being drained.
	Drained() *Drained
	// Drain begins a drain, or ends it if d is nil. To begin one that has begun
	// changes nothing.
	Drain(d *Drained) error
}

// Backend says how a cluster is doing. A local backend has none.
type Backend interface {
	// Cluster must return soon after ctx ends, with what is known then.
	Cluster(ctx context.Context) Cluster
}

// Peers knows the daemons of the other hosts. It is absent in local mode.
type Peers interface {
	// Members lists all nodes that run vmlockd, this one too, and returns at once.
	Members() []PeerMember
	// Names are those of all nodes of the configuration, also of such as do not run;
	// nil if that is not known.
	Names() map[uint32]string
	// Absent says whether a node's daemon has not been seen for longer than a restart
	// takes, though this host's daemon has looked for that long.
	Absent(node uint32) bool
	// Holdings asks every other node what it holds. It returns soon after ctx
	// ends, with an Err for nodes that have not answered.
	Holdings(ctx context.Context) []PeerHoldings
	// Holders is Holdings of these resources only. It costs others little, and may
	// be asked often, which Holdings may not: that takes its time then.
	Holders(ctx context.Context, list []Sought) []PeerHoldings
	// Identify asks every other node which disk a path is there. It returns soon after
	// ctx ends, with an Err for nodes that have not answered.
	Identify(ctx context.Context, path string) []PeerDisk
}

// Disks finds out which disk a path is on this host.
type Disks interface {
	// Identify returns soon after ctx ends. Node and NodeID need not be set.
	Identify(ctx context.Context, path string) Disk
}

// PeerDisk is what another node says of a path, or Err.
type PeerDisk struct {
	NodeID uint32
	Name   string
	Disk   Disk
	Err    string // why there is no answer
}

// Sought is a resource that others are asked about: the one with this id
// (locking.Holder.ID), or if it is "" the one that a lock of Ref is on where nothing
// but its name counts.
type Sought struct {
	ID  string
	Ref locking.Ref
}

// key is equal for what can have one exclusive holder. Disks that each of two hosts
// has for itself can have one name, and one disk can have several: so the name counts
// only if there is no id.
func (s Sought) key() string {
	if s.ID != "" {
		return s.ID
	}
	return s.Ref.Lockspace + "\x00" + s.Ref.Name
}

// PeerMember is a node that runs vmlockd.
type PeerMember struct {
	NodeID       uint32
	Name         string
	Version      string
	Silent       bool   // it is in the group and does not answer
	ConfigDigest string // equal for nodes whose configuration has to be equal
	RulesDigest  string // equal for nodes that name disks by the same rules; "" for a version that knows paths only
	Self         bool
}

// PeerHoldings is what another node holds, which is not all if there is an Err.
type PeerHoldings struct {
	NodeID  uint32 // 0, with an Err: nodes that are not known
	Name    string
	Holders []locking.Holder
	Err     string // why there is no answer, or only a part
}

// Auditor keeps a record of what operators did. With an error nothing is done.
type Auditor interface {
	Audit(ctx context.Context, a Action) error
}

// Action is something that an operator does. It is told twice: before, with an
// empty Outcome, and afterwards.
type Action struct {
	Time    time.Time
	What    string // "release", "settle", "drain", "undrain" or "confirm-dead"
	Forced  bool   // it was done although owners may be alive
	Ref     locking.Ref
	Node    uint32           // that is said to be off; 0 if it is about something else
	Holders []locking.Holder // who loses, or lost, the lock
	// Unexplained is what "settle" releases, as far as it is known.
	Unexplained []string
	Who         Caller
	Reason      string // what the operator says why; may be empty unless Forced
	Outcome     string // "done", or what went wrong
}

// Caller is the process at the other end of the socket.
type Caller struct {
	UID   uint32
	PID   int32
	Login string // who logged in, before any su or sudo; the user's name if that is not known
}
