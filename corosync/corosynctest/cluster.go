package corosynctest

import (
	"maps"
	"slices"
	"sync"

	"github.com/vmlockd/vmlockd/corosync"
)

// Cluster is several nodes that were configured to be one cluster.
type Cluster struct {
	mu    sync.Mutex // guards everything in the cluster
	nodes []*Node
	seq   uint64
}

// NewCluster makes a cluster of n nodes, numbered from 1 on, whose corosyncs run and see each other.
func NewCluster(n int) *Cluster {
	c := &Cluster{seq: 4}
	for id := range n {
		node := &Node{c: c, id: uint32(id + 1), running: true, cmap: map[string]corosync.Value{}}
		c.nodes = append(c.nodes, node)
	}
	for _, node := range c.nodes {
		node.ring = c.lockedRing(node)
		c.lockedConfigure(node)
	}
	return c
}

// Node is the node with that number, 1 being the first.
func (c *Cluster) Node(id int) *Node { return c.nodes[id-1] }

// Partition separates the nodes: each list is a part whose nodes see each other, and those that are in none are alone.
func (c *Cluster) Partition(parts ...[]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, n := range c.nodes {
		n.part = -1 - i
	}
	for i, part := range parts {
		for _, id := range part {
			c.nodes[id-1].part = i + 1
		}
	}
	c.lockedReform()
}

// Heal ends all partitions.
func (c *Cluster) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		n.part = 0
	}
	c.lockedReform()
}

// lockedRing is the ring that a node should have now.
func (c *Cluster) lockedRing(n *Node) corosync.Ring {
	r := corosync.Ring{ID: corosync.RingID{Seq: c.seq}}
	for _, o := range c.nodes {
		if o.running && o.part == n.part {
			r.Members = append(r.Members, o.id)
		}
	}
	if len(r.Members) > 0 {
		r.ID.Node = r.Members[0]
	}
	r.Quorate = 2*len(r.Members) > len(c.nodes)
	return r
}

// lockedReform lets every node notice who else is there now: first those who left, then those who came.
func (c *Cluster) lockedReform() {
	c.seq += 4
	for _, n := range c.nodes {
		if !n.running {
			continue
		}
		old, now := n.ring, c.lockedRing(n)
		for _, id := range now.Members {
			if !slices.Contains(old.Members, id) {
				now.Joined = append(now.Joined, id)
			}
		}
		for _, id := range old.Members {
			if !slices.Contains(now.Members, id) {
				now.Left = append(now.Left, id)
			}
		}
		if len(now.Joined)+len(now.Left) == 0 && now.Quorate == old.Quorate {
			continue
		}
		n.ring = now
		n.lockedTellRing(old.Quorate)
		n.lockedTellGroups(now)
	}
}

// lockedTellRing reports a change as corosync does: the membership, and then the quorum.
func (n *Node) lockedTellRing(wasQuorate bool) {
	first := n.ring
	first.Quorate = wasQuorate
	second := n.ring
	second.Joined, second.Left = nil, nil
	for _, q := range n.quorums {
		q.lockedAdd(first)
		q.lockedAdd(second)
	}
}

// lockedTellGroups tells the members on this node whom they lost and met with a new ring.
func (n *Node) lockedTellGroups(ring corosync.Ring) {
	for _, group := range slices.Sorted(maps.Keys(n.lockedGroups())) {
		var left, joined []corosync.Change
		for _, h := range n.c.lockedHandles(group) {
			switch {
			case slices.Contains(ring.Joined, h.p.node.id):
				joined = append(joined, corosync.Change{Member: h.Self(), Reason: corosync.ReasonNodeUp})
			case h.p.node != n && slices.Contains(ring.Left, h.p.node.id):
				left = append(left, corosync.Change{Member: h.Self(), Reason: corosync.ReasonNodeDown})
			}
		}
		// A node whose corosync ended has no handles any more: what it had is known from its last view.
		for _, m := range n.view[group] {
			if slices.Contains(ring.Left, m.Node) && !slices.ContainsFunc(left, func(c corosync.Change) bool { return c.Member == m }) {
				left = append(left, corosync.Change{Member: m, Reason: corosync.ReasonNodeDown})
			}
		}
		if len(left)+len(joined) == 0 {
			continue
		}
		n.lockedDeliverView(group, joined, left)
	}
}

// lockedGroups are the groups that have a member on this node.
func (n *Node) lockedGroups() map[string]bool {
	groups := map[string]bool{}
	for _, h := range n.handles {
		groups[h.group] = true
	}
	return groups
}

// lockedHandles are the members of a group, wherever they are.
func (c *Cluster) lockedHandles(group string) []*handle {
	var all []*handle
	for _, n := range c.nodes {
		for _, h := range n.handles {
			if h.group == group {
				all = append(all, h)
			}
		}
	}
	return all
}

// lockedDeliverView gives all members of a group on this node the membership as it is seen from here.
func (n *Node) lockedDeliverView(group string, joined, left []corosync.Change) {
	m := corosync.Membership{Joined: joined, Left: left}
	for _, h := range n.c.lockedHandles(group) {
		if h.p.node.part == n.part && h.p.node.running {
			m.Members = append(m.Members, h.Self())
		}
	}
	if n.view == nil {
		n.view = map[string][]corosync.Member{}
	}
	n.view[group] = m.Members
	for _, h := range n.handles {
		if h.group == group {
			h.lockedAdd(corosync.Membership{
				Members: slices.Clone(m.Members), Joined: slices.Clone(m.Joined), Left: slices.Clone(m.Left),
			})
		}
	}
}

// lockedChange tells a group that one member came or left, on all nodes that the member's node can reach.
func (n *Node) lockedChange(group string, joined, left []corosync.Change) {
	for _, o := range n.c.nodes {
		if o.running && o.part == n.part {
			o.lockedDeliverView(group, joined, left)
		}
	}
}
