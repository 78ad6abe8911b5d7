package corosync

import (
	"cmp"
	"fmt"
	"slices"
)

// Member is a process in a group.
type Member struct {
	Node uint32 // corosync's nodeid
	PID  uint32 // in that node's process namespace; a recycled number is possible
}

func (m Member) String() string { return fmt.Sprintf("node %d pid %d", m.Node, m.PID) }

func (m Member) compare(o Member) int {
	return cmp.Or(cmp.Compare(m.Node, o.Node), cmp.Compare(m.PID, o.PID))
}

// Reason is why a member came or left: cpg_reason_t of cpg.h. Others than these may come with a later corosync.
type Reason uint32

// Reasons.
const (
	ReasonJoin     Reason = 1 // the process joined
	ReasonLeave    Reason = 2 // the process left
	ReasonNodeDown Reason = 3 // its node, or the corosync there, is lost
	ReasonNodeUp   Reason = 4 // its node was separated, and is back
	ReasonProcDown Reason = 5 // the process ended without leaving
)

func (r Reason) String() string {
	switch r {
	case ReasonJoin:
		return "join"
	case ReasonLeave:
		return "leave"
	case ReasonNodeDown:
		return "node down"
	case ReasonNodeUp:
		return "node up"
	case ReasonProcDown:
		return "process down"
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Event is what Group.Events and Quorum.Events deliver: one of the types below. A Group delivers Up, Membership, Message
// and Down, a Quorum Up, Ring and Down.
type Event interface{ event() }

// Up says that there is a connection. What follows is news from now on; for a Group the next event is a Membership.
type Up struct {
	Self Member // this process; a Quorum leaves the pid 0
}

// Down says that there is no connection any more, or still none; what was known from it is void. Events that had not been
// taken by then may have been dropped, so a Down may follow a Down.
type Down struct {
	Err error // ErrNotRunning, ErrNoAnswer, ErrSlow, ErrAccess, ...
}

// Message is a message to the group.
type Message struct {
	From Member
	Data []byte // the receiver's own; never longer than Options.MaxMessage
}

// Membership is a change of the group.
type Membership struct {
	Members      []Member // all, by node and pid; with this process
	Joined, Left []Change
}

// Change is one who came or left.
type Change struct {
	Member
	Reason Reason
}

func (c Change) String() string { return fmt.Sprintf("%v (%v)", c.Member, c.Reason) }

// RingID names a configuration of the ring: no two of them in a cluster's life have the same.
type RingID struct {
	Node uint32 // the node that formed it
	Seq  uint64
}

// Ring is the state of the cluster as this host's corosync sees it, after a change of the membership or the quorum.
type Ring struct {
	// Quorate: this part of the cluster may act. Always true where no quorum provider is configured. The quorum follows
	// a change of the membership by a moment, with an event of its own.
	Quorate bool
	ID      RingID
	Members []uint32 // node ids, in order
	// Joined and Left are the change of the membership that this event is about. A node can be in both: it was gone for a moment.
	Joined, Left []uint32
}

func (Up) event()         {}
func (Down) event()       {}
func (Message) event()    {}
func (Membership) event() {}
func (Ring) event()       {}

// size is what an event counts for against Options.Queue, in bytes.
func size(ev Event) int {
	const each = 64
	switch ev := ev.(type) {
	case Message:
		return each + len(ev.Data)
	case Membership:
		return each + 8*len(ev.Members) + 12*(len(ev.Joined)+len(ev.Left))
	case Ring:
		return each + 4*(len(ev.Members)+len(ev.Joined)+len(ev.Left))
	}
	return each
}

// clone copies a Ring, whose lists several may get.
func (r Ring) clone() Ring {
	r.Members, r.Joined, r.Left = slices.Clone(r.Members), slices.Clone(r.Joined), slices.Clone(r.Left)
	return r
}

// sort puts the lists in order.
func (m *Membership) sort() {
	slices.SortFunc(m.Members, Member.compare)
	by := func(a, b Change) int { return a.compare(b.Member) }
	slices.SortFunc(m.Joined, by)
	slices.SortFunc(m.Left, by)
}
