package corosynctest

import (
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/corosync"
)

// Process is a process of a node. It implements corosync.System.
type Process struct {
	node *Node
	pid  uint32

	killed bool
	frozen chan struct{} // not nil while it is frozen; closed when it goes on
}

// Node is the node it runs on, and PID its number.
func (p *Process) Node() *Node { return p.node }

// PID is its number as a member of groups.
func (p *Process) PID() uint32 { return p.pid }

// Kill ends the process. What it had open is closed; its calls fail from then on.
func (p *Process) Kill() {
	n := p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	p.killed = true
	p.lockedThaw()
	for _, h := range append(slices.Clone(n.handles), n.quorums...) {
		if h.p == p {
			h.lockedBreak(corosync.ErrNotRunning)
			n.lockedForget(h, corosync.ReasonProcDown)
		}
	}
}

// Freeze stops the process, as far as it has to do with corosync: it gets no events, and its calls hang until Thaw.
// Nobody else notices.
func (p *Process) Freeze() {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	if p.frozen == nil && !p.killed {
		p.frozen = make(chan struct{})
	}
}

// Thaw ends Freeze.
func (p *Process) Thaw() {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	p.lockedThaw()
}

func (p *Process) lockedThaw() {
	if p.frozen == nil {
		return
	}
	close(p.frozen)
	p.frozen = nil
	for _, h := range append(slices.Clone(p.node.handles), p.node.quorums...) {
		h.lockedWake()
	}
}

// lockedForget removes a connection, and tells its group.
func (n *Node) lockedForget(h *handle, why corosync.Reason) {
	is := func(o *handle) bool { return o == h }
	n.quorums = slices.DeleteFunc(n.quorums, is)
	if !slices.Contains(n.handles, h) {
		return
	}
	left := []corosync.Change{{Member: h.Self(), Reason: why}}
	// The one who leaves hears of it too, if it still listens.
	n.handles = slices.DeleteFunc(n.handles, is)
	n.lockedChange(h.group, nil, left)
}

// OpenCPG implements corosync.System.
func (p *Process) OpenCPG(group string, deliver func(corosync.Event)) (corosync.CPG, error) {
	n := p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if err := p.lockedOpen(); err != nil {
		return nil, err
	}
	for _, h := range n.handles {
		if h.p == p && h.group == group {
			return nil, corosync.ErrMember
		}
	}
	h := newHandle(p, group, deliver)
	n.handles = append(n.handles, h)
	n.lockedChange(group, []corosync.Change{{Member: h.Self(), Reason: corosync.ReasonJoin}}, nil)
	return h, nil
}

// OpenQuorum implements corosync.System.
func (p *Process) OpenQuorum(deliver func(corosync.Event)) (corosync.Conn, error) {
	n := p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if err := p.lockedOpen(); err != nil {
		return nil, err
	}
	h := newHandle(p, "", deliver)
	n.quorums = append(n.quorums, h)
	now := n.ring
	now.Joined, now.Left = nil, nil
	h.lockedAdd(now)
	return h, nil
}

// lockedEnter waits until the process runs and its node's corosync answers, and says whether that can be used. It unlocks
// while it waits.
func (p *Process) lockedEnter() error {
	n := p.node
	for n.stopped != nil || p.frozen != nil {
		wait := n.stopped
		if p.frozen != nil {
			wait = p.frozen
		}
		n.c.mu.Unlock()
		<-wait
		n.c.mu.Lock()
	}
	if !n.running || p.killed {
		return corosync.ErrNotRunning
	}
	return nil
}

// lockedOpen is lockedEnter for a new connection.
func (p *Process) lockedOpen() error {
	if err := p.lockedEnter(); err != nil {
		return err
	}
	if p.node.busy {
		return corosync.ErrTryAgain
	}
	return nil
}

// OpenCmap implements corosync.System.
func (p *Process) OpenCmap() (corosync.Map, error) {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	if err := p.lockedOpen(); err != nil {
		return nil, err
	}
	return cmapHandle{p}, nil
}

type cmapHandle struct{ p *Process }

func (h cmapHandle) Get(key string) (corosync.Value, error) {
	n := h.p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if err := h.p.lockedEnter(); err != nil {
		return corosync.Value{}, err
	}
	v, ok := n.cmap[key]
	if !ok {
		return corosync.Value{}, corosync.ErrNoKey
	}
	return v, nil
}

func (h cmapHandle) Keys(prefix string, limit int) ([]string, error) {
	n := h.p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if err := h.p.lockedEnter(); err != nil {
		return nil, err
	}
	var keys []string
	for key := range n.cmap {
		if strings.HasPrefix(key, prefix) && len(keys) < limit {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func (h cmapHandle) Close() error { return nil }
