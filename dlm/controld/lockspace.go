package controld

import (
	"context"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld/internal/wire"
)

// LockspaceFlags say what a lockspace is in the middle of (DLMC_LF_*).
type LockspaceFlags uint32

// The flags.
const (
	Joining       LockspaceFlags = 1 << iota // this node is entering it
	Leaving                                  // this node is leaving it
	KernelStopped                            // the kernel has been told to stop it: requests wait
	FSRegistered                             // a cluster file system uses it
	NeedPlocks
	SavePlocks
)

// Wait is a condition for a lockspace to go on (DLMC_LS_WAIT_*).
type Wait int

// The conditions, in the order in which the daemon waits for them.
const (
	WaitNone    Wait = iota
	WaitRingID       // the daemons' and corosync's view of the membership must agree; moments
	WaitQuorum       // the cluster has no quorum
	WaitFencing      // a lost node must be fenced; see Status for which
	WaitFS           // a cluster file system must acknowledge the loss of a node
)

func (w Wait) String() string {
	switch w {
	case WaitNone:
		return "nothing"
	case WaitRingID:
		return "ring id"
	case WaitQuorum:
		return "quorum"
	case WaitFencing:
		return "fencing"
	case WaitFS:
		return "file system"
	}
	return fmt.Sprintf("condition %d", int(w))
}

// Change is one change of a lockspace's membership.
type Change struct {
	Members, Joined, Removed, Failed int
	Seq, CombinedSeq                 uint32
	Wait                             Wait // the condition that is not met
	// WaitMessages: the conditions are met, and Missing members have yet to say that they are ready. The daemon says
	// both in one number, so one of Wait and Missing is 0; right after the conditions were met Missing may be, too.
	WaitMessages bool
	Missing      int
}

// Lockspace is a lockspace of this host as dlm_controld manages it.
type Lockspace struct {
	Name     string
	GlobalID uint32
	Flags    LockspaceFlags
	Started  Change // the membership with which the lockspace was started last; Members is 0 if it never was
	Next     Change // the change under way; Seq is 0 if there is none
}

// Changing reports whether a change of the membership is under way.
func (l Lockspace) Changing() bool { return l.Next.Seq != 0 }

// Lockspaces asks for all lockspaces of this host. If the asking process is killed before the answer has come, the
// daemon may die; see the package comment.
func (c *Client) Lockspaces(ctx context.Context) ([]Lockspace, error) {
	return ask(ctx, c, "lockspaces", "", request(wire.CmdLockspaces, "", 0, 0), true, func(r io.Reader) ([]Lockspace, error) {
		return readRecords(r, wire.CmdLockspaces, wire.LockspaceSize, maxSpaces, lockspaceOf)
	})
}

// Lockspace asks for one lockspace of this host; the error is ErrNoLockspace if there is none of that name. If the
// asking process is killed before the answer has come, the daemon may die; see the package comment.
func (c *Client) Lockspace(ctx context.Context, name string) (Lockspace, error) {
	const op = "lockspace"
	if err := checkName(op, name); err != nil {
		return Lockspace{}, err
	}
	return ask(ctx, c, op, name, request(wire.CmdLockspaceInfo, name, 0, 0), true, readLockspace)
}

func readLockspace(r io.Reader) (Lockspace, error) {
	h, body, err := readAnswer(r, wire.CmdLockspaceInfo, wire.LockspaceSize)
	if err == nil {
		err = errorOf(h)
	}
	if err == nil && len(body) != wire.LockspaceSize {
		err = malformed("a lockspace of %d bytes", len(body))
	}
	if err != nil {
		return Lockspace{}, err
	}
	return lockspaceOf(body)
}

// Known reports, as nil or ErrNoLockspace, whether the daemon manages a lockspace of that name. A daemon that was
// restarted does not know the lockspaces of its predecessor. It is safe in a program that may be killed; see the
// package comment.
//
// The question is in fact for the POSIX locks a cluster file system has in the lockspace, which it reads and drops; do
// not ask it about the lockspace of a file system.
func (c *Client) Known(ctx context.Context, name string) error {
	const op = "known"
	if err := checkName(op, name); err != nil {
		return err
	}
	_, err := ask(ctx, c, op, name, request(wire.CmdDumpPlocks, name, 0, 0), false, func(r io.Reader) (struct{}, error) {
		h, _, err := readAnswer(r, wire.CmdDumpPlocks, maxConfig)
		if err == nil {
			err = errorOf(h)
		}
		return struct{}{}, err
	})
	return err
}

