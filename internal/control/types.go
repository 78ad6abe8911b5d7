package control

import (
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Holder is an owner of a lock.
type Holder struct {
	NodeID    uint32    `json:"node_id"` // 0 without a cluster
	Node      string    `json:"node"`
	VM        string    `json:"vm"`
	UUID      string    `json:"uuid"`
	PID       int32     `json:"pid"`
	Mode      string    `json:"mode"` // "exclusive" or "shared"
	Lockspace string    `json:"lockspace"`
	Resource  string    `json:"resource"` // mostly the path of a disk
	Since     time.Time `json:"since"`

	id string // locking.Holder.ID
}

// Missing is a node that did not say what it holds.
type Missing struct {
	NodeID uint32 `json:"node_id"` // 0: all nodes but this one
	Node   string `json:"node"`
	Error  string `json:"error"`
}

// The scopes of an answer.
const (
	ScopeHost    = "host"
	ScopeCluster = "cluster"
)

// Holders answers /v1/holders and /v1/who.
type Holders struct {
	Scope   string    `json:"scope"`
	Holders []Holder  `json:"holders"`
	Missing []Missing `json:"missing"` // the answer is incomplete if there is any
}

// Disk is what a path leads to on a node; package identity says what that means.
type Disk struct {
	NodeID   uint32   `json:"node_id"` // 0 without a cluster
	Node     string   `json:"node"`
	Path     string   `json:"path"`     // without symbolic links
	Type     string   `json:"type"`     // kind of device, or file system
	Scope    string   `json:"scope"`    // ScopeCluster, or ScopeHost if no other host can use it; "" with an Error
	Name     string   `json:"name"`     // what the lock is for
	Resource string   `json:"resource"` // of the DLM; "" without one
	ByPath   bool     `json:"by_path"`  // the name is made of the path
	Doubt    bool     `json:"doubt"`    // another host may name it otherwise, and no rule says what is meant
	Steps    []string `json:"steps"`    // why
	Error    string   `json:"error,omitempty"`
	// Differs says that the node asked takes it for another disk than this one.
	Differs bool `json:"differs"`
}

// Identified answers /v1/identify.
type Identified struct {
	Asked   string    `json:"asked"`
	Disks   []Disk    `json:"disks"`   // that of the node asked first
	Missing []Missing `json:"missing"` // nodes that did not answer
}

// Event is one thing that happened to a lock or an owner.
type Event struct {
	Seq       uint64    `json:"seq"`
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"`
	VM        string    `json:"vm"`
	UUID      string    `json:"uuid"`
	PID       int32     `json:"pid"`
	Mode      string    `json:"mode,omitempty"` // empty for events of an owner
	Lockspace string    `json:"lockspace"`
	Resource  string    `json:"resource"`
	Reason    string    `json:"reason,omitempty"`
	Took      float64   `json:"took_seconds,omitempty"`
	Held      float64   `json:"held_seconds,omitempty"`
	Locks     int       `json:"locks,omitempty"` // of an owner that has ended
}

// Line is one line of /v1/events: an event, or how many were missed.
type Line struct {
	*Event
	Missed uint64 `json:"missed,omitempty"`
}

// Waiter is a request for a lock that has not been answered yet.
type Waiter struct {
	VM        string    `json:"vm"`
	UUID      string    `json:"uuid"`
	PID       int32     `json:"pid"`
	Mode      string    `json:"mode"`
	Lockspace string    `json:"lockspace"`
	Resource  string    `json:"resource"`
	Since     time.Time `json:"since"`
}

// Refused answers /v1/refused.
type Refused struct {
	Refused []Event  `json:"refused"` // oldest first
	Waiting []Waiter `json:"waiting"`
}

// Drained says since when a host is being drained, and who wanted it.
type Drained struct {
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// Drain answers /v1/drain.
type Drain struct {
	Draining bool `json:"draining"`
	*Drained
	Left    []Holder `json:"left"`
	Waiting []Waiter `json:"waiting"`
	// Returning are suspended virtual machines, as far as the daemon can tell, which have given
	// their disks back and take them again when they are resumed.
	Returning []Returner `json:"returning"`
	Note      string     `json:"note,omitempty"`
}

// Returner is a virtual machine that lives, and a disk that it gave back during a drain.
type Returner struct {
	VM        string `json:"vm"`
	UUID      string `json:"uuid"`
	PID       int32  `json:"pid"`
	Lockspace string `json:"lockspace"`
	Resource  string `json:"resource"`
}

// DrainRequest is the body of POST /v1/drain.
type DrainRequest struct {
	Undo   bool   `json:"undo"`
	Reason string `json:"reason"`
}

// ReleaseRequest is the body of POST /v1/release.
type ReleaseRequest struct {
	Lockspace string `json:"lockspace"`
	Resource  string `json:"resource"`
	PID       *int32 `json:"pid,omitempty"` // only this owner; nil means all
	// Holders are those that whoever asks has seen and means. Only they are released,
	// and nobody is if one of them is not there any more. nil means all.
	Holders []Seen `json:"holders,omitzero"`
	Node    string `json:"node,omitempty"` // number or name; empty means this one
	Force   bool   `json:"force"`
	Reason  string `json:"reason"` // must be there with Force
}

// Seen is a hold of a resource as a listing showed it: nobody else has these two.
type Seen struct {
	PID   int32     `json:"pid"`
	Since time.Time `json:"since"`
}

// Released answers it.
type Released struct {
	Released []Holder `json:"released"`
	Note     string   `json:"note,omitempty"`
}

// Status answers /v1/status.
type Status struct {
	Version  string            `json:"version"`
	PID      int               `json:"pid"`
	Started  time.Time         `json:"started"`
	Backend  string            `json:"backend"` // "local" or "cluster"
	Socket   string            `json:"socket"`  // where libvirt connects to
	NodeID   uint32            `json:"node_id"` // 0 without a cluster
	Node     string            `json:"node"`
	Draining *Drained          `json:"draining"`
	Counts   Counts            `json:"counts"`
	Events   map[string]uint64 `json:"events"`   // by kind, since Started
	Watchers int               `json:"watchers"` // streams of events
	Cluster  *Cluster          `json:"cluster"`
	Members  []Member          `json:"members"`
	Warnings []Warning         `json:"warnings"`
}

// Counts are of this host.
type Counts struct {
	Locks     int `json:"locks"` // uses of resources by owners
	Exclusive int `json:"exclusive"`
	Shared    int `json:"shared"`
	Resources int `json:"resources"`
	Owners    int `json:"owners"`
	Waiting   int `json:"waiting"`
}

// What is known of a condition.
const (
	Yes     = "yes"
	No      = "no"
	Unknown = "unknown"
)

// The states of a lockspace.
const (
	LockspaceJoining = "joining"
	LockspaceRunning = "running"
	LockspaceStopped = "stopped"
	LockspaceDead    = "dead" // nothing but a reboot of this host helps
)

// Cluster is the cluster as this host sees it.
type Cluster struct {
	Name      string        `json:"name"`
	NodeID    uint32        `json:"node_id"`
	Quorate   string        `json:"quorate"` // Yes, No or Unknown
	Fencing   string        `json:"fencing"` // whether it is enabled: Yes, No or Unknown
	Guarded   bool          `json:"guarded"` // something keeps a host that is cut off from writing
	Guard     *GuardState   `json:"guard,omitempty"`
	Lockspace DLMLockspace  `json:"lockspace"`
	Nodes     []ClusterNode `json:"-"` // in Status.Members
	Error     string        `json:"error,omitempty"`
}

// DLMLockspace is the lockspace of the kernel's DLM.
type DLMLockspace struct {
	Name      string     `json:"name"`
	State     string     `json:"state"`
	WaitsFor  string     `json:"waits_for,omitempty"` // unless it is running
	Since     *time.Time `json:"since,omitempty"`     // for LockspaceStopped
	InFlight  int        `json:"in_flight"`           // requests in the kernel
	Oldest    float64    `json:"oldest_seconds"`      // how long the oldest of them has been there
	Undecided int        `json:"undecided"`           // requests that were given up, and releases that go on by themselves
}

// ClusterNode is a node as dlm_controld knows it.
type ClusterNode struct {
	NodeID       uint32
	Member       bool
	NeedsFencing bool
	Lost         *time.Time
}

// Member is a node of the cluster.
type Member struct {
	NodeID       uint32     `json:"node_id"`
	Name         string     `json:"name"`
	Self         bool       `json:"self"`
	Member       string     `json:"member"`  // of the DLM's group: Yes, No or Unknown
	Version      string     `json:"version"` // of vmlockd; empty if not known
	Silent       bool       `json:"silent"`
	NeedsFencing bool       `json:"needs_fencing"`
	Lost         *time.Time `json:"lost,omitempty"`
}

// Warning is something that an operator should know or change.
type Warning struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func holderOf(nodeID uint32, node string, h locking.Holder) Holder {
	return Holder{
		NodeID: nodeID, Node: node, VM: h.Owner.Name, UUID: locking.FormatUUID(h.Owner.UUID), PID: h.Owner.PID,
		Mode: h.Mode.String(), Lockspace: h.Ref.Lockspace, Resource: h.Ref.Name, Since: h.Since.UTC(),
		id: h.ID,
	}
}

func returnersOf(list []locking.Returner) []Returner {
	out := make([]Returner, len(list))
	for i, r := range list {
		out[i] = Returner{VM: r.Owner.Name, UUID: locking.FormatUUID(r.Owner.UUID), PID: r.Owner.PID, Lockspace: r.Ref.Lockspace, Resource: r.Ref.Name}
	}
	return out
}

func waitersOf(list []locking.Waiter) []Waiter {
	out := make([]Waiter, len(list))
	for i, w := range list {
		out[i] = Waiter{
			VM: w.Owner.Name, UUID: locking.FormatUUID(w.Owner.UUID), PID: w.Owner.PID, Mode: w.Mode.String(),
			Lockspace: w.Ref.Lockspace, Resource: w.Ref.Name, Since: w.Since.UTC(),
		}
	}
	return out
}
