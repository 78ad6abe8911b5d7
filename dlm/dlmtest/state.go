package dlmtest

import (
	"io"
	"os"
	"syscall"

	"github.com/vmlockd/vmlockd/dlm"
)

var (
	_ dlm.StateKernel = (*Process)(nil)
	_ dlm.NodeKernel  = (*Process)(nil)

	_ dlm.RecoverKernel = (*Process)(nil)
)

// RecoverStatus opens what the node's kernel says about the recovery of a lockspace: "0" while it is stopped, "1" while
// it is Recovering, and otherwise what Linux shows once a recovery is over, "ff" on the member with the lowest number and "55" on others.
func (p *Process) RecoverStatus(lockspace string) (dlm.StateFile, error) {
	c := p.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	m := p.node.members[lockspace]
	if m == nil || m.dead {
		return nil, dlm.ErrNoLockspace
	}
	return &stateFile{m: m}, nil
}

// RecoverNode is the node that Recovering has named.
func (p *Process) RecoverNode(lockspace string) (uint32, error) {
	c := p.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	m := p.node.members[lockspace]
	if m == nil || m.dead {
		return 0, dlm.ErrNoLockspace
	}
	return m.asks, nil
}

// NodeID is the node's number.
func (p *Process) NodeID() (uint32, error) { return p.node.id, nil }

type stateFile struct {
	m      *member
	closed bool // guarded by the cluster's mutex
}

func (f *stateFile) ReadAt(b []byte, off int64) (int, error) {
	c := f.m.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	text := ""
	switch {
	case f.closed:
		return 0, os.ErrClosed
	case f.m.dead || f.m.node.members[f.m.s.name] != f.m:
		return 0, syscall.ENODEV
	case f.m.stopped() && f.m.asks != 0:
		text = "1\n" // DLM_RS_NODES: it knows the members, and waits for one of them
	case f.m.stopped():
		text = "0\n"
	case f.m.lowest():
		text = "ff\n"
	default:
		text = "55\n"
	}
	if off >= int64(len(text)) {
		return 0, io.EOF
	}
	n := copy(b, text[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *stateFile) Close() error {
	c := f.m.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	return nil
}

func (m *member) lowest() bool {
	for id, other := range m.s.members {
		if id < m.node.id && !other.dead {
			return false
		}
	}
	return true
}