// NodesOf says which nodes of a lockspace are asked for (DLMC_NODES_*).
type NodesOf uint32

// The choices.
const (
	AllNodes     NodesOf = 1 // the members of the change under way, or else of the one before, and former members
	StartedNodes NodesOf = 2 // the members of the last complete change
	NextNodes    NodesOf = 3 // the members of the change under way; none if there is none
)

// NodeFlags say how a node stands in a lockspace (DLMC_NF_*).
type NodeFlags uint32

// The flags.
const (
	Member NodeFlags = 1 << iota
	Started
	Disallowed
	NeedFencing
	CheckFS
)

// Node is a node of a lockspace.
type Node struct {
	NodeID     int
	Flags      NodeFlags
	AddedSeq   uint32
	RemovedSeq uint32
	// FailReason is corosync's reason for the node's last leaving (cpg_reason_t: 1 join, 2 leave, 3 node down, 4 node up,
	// 5 process down), 0 if it never failed.
	FailReason int
	Failed     time.Time // by this host's clock, in whole seconds; zero if it never did
}

// Nodes asks for nodes of a lockspace of this host; the error is ErrNoLockspace if there is none of that name. If the
// asking process is killed before the answer has come, the daemon may die; see the package comment.
func (c *Client) Nodes(ctx context.Context, lockspace string, of NodesOf) ([]Node, error) {
	const op = "nodes"
	if err := checkName(op, lockspace); err != nil {
		return nil, err
	}
	return ask(ctx, c, op, lockspace, request(wire.CmdLockspaceNodes, lockspace, uint32(of), maxNodes), true, func(r io.Reader) ([]Node, error) {
		return readRecords(r, wire.CmdLockspaceNodes, wire.NodeSize, maxNodes, nodeOf)
	})
}

// readRecords reads an answer that is a row of size bytes each, as many as its header says.
func readRecords[T any](r io.Reader, command uint32, size, most int, one func([]byte) (T, error)) ([]T, error) {
	h, body, err := readAnswer(r, command, maxRecords)
	if err == nil {
		err = errorOf(h)
	}
	if err == nil && (int(h.Data) > most || len(body) != int(h.Data)*size) {
		err = malformed("%d records in %d bytes", h.Data, len(body))
	}
	if err != nil {
		return nil, err
	}
	list := make([]T, 0, h.Data)
	for ; len(body) > 0; body = body[size:] {
		v, err := one(body[:size])
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// errorOf is the error in the header of an answer.
func errorOf(h wire.DlmcHeader) error {
	if h.Data < 0 {
		if h.Data < -4095 {
			return malformed("error number %d", -int64(h.Data))
		}
		return syscall.Errno(-h.Data)
	}
	return nil
}

func checkName(op, name string) error {
	if name == "" || len(name) > wire.LockspaceLen {
		return &OpError{Op: op, Lockspace: name, Err: ErrNoLockspace}
	}
	return nil
}

func lockspaceOf(b []byte) (Lockspace, error) {
	d, err := wire.Decode[wire.DlmcLockspace](b)
	if err != nil {
		return Lockspace{}, malformed("%v", err)
	}
	return Lockspace{
		Name: text(d.Name[:]), GlobalID: d.GlobalID, Flags: LockspaceFlags(d.Flags),
		Started: changeOf(d.CgPrev), Next: changeOf(d.CgNext),
	}, nil
}

func changeOf(d wire.DlmcChange) Change {
	c := Change{
		Members: int(d.MemberCount), Joined: int(d.JoinedCount), Removed: int(d.RemoveCount), Failed: int(d.FailedCount),
		Seq: d.Seq, CombinedSeq: d.CombinedSeq, WaitMessages: d.WaitMessages != 0,
	}
	if c.WaitMessages {
		c.Missing = int(d.WaitCondition)
	} else {
		c.Wait = Wait(d.WaitCondition)
	}
	return c
}

func nodeOf(b []byte) (Node, error) {
	d, err := wire.Decode[wire.DlmcNode](b)
	if err != nil {
		return Node{}, malformed("%v", err)
	}
	return Node{
		NodeID: int(d.Nodeid), Flags: NodeFlags(d.Flags), AddedSeq: d.AddedSeq, RemovedSeq: d.RemovedSeq,
		FailReason: int(d.FailReason), Failed: seconds(d.FailWalltime),
	}, nil
}
