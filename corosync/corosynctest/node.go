package corosynctest

import (
	"fmt"
	"slices"

	"github.com/vmlockd/vmlockd/corosync"
)

// Node is a host.
type Node struct {
	c  *Cluster
	id uint32

	running bool          // its corosync runs
	stopped chan struct{} // not nil while its corosync is stopped; closed when it goes on
	busy    bool
	part    int
	ring    corosync.Ring
	cmap    map[string]corosync.Value
	view    map[string][]corosync.Member // the last membership of each group
	handles []*handle
	quorums []*handle
	lastPID uint32
}

// ID is corosync's nodeid.
func (n *Node) ID() uint32 { return n.id }

// NewProcess starts a process. It is a corosync.System.
func (n *Node) NewProcess() *Process {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.lastPID++
	return &Process{node: n, pid: 100*n.id + n.lastPID}
}

// StopCorosync ends the node's corosync, or takes the node's power: the others lose the node, and its processes the connections.
func (n *Node) StopCorosync() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if !n.running {
		return
	}
	n.running = false
	for _, h := range append(slices.Clone(n.handles), n.quorums...) {
		h.lockedBreak(corosync.ErrNotRunning)
	}
	n.handles, n.quorums, n.view = nil, nil, nil
	n.lockedResume()
	n.ring = corosync.Ring{}
	n.c.lockedReform()
}

// StartCorosync starts it again.
func (n *Node) StartCorosync() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.running {
		return
	}
	n.running = true
	n.c.lockedReform()
}

// Suspend stops the node's corosync as SIGSTOP does: its calls hang, and it delivers nothing. The others do not notice;
// together with Partition it is a node that is frozen for longer.
func (n *Node) Suspend() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.stopped == nil {
		n.stopped = make(chan struct{})
	}
}

// Resume ends Suspend.
func (n *Node) Resume() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.lockedResume()
}

func (n *Node) lockedResume() {
	if n.stopped == nil {
		return
	}
	close(n.stopped)
	n.stopped = nil
	for _, h := range append(slices.Clone(n.handles), n.quorums...) {
		h.lockedWake()
	}
}

// SetBusy has corosync say "try again" to connections and messages.
func (n *Node) SetBusy(busy bool) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.busy = busy
}

// Set changes the node's cmap.
func (n *Node) Set(key string, v corosync.Value) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.cmap[key] = v
}

// lockedConfigure fills the cmap with what a corosync.conf of this cluster would.
func (c *Cluster) lockedConfigure(n *Node) {
	n.cmap["totem.cluster_name"] = corosync.TextValue("test")
	n.cmap["runtime.config.totem.token"] = corosync.UintValue(1000)
	n.cmap["runtime.config.totem.consensus"] = corosync.UintValue(1200)
	for i, o := range c.nodes {
		place := fmt.Sprintf("nodelist.node.%d.", i)
		n.cmap[place+"nodeid"] = corosync.UintValue(uint64(o.id))
		n.cmap[place+"name"] = corosync.TextValue(fmt.Sprintf("node%d", o.id))
		n.cmap[place+"ring0_addr"] = corosync.TextValue(fmt.Sprintf("192.0.2.%d", o.id))
	}
}
