package dlmtest

import (
	"container/heap"
	"container/list"
	"slices"
	"sync"

	"github.com/vmlockd/vmlockd/dlm"
)

// Cluster is several nodes that share lockspaces.
type Cluster struct {
	mu     sync.Mutex // guards everything in the cluster
	nodes  []*Node
	spaces map[string]*space
}

// NewCluster makes a cluster of n nodes, numbered from 1 on, all with power and none in a lockspace.
func NewCluster(n int) *Cluster {
	c := &Cluster{spaces: map[string]*space{}}
	for id := range n {
		node := &Node{c: c, id: uint32(id + 1), members: map[string]*member{}}
		node.Process = &Process{node: node, procs: map[*proc]struct{}{}}
		c.nodes = append(c.nodes, node)
	}
	return c
}

// Node is the node with that number, 1 being the first.
func (c *Cluster) Node(id int) *Node { return c.nodes[id-1] }

// Suspend stops a lockspace on all nodes, as during recovery, or without quorum, or while fencing is awaited: writes
// and closes wait for Resume. Calls do not nest.
func (c *Cluster) Suspend(lockspace string) {
	for _, n := range c.nodes {
		n.Suspend(lockspace)
	}
}

// Resume ends what Suspend began, on all nodes.
func (c *Cluster) Resume(lockspace string) {
	for _, n := range c.nodes {
		n.Resume(lockspace)
	}
}

// Recover is what the other nodes do about nodes that lost power: those leave their lockspaces, their locks end, and
// their orphans with them. Until then everything they had stays locked.
func (c *Cluster) Recover() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spaces {
		s.recover()
	}
	for _, n := range c.nodes {
		for name, m := range n.members {
			if m.dead {
				delete(n.members, name)
			}
		}
	}
}

// Held is a lock as the cluster has it.
type Held struct {
	Node   int
	Mode   dlm.Mode // granted; NL too if nothing is granted yet
	State  string   // "granted", "converting" or "waiting"
	Orphan bool
}

// Locks are the locks on a resource, for a test to look at: granted ones in the order they were granted in, then
// converting, then waiting ones.
func (c *Cluster) Locks(lockspace, name string) []Held {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.spaces[lockspace]
	if s == nil || s.resources[name] == nil {
		return nil
	}
	var held []Held
	for _, q := range s.resources[name].queues() {
		for _, l := range *q {
			held = append(held, Held{Node: int(l.m.node.id), Mode: dlm.Mode(max(l.gr, 0)), State: l.state.String(), Orphan: l.orphan})
		}
	}
	return held
}

// Names are the resources of a lockspace that have locks, sorted.
func (c *Cluster) Names(lockspace string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	if s := c.spaces[lockspace]; s != nil {
		for name := range s.resources {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Node is one machine. As a dlm.Kernel it is used by a process that lasts as long as the node does; NewProcess makes
// others, which can be killed.
type Node struct {
	*Process
	c         *Cluster
	id        uint32
	members   map[string]*member
	lastMinor uint32
	fault     func(Op) Fault
	panics    int
}

// ID is the node's number.
func (n *Node) ID() int { return int(n.id) }

// NewProcess starts a process on the node.
func (n *Node) NewProcess() *Process {
	return &Process{node: n, procs: map[*proc]struct{}{}}
}

// Suspend stops a lockspace on this node alone.
func (n *Node) Suspend(lockspace string) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if m := n.members[lockspace]; m != nil && !m.dead && m.running == nil {
		m.running = make(chan struct{})
	}
}

// Recovering lets the recovery of a lockspace that Suspend has stopped begin on this node, as dlm_controld does. It waits for
// the answer of node id until Resume. The lockspace stays stopped.
func (n *Node) Recovering(lockspace string, id int) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if m := n.members[lockspace]; m != nil && m.stopped() {
		m.asks = uint32(id)
	}
}

// Resume lets a lockspace go on that Suspend has stopped on this node.
func (n *Node) Resume(lockspace string) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if m := n.members[lockspace]; m != nil {
		m.resume()
	}
}

// PowerOff is the end of all processes on the node at once: what they do fails with ESHUTDOWN, and what waits returns.
// The node's locks stay until Recover. Boot gives it power again.
func (n *Node) PowerOff() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.die()
}

func (n *Node) die() {
	for _, m := range n.members {
		m.die()
	}
}

// panic is what a kernel does that must not go on: the node is off, and Panics says why the test should care.
func (n *Node) panic() {
	n.panics++
	n.die()
}

// Panics is how often the node's kernel has crashed, which is the end of all that runs on it, as PowerOff is. A purge
// can do that: see package dlm.
func (n *Node) Panics() int {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.panics
}

// Boot gives power to a node that had lost it. The cluster recovers first.
func (n *Node) Boot() { n.c.Recover() }

// space is a lockspace in all of the cluster.
type space struct {
	name      string
	resources map[string]*resource
	members   map[uint32]*member
}

// maxLocks bounds the locks of a node in a lockspace; more are ENOMEM.
const maxLocks = 1 << 20

// member is a lockspace on one node.
type member struct {
	node    *Node
	s       *space
	minor   uint32
	created int // how often
	open    map[*proc]struct{}
	unused  chan struct{} // while a removal waits: closed when nothing is open
	leaving bool
	dead    bool // the node lost power; Recover takes it out

	locks   map[uint32]*lock
	lastID  uint32
	freeIDs idHeap
	orphans list.List // of *lock, the oldest first

	asks    uint32        // the node that its recovery waits for; 0 if it has not begun
	running chan struct{} // nil unless the lockspace is stopped; closed when it goes on
	held    []func()      // results and closes that wait for that
}

func (m *member) stopped() bool { return m.running != nil }

func (m *member) resume() {
	if m.running == nil {
		return
	}
	close(m.running)
	m.running, m.asks = nil, 0
	held := m.held
	m.held = nil
	for _, f := range held {
		f()
	}
}

func (m *member) die() {
	if m.dead {
		return
	}
	m.dead = true
	m.held = nil
	m.resume()
	for p := range m.open {
		p.readable.Broadcast()
		p.clearIfIdle()
	}
}

// newID is the lowest number no lock has, as idr_alloc gives it.
func (m *member) newID() uint32 {
	if len(m.freeIDs) > 0 {
		return heap.Pop(&m.freeIDs).(uint32)
	}
	m.lastID++
	return m.lastID
}

func (m *member) freeID(id uint32) {
	delete(m.locks, id)
	heap.Push(&m.freeIDs, id)
}

type idHeap []uint32

func (h idHeap) Len() int           { return len(h) }
func (h idHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h idHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *idHeap) Push(x any)        { *h = append(*h, x.(uint32)) }
func (h *idHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
