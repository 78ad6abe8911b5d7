package peers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// Info is what a daemon says about itself. Texts from peers are printable and cut.
type Info struct {
	Name     string    // of the host, at most 255 bytes
	Version  string    // of vmlockd, at most 64 bytes
	Digest   string    // of the parts of the configuration that must be the same on all nodes, at most 128 bytes
	Rules    string    // digest of how it names disks, at most 128 bytes; "" if it names them by their paths
	Guard    string    // what protects disks when the host loses the cluster, at most 64 bytes
	Draining bool      // it grants nothing new
	Started  time.Time // by its own clock
}

// Peer is a member of the group.
type Peer struct {
	Node, PID uint32
	Self      bool
	// Known: it has said hello. What never does is no vmlockd, or is broken.
	Known bool
	Info
	Protocol int       // the version of what it speaks
	Since    time.Time // when it came, as seen from here
	// Silent is zero while it is heard from regularly and answers. Otherwise it is when it was last heard from, or Since.
	Silent time.Time
	// Faults is how many of its messages were unreadable, and Dropped how many hellos and questions were too many.
	Faults, Dropped uint64
}

// Holding is a lock that a node holds. Resource, Lockspace, Name and OwnerName may be any bytes: quote them.
type Holding struct {
	Node      uint32 // set by the receiver, from who sent it
	Resource  string // its name in the DLM, at most 64 bytes
	Lockspace string // libvirt's, at most 4096 bytes
	Name      string // libvirt's, such as a path; at most 4096 bytes
	Mode      string // at most 64 bytes
	OwnerName string // at most 255 bytes
	OwnerUUID string
	OwnerPID  int
	Since     time.Time // of the grant, by the node's clock, in milliseconds
}

// NodeHoldings is what one member holds.
type NodeHoldings struct {
	Node, PID uint32 // 0 for this node, before its first connection
	Name      string // of the host, if it has said hello
	Holdings  []Holding
	// Err is nil if this is all. Otherwise Holdings are what there is: ErrNoAnswer, ErrLeft, ErrIncomplete, ErrBusy, ErrOther.
	Err error
}

// Disk is what a path leads to on a node. Path and Name may be any bytes: quote
// them. Longer texts are cut.
type Disk struct {
	Path     string // without symbolic links; at most 4096 bytes
	Type     string // at most 64 bytes
	Scope    string // at most 64 bytes
	Name     string // at most 8192 bytes
	Resource string // its name in the DLM, at most 64 bytes; "" if it has none
	ByPath   bool
	Doubt    bool
	Steps    []string // why, at most 64 of 8192 bytes
	Error    string   // why it is not known, at most 8192 bytes
}

// NodeDisk is what one member says of a path.
type NodeDisk struct {
	Node, PID uint32
	Name      string // of the host, if it has said hello
	Disk      Disk
	Err       error // why there is no answer
}

// Errors of answers.
var (
	// ErrNoAnswer: the peer did not answer in time. It is busy, stopped or cut off.
	ErrNoAnswer = errors.New("no answer in time")
	// ErrLeft: the peer left before it had answered.
	ErrLeft = errors.New("it left before it had answered")
	// ErrIncomplete: more was announced than came, or than is taken from one peer, or parts could not be read.
	ErrIncomplete = errors.New("incomplete")
	// ErrOther: the peer's Digest is another one. What it holds has nothing to do with what is held here.
	ErrOther = errors.New("its vmlockd is configured differently (backend or cluster.lockspace), so its locks and those of this host do not exclude each other")
	// ErrBusy: too many questions of this kind are under way, or the peer has been asked too many.
	ErrBusy = errors.New("too many questions at once")
)

// Group is the daemons' group; *corosync.Group is one.
type Group interface {
	Events() <-chan corosync.Event
	Send(ctx context.Context, data []byte) error
	Close(ctx context.Context) error
}

// GroupOptions are for joining the group: with room for the answers of several peers at once. A daemon sets Background, so
// that it starts without waiting for corosync.
func GroupOptions() corosync.Options {
	return corosync.Options{Background: true, MaxMessage: MaxMessage, Queue: 32 << 20}
}

// Options are what a Peers needs.
type Options struct {
	// Group is used by nobody else. Run closes it.
	Group Group
	// Self is what is told to others; see Announce.
	Self Info
	// Holdings returns all that this node holds; Node need not be set. It is called when somebody asks, by several
	// goroutines, and should not block.
	Holdings func() []Holding
	// Holders returns what this node holds of one resource. Without it (nil) Holdings is searched.
	Holders func(resource string) []Holding
	// Identify says which disk a path is on this node, and returns soon after ctx ends.
	// nil: nobody is answered.
	Identify func(ctx context.Context, path string) Disk
	// Log gets a line for a peer that comes, goes, or misbehaves for the first time. nil: nothing is logged.
	Log *slog.Logger
}

// Stats are counters since the start.
type Stats struct {
	Received  uint64 // messages, this node's own included
	Malformed uint64 // could not be read
	Unknown   uint64 // of a kind that only a later version knows
	Dropped   uint64 // hellos and questions that were too many from one peer
	Answered  uint64 // questions
}
