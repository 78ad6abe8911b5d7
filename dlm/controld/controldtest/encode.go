package controldtest

import (
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/dlm/controld/internal/wire"
)

func encodeStatus(s controld.Status) []byte {
	b := state(nil, wire.StateDaemon, s.NodeID, fmt.Sprintf("member_count=%d joined_count=0 remove_count=0 daemon_ringid=%d "+
		"cluster_ringid=%d quorate=%d fence_pid=%d fence_in_progress_unknown=%d zombie_count=0 monotime=%d stateful_merge_wait=%d ",
		s.Members, s.DaemonRing, s.ClusterRing, bit(s.Quorate), s.FencePID, bit(s.FencingUnknown), s.Monotime, bit(s.MergeWait)))
	for _, n := range s.Nodes {
		b = daemonNode(b, wire.StateDaemonNode, n)
	}
	for _, n := range s.Startup {
		b = daemonNode(b, wire.StateStartupNode, n)
	}
	return b
}

func daemonNode(b []byte, kind uint32, n controld.DaemonNode) []byte {
	return state(b, kind, n.NodeID, fmt.Sprintf("member=%d killed=0 left_reason=%s need_fencing=%d delay_fencing=%d "+
		"fence_pid=%d fence_pid_wait=%d fence_result_wait=0 fence_actor_last=%d fence_actor_done=0 add_time=0 rem_time=0 "+
		"fail_walltime=%d fail_monotime=0 fence_walltime=%d fence_monotime=0 ",
		bit(n.Member), n.LeftReason, bit(n.NeedFencing), bit(n.DelayFencing), n.FencePID, bit(n.FencePID != 0), n.FenceActor,
		seconds(n.Failed), seconds(n.Fenced)))
}

// state appends one record of a status, whose text ends with a NUL.
func state(b []byte, kind uint32, id int, text string) []byte {
	b = wire.Append(b, wire.DlmcState{Type: kind, Nodeid: int32(id), StrLen: uint32(len(text) + 1)})
	return append(append(b, text...), 0)
}

func lockspace(l controld.Lockspace) wire.DlmcLockspace {
	d := wire.DlmcLockspace{CgPrev: change(l.Started), CgNext: change(l.Next), Flags: uint32(l.Flags), GlobalID: l.GlobalID}
	copy(d.Name[:wire.LockspaceLen], l.Name)
	return d
}

func change(c controld.Change) wire.DlmcChange {
	d := wire.DlmcChange{
		MemberCount: int32(c.Members), JoinedCount: int32(c.Joined), RemoveCount: int32(c.Removed), FailedCount: int32(c.Failed),
		WaitCondition: int32(c.Wait), WaitMessages: int32(bit(c.WaitMessages)), Seq: c.Seq, CombinedSeq: c.CombinedSeq,
	}
	if c.WaitMessages {
		d.WaitCondition = int32(c.Missing)
	}
	return d
}

func node(n controld.Node) wire.DlmcNode {
	return wire.DlmcNode{
		Nodeid: int32(n.NodeID), Flags: uint32(n.Flags), AddedSeq: n.AddedSeq, RemovedSeq: n.RemovedSeq,
		FailReason: int32(n.FailReason), FailWalltime: uint64(seconds(n.Failed)),
	}
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
