package stress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// System is one or more lock daemons that share what they lock, each on a node.
// Nodes are numbered from 0.
type System interface {
	Nodes() int
	// Dial connects to the node's daemon. What the daemon sees as the peer is no
	// owner's process, so the connection's end releases nothing.
	Dial(ctx context.Context, node int) (net.Conn, error)
	// Spawn starts a process on the node that can own locks. No two have the same
	// pid on a node.
	Spawn(ctx context.Context, node int) (Process, error)
}

// Process can own locks.
type Process interface {
	PID() int32
	// Kill ends the process as SIGKILL does and returns when it has ended. A second
	// call does nothing.
	Kill(ctx context.Context) error
}

// Options say what the load is. The zero value of each field but Ref means its
// default.
type Options struct {
	Seed       uint64
	Operations int // how many, without those that find out what death has freed: 2000
	Resources  int // 50
	Owners     int // how many there are on each node at any time: 8
	// Ref names a resource.
	Ref   func(resource int) locking.Ref
	Flags uint32 // of every Acquire, beside lockprogram.FlagShared
	// Latency is about how long an operation takes. Calls that are to be cut off
	// are cut off after up to twice that.
	Latency time.Duration // 1 ms
	// FreeWithin bounds the time until the locks of an owner who was killed are free.
	FreeWithin time.Duration // 10 s
	// Disturb ends a node's daemon and starts the next one. It returns when that one
	// serves, or with seen false without knowing when it will. Calls that are cut
	// off by that may have happened; connections are made again until
	// ReconnectWithin has passed. It is called for several nodes at once.
	Disturb func(ctx context.Context, node int, rng *rand.Rand) (seen bool, err error)
	// Disturbances is how often that is done, those not counted that return errUncounted. The load lasts until then at least.
	Disturbances    int
	DisturbEvery    int           // operations between the disturbances of a node, on average: 10
	ReconnectWithin time.Duration // 30 s
	// Log may be nil.
	Log func(format string, args ...any)
}

func (o Options) withDefaults() Options {
	def := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	span := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Operations, 2000)
	def(&o.Resources, 50)
	def(&o.Owners, 8)
	def(&o.DisturbEvery, 10)
	span(&o.Latency, time.Millisecond)
	span(&o.FreeWithin, 10*time.Second)
	span(&o.ReconnectWithin, 30*time.Second)
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	return o
}

// answerOf sorts what a daemon answered. An error that none of the rules knows
// is returned.
func answerOf(kind Kind, err error) (Answer, error) {
	var e *rpc.Error
	switch {
	case err == nil:
		return Done, nil
	case !errors.As(err, &e):
		return Unknown, nil // the connection or the context ended
	case e.Code == rpc.CodeOperationTimeout, e.Code == rpc.CodeOperationFailed:
		return TimedOut, nil
	case e.Code == rpc.CodeResourceBusy && kind == Acquire:
		return Busy, nil
	case e.Code == rpc.CodeResourceBusy:
		return NotLocked, nil
	case e.Code == rpc.CodeInternal && e.Domain == rpc.DomainLockspace && kind == Release:
		return NotOwner, nil
	case e.Code == rpc.CodeOperationInvalid && e.Domain == rpc.DomainLockspace && kind == Acquire:
		return OwnerGone, nil
	}
	return Unknown, fmt.Errorf("an answer to %s that does not belong there: code %d, domain %d: %w", kind, e.Code, e.Domain, err)
}

// names says whether a refusal's text names the owner with that pid as one that
// has the resource, or may leave it out for want of space.
func names(text string, pid int32) bool {
	return strings.Contains(text, fmt.Sprintf(" pid %d,", pid)) || strings.Contains(text, " more on this host")
}
