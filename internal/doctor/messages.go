package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

// stopped looks at what a lockspace waits for that is stopped although there is quorum and nobody must be fenced.
func (x *exam) stopped(name string, st controld.Status) {
	where := "lockspace " + name
	const (
		together = "end or move this host's virtual machines, then reboot it, at the same time as all others on which dlm_tool ls shows 'wait messages'"
		look     = "dlm_tool ls -n and dlm_tool status show what it waits for; in most cases it goes on by itself"
	)
	if st.MergeWait {
		// Each side refuses the messages of the other one then, as it has to, and one side is to go on.
		x.find(idStopped, where, "choose the side to keep, end what runs on the hosts of the others, and reboot those (docs/operations.md)",
			"the lockspace is %s and locks are refused: %s", x.daemon.Lockspace, x.daemon.WaitsFor)
		return
	}
	nodes, change, err := x.awaited(name)
	if err == nil && stuck(nodes, st.NodeID) {
		// So it looks for a moment in each change, as when another host joins, until dlm_controld has had what it waits for.
		pause(x.ctx, cmp.Or(x.Pause, momentary))
		var later uint32
		if nodes, later, err = x.awaited(name); later != change {
			nodes = nil
		}
	}
	if err != nil {
		x.find(idStopped, where, look, "the lockspace is %s and locks are refused: %s", x.daemon.Lockspace, x.daemon.WaitsFor)
		return
	}
	var missing []int
	own := false
	for _, n := range nodes {
		switch {
		case n.Flags&controld.Disallowed != 0:
			// That of a host that was separated is refused, too, and corosync is about to drop that host.
			x.find(idStuck, where, "look again in half a minute; if it is the same, "+together,
				"dlm_controld of this host has refused the message of node %d for a change of the lockspace, and unless that node goes waits for it for ever; locks are refused", n.NodeID)
			return
		case n.Flags&controld.Started != 0:
		case n.NodeID == st.NodeID:
			own = true
		default:
			missing = append(missing, n.NodeID)
		}
	}
	switch {
	case own && x.daemon.Lost != "":
		x.find(idStopped, where, "see to the network and to corosync: corosync-quorumtool -s, journalctl -u corosync", "the lockspace is %s and locks are refused: this host has lost the cluster, and corosync does not deliver even its own messages: %s", x.daemon.Lockspace, x.daemon.Lost)
	case own:
		x.find(idStuck, where, "look again in half a minute; if it is the same, "+together,
			"dlm_controld of this host has not had its own message for a change of the lockspace; if it has refused it, it waits for ever, and locks are refused")
	case len(missing) > 0:
		x.find(idStopped, where, fmt.Sprintf("on node %d, and each of them: vmlockctl doctor; if dlm_controld runs and answers there, and that goes on for a minute, %s", missing[0], together),
			"the lockspace is %s and locks are refused: dlm_controld of this host waits for messages of: node %s", x.daemon.Lockspace, strings.ReplaceAll(strings.Trim(fmt.Sprint(missing), "[]"), " ", ", node "))
	default:
		x.find(idStopped, where, look, "the lockspace is %s and locks are refused: %s", x.daemon.Lockspace, x.daemon.WaitsFor)
	}
}

// awaited lists the members of the change of a lockspace for which dlm_controld waits for messages, and says which change that is; none if it does not wait. That
// question may be the end of a dlm_controld that does not ignore SIGPIPE, if this program is killed meanwhile (see package
// controld). systemd has its services ignore it; where that is not so, nothing is asked.
func (x *exam) awaited(name string) (nodes []controld.Node, change uint32, err error) {
	for _, p := range x.called("dlm_controld") {
		text, err := x.System.ReadFile(p.dir()+"/status", maxProc)
		if err != nil {
			return nil, 0, err
		}
		if !ignores(string(text), syscall.SIGPIPE) {
			return nil, 0, fmt.Errorf("%v does not ignore SIGPIPE", p)
		}
	}
	ls, err := ask(x.ctx, controldTimeout, func(ctx context.Context) (controld.Lockspace, error) { return x.Controld.Lockspace(ctx, name) })
	if err != nil || !ls.Changing() || !ls.Next.WaitMessages {
		return nil, 0, err
	}
	nodes, err = ask(x.ctx, controldTimeout, func(ctx context.Context) ([]controld.Node, error) {
		return x.Controld.Nodes(ctx, name, controld.NextNodes)
	})
	return nodes, ls.Next.Seq, err
}

// stuck reports whether dlm_controld waits for what it may have refused.
func stuck(nodes []controld.Node, here int) bool {
	return slices.ContainsFunc(nodes, func(n controld.Node) bool {
		return n.Flags&controld.Disallowed != 0 || n.Flags&controld.Started == 0 && n.NodeID == here
	})
}

// pause returns after d, or when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// ignores reads in the status of a process, as /proc has it, whether it ignores a signal.
func ignores(status string, sig syscall.Signal) bool {
	for line := range strings.Lines(status) {
		if mask, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return err == nil && set&(1<<(uint(sig)-1)) != 0
		}
	}
	return false
}
