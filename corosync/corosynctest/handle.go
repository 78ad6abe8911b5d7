package corosynctest

import (
	"bytes"

	"github.com/vmlockd/vmlockd/corosync"
)

// maxMessage is about what corosync sends in one piece.
const maxMessage = 1 << 20

// handle is a connection of a process to its node's corosync, for a group or (with none) for the quorum.
type handle struct {
	p       *Process
	group   string
	deliver func(corosync.Event)
	ready   chan struct{}
	queue   []corosync.Event
	broken  error
}

func newHandle(p *Process, group string, deliver func(corosync.Event)) *handle {
	return &handle{p: p, group: group, deliver: deliver, ready: make(chan struct{}, 1)}
}

func (h *handle) lockedAdd(ev corosync.Event) {
	h.queue = append(h.queue, ev)
	h.lockedWake()
}

func (h *handle) lockedBreak(err error) {
	h.broken = err
	h.lockedWake()
}

func (h *handle) lockedWake() {
	if h.p.frozen != nil || h.p.node.stopped != nil || len(h.queue) == 0 && h.broken == nil {
		return
	}
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

// Self implements corosync.Conn. The quorum service does not tell.
func (h *handle) Self() corosync.Member {
	if h.group == "" {
		return corosync.Member{}
	}
	return corosync.Member{Node: h.p.node.id, PID: h.p.pid}
}

// Ready implements corosync.Conn.
func (h *handle) Ready() <-chan struct{} { return h.ready }

// MaxMessage implements corosync.CPG.
func (h *handle) MaxMessage() int { return maxMessage }

// Dispatch implements corosync.Conn. What was queued before a connection broke is delivered; corosync may do that or not.
func (h *handle) Dispatch() error {
	c := h.p.node.c
	for range 64 {
		c.mu.Lock()
		if h.p.frozen != nil || h.p.node.stopped != nil {
			c.mu.Unlock()
			return nil
		}
		if len(h.queue) == 0 {
			err := h.broken
			c.mu.Unlock()
			return err
		}
		ev := h.queue[0]
		h.queue = h.queue[1:]
		c.mu.Unlock()
		h.deliver(ev)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.lockedWake()
	return nil
}

// Send implements corosync.CPG.
func (h *handle) Send(data []byte) error {
	n := h.p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if err := h.p.lockedEnter(); err != nil {
		return err
	}
	if h.broken != nil {
		return h.broken
	}
	if n.busy {
		return corosync.ErrTryAgain
	}
	if len(data) > maxMessage {
		return corosync.LibraryError(26)
	}
	n.lockedSend(h.group, h.Self(), data)
	return nil
}

// lockedSend delivers a message to all members that this node can reach.
func (n *Node) lockedSend(group string, from corosync.Member, data []byte) {
	for _, h := range n.c.lockedHandles(group) {
		if h.p.node.part == n.part && h.p.node.running {
			h.lockedAdd(corosync.Message{From: from, Data: bytes.Clone(data)})
		}
	}
}

// Forge sends a message to a group from this node in the name of any member: what a lying process with root's rights could do.
func (n *Node) Forge(group string, from corosync.Member, data []byte) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.lockedSend(group, from, data)
}

// Close implements corosync.Conn.
func (h *handle) Close() error {
	n := h.p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if h.broken != nil {
		return h.broken
	}
	if err := h.p.lockedEnter(); err != nil {
		return err
	}
	h.broken = corosync.ErrNotRunning
	n.lockedForget(h, corosync.ReasonLeave)
	return nil
}
