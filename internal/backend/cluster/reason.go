package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// cause is why the lockspace does not run, as far as an operator would do
// something else about it.
type cause uint8

const (
	causeRecovering cause = iota // it will go on by itself, soon
	causeQuorum
	causeFencing
	causeMerge  // the cluster was split and has met again
	causeSilent // dlm_controld does not answer
	causeGone   // dlm_controld is not there: nothing goes on until this host is rebooted
	causeJoining
)

// String is the word for a cause in metrics and in fields of the log.
func (c cause) String() string {
	switch c {
	case causeQuorum:
		return "quorum"
	case causeFencing:
		return "fencing"
	case causeMerge:
		return "merge"
	case causeSilent:
		return "controld_silent"
	case causeGone:
		return "controld_gone"
	case causeJoining:
		return "joining"
	}
	return "recovering"
}

// reason is a cause in words.
type reason struct {
	cause cause
	text  string
}

// stopped is the error of a request that is refused because the lockspace does
// not run.
type stopped struct{ reason reason }

func (e *stopped) Error() string { return e.reason.text }

// Cause is for locking.Cause.
func (e *stopped) Cause() string { return e.reason.cause.String() }

// mostShown bounds lists of hosts and locks in a text that libvirt shows.
const mostShown = 4

// explain says in an operator's words what dlm_controld waits for. It takes the
// conditions in the order in which dlm_controld does.
func explain(a answer, now time.Time, holders []locking.Holder) reason {
	switch {
	case errors.Is(a.err, controld.ErrNotRunning):
		return reason{causeGone, "dlm_controld is not running: this host can neither get nor give back locks until it is rebooted" + heldText(holders)}
	case errors.Is(a.err, controld.ErrNoLockspace):
		return reason{causeGone, "dlm_controld was restarted while locks were in use: this host can neither get nor give back locks until it is rebooted" + heldText(holders)}
	case errors.Is(a.err, controld.ErrNoAnswer):
		return reason{causeSilent, "dlm_controld does not answer, it hangs or is stopped (see dlm_tool status)"}
	case a.err != nil:
		return reason{causeSilent, a.err.Error()}
	case !a.status.Quorate:
		return reason{causeQuorum, "the cluster has no quorum" + missingText(a.status) + " (see corosync-quorumtool -s)"}
	}
	if text := fencingText(a.status, now); text != "" {
		return reason{causeFencing, text + " (see dlm_tool status)"}
	}
	if a.status.MergeWait {
		return reason{causeMerge, "hosts of the cluster were separated and have met again without a reboot between: the DLM goes on when all but one side of them are rebooted (see dlm_tool status)"}
	}
	if a.status.DaemonRing != a.status.ClusterRing {
		return reason{causeRecovering, "the membership of the cluster is changing"}
	}
	return reason{causeRecovering, "the DLM is recovering from a change of the cluster's membership"}
}

// missingText is ": 2 of 3 nodes are missing: 2, 3". Whether a node was lost or
// has left in good order is only known where fencing is enabled.
func missingText(s controld.Status) string {
	var missing []string
	for _, n := range s.Nodes {
		if !n.Member {
			missing = append(missing, fmt.Sprint(n.NodeID))
		}
	}
	if len(missing) == 0 {
		return ""
	}
	are := "are"
	if len(missing) == 1 {
		are = "is"
	}
	return fmt.Sprintf(": %d of %d nodes %s missing: %s", len(missing), len(s.Nodes), are, some(missing, ", "))
}

// fencingText is "waiting for fencing of node 3 (lost at 2006-01-02T15:04:05Z,
// 14s ago)", or empty if nobody must be fenced.
func fencingText(s controld.Status, now time.Time) string {
	var list []string
	for _, n := range slices.Concat(s.Nodes, s.Startup) {
		if !n.NeedFencing {
			continue
		}
		text := fmt.Sprintf("node %d", n.NodeID)
		switch {
		case !n.Failed.IsZero():
			text += fmt.Sprintf(", lost at %s, %v ago", n.Failed.UTC().Format(time.RFC3339), max(now.Sub(n.Failed), 0).Round(time.Second))
		case n.LeftReason == "startup":
			text += ", not seen since this host's cluster software was started"
		}
		if n.DelayFencing {
			text += ", fencing has not begun"
		}
		list = append(list, text)
	}
	switch {
	case len(list) > 0:
		return "waiting for fencing of " + some(list, "; ")
	case len(s.Startup) > 0:
		for _, n := range s.Startup {
			list = append(list, fmt.Sprint(n.NodeID))
		}
		return "waiting for fencing of nodes not seen since this host's cluster software was started: " + some(list, ", ")
	case s.FencingUnknown:
		return "waiting to be told by the other hosts which node is being fenced"
	}
	return ""
}

// heldText names who holds what on this host, as far as there is room.
func heldText(holders []locking.Holder) string {
	if len(holders) == 0 {
		return ""
	}
	var list []string
	for _, h := range holders {
		list = append(list, holderText(h))
	}
	return fmt.Sprintf("; locks held here: %d: %s", len(list), some(list, "; "))
}

func holderText(h locking.Holder) string {
	name := h.Ref.Name
	if h.Ref.Lockspace != "" {
		name = h.Ref.Lockspace + " " + name
	}
	who := h.Owner.Name
	if who == "" {
		who = fmt.Sprintf("the process %d", h.Owner.PID)
	}
	return fmt.Sprintf("%s has '%s' (%s)", who, name, h.Mode)
}

func some(list []string, separator string) string {
	if len(list) <= mostShown {
		return strings.Join(list, separator)
	}
	return strings.Join(list[:mostShown], separator) + fmt.Sprintf("%sand %d more", separator, len(list)-mostShown)
}
