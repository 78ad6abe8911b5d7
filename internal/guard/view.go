package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm/controld"
)

// view is what is known of the cluster at one moment. Times are of the guard's
// clock.
type view struct {
	at   time.Duration
	self uint32 // this node; 0 while it is not known
	// proven is when the latest message was sent that came back. Without isProven none
	// of this guard's did, and it is what an earlier one has noted, or the start.
	proven   time.Duration
	isProven bool
	ring     *corosync.Ring // nil while corosync says nothing
	ringLost bool           // ... and it had said something before
	majority bool           // that it has quorum means that no other part has
	static   bool           // whether it has quorum is always the same in the same ring
	// configured are the nodes of corosync's configuration.
	configured []uint32

	// used: this host was seen in the lockspace, or has locks in it.
	used     bool
	owned    bool     // processes here have locks
	space    []uint32 // members of the lockspace, as the kernel was told
	spaceErr error    // why they are not known
	// spaceAt is when it was known last who they are, or that this host is none.
	spaceAt time.Duration

	cluster   controld.Status // the latest answer of dlm_controld ...
	askedAt   time.Duration   // ... and when that question was begun
	asked     bool            // there is one
	silentErr error           // why the latest question had no answer; nil if it had one
}

func (v view) inSpace() bool {
	return v.spaceErr == nil && v.self != 0 && slices.Contains(v.space, v.self)
}

// outside reports whether what is known says that this host has no quorum, or is not in the
// lockspace. A guard that has just started knows neither.
func (v view) outside() bool {
	return v.ring != nil && !v.ring.Quorate || errors.Is(v.spaceErr, fs.ErrNotExist) ||
		v.spaceErr == nil && v.self != 0 && !v.inSpace()
}

func (v view) quorate() bool { return v.ring != nil && v.ring.Quorate }

func (v view) inRing(node uint32) bool {
	return v.ring != nil && slices.Contains(v.ring.Members, node)
}

// daemon is a node as dlm_controld knows it.
func (v view) daemon(node uint32) (controld.DaemonNode, bool) {
	for _, n := range v.cluster.Nodes {
		if uint32(n.NodeID) == node {
			return n, true
		}
	}
	return controld.DaemonNode{}, false
}

const unproven = "this host has not proved yet that it is in the cluster"

// judge says why this host cannot be sure of the cluster, or "" if it can. With
// lost it has lost it; otherwise it only does not know enough yet to grant
// anything, as after a start, and the lease bounds for how long.
func judge(v view, t Timing) (why string, lost bool) {
	if t.Known() && v.at-v.proven > t.Lease() {
		if !v.isProven && !v.owned {
			return unproven, false // as after a boot; nothing is there to be stopped
		}
		return fmt.Sprintf("corosync has delivered nothing for %v", (v.at - v.proven).Round(100*time.Millisecond)), true
	}
	switch {
	case v.ring == nil && v.ringLost:
		return "corosync is not running, or has ended the connection", true
	case v.ring != nil && !v.ring.Quorate:
		return "the cluster has no quorum as seen from here", true
	case errors.Is(v.silentErr, controld.ErrNotRunning):
		return "dlm_controld is not running", true
	case errors.Is(v.silentErr, controld.ErrNoLockspace):
		return "dlm_controld was restarted while the DLM lockspace was in use", true
	case v.asked && t.Known() && v.at-v.askedAt > t.Lease():
		return fmt.Sprintf("dlm_controld has not answered for %v", (v.at - v.askedAt).Round(100*time.Millisecond)), true
	case v.cluster.MergeWait:
		return "this part of the cluster was separated from another and has met it again", true
	case v.used && errors.Is(v.spaceErr, fs.ErrNotExist):
		return fmt.Sprintf("the members of the DLM lockspace are not known any more: %v", v.spaceErr), true
	case v.used && v.spaceErr != nil && t.Known() && v.at-v.spaceAt > t.Lease():
		return fmt.Sprintf("the members of the DLM lockspace have not been known for %v: %v", (v.at - v.spaceAt).Round(100*time.Millisecond), v.spaceErr), true
	case v.used && v.spaceErr == nil && !v.inSpace():
		return "this host is not a member of the DLM lockspace any more", true

	case !t.Known():
		return "corosync has not said yet what its timeouts are", false
	case v.ring == nil:
		return "corosync has not said yet who is in the cluster", false
	case !v.isProven:
		return unproven, false
	case !v.asked:
		return "dlm_controld has not answered yet", false
	case v.spaceErr != nil:
		return fmt.Sprintf("the members of the DLM lockspace are not known: %v", v.spaceErr), false
	case !v.inSpace():
		return "this host is not a member of the DLM lockspace", false
	}
	return "", false
}

// agreed reports whether dlm_controld, asked at since or later, has the ring that
// corosync has now, and its group has too.
func (v view) agreed(since time.Duration) bool {
	return v.ring != nil && v.asked && v.silentErr == nil && v.askedAt >= since &&
		v.cluster.Quorate && v.cluster.DaemonRing == v.cluster.ClusterRing && v.cluster.ClusterRing == v.ring.ID.Seq &&
		!v.cluster.MergeWait && !v.cluster.FencingUnknown
}
