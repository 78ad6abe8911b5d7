package dlmtest

import (
	"sync"

	"github.com/vmlockd/vmlockd/dlm"
)

// Op is a write that reaches a node's kernel.
type Op struct {
	Op        string // "lock", "convert", "adopt", "unlock", "cancel", "purge", "create", "remove"
	Lockspace string
	Name      string   // the resource's name, where the operation has one
	Mode      dlm.Mode // of lock, convert and adopt
	Flags     uint32   // the kernel's flags of the request (DLM_LKF_*), of operations on locks
}

// Fault is what is to happen to a write. The zero Fault is nothing.
type Fault struct {
	Err    error // the write fails with this, usually a syscall.Errno, and does nothing
	Before *Gate // the write waits for it before it does anything
	After  *Gate // the write has done its work and waits for it before it returns
	Result *Gate // results about the lock wait for it, from this one on
}

// SetFault has f called for each write to the node's kernel, with what it is about to do; f must not call into the
// cluster. nil ends that.
func (n *Node) SetFault(f func(Op) Fault) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.fault = f
}

// run does a write: the fault asked for it, the wait for gate's lockspace (nil: none), and do.
func (n *Node) run(op Op, gate *member, do func(Fault) (int, error)) (int, error) {
	var f Fault
	if n.fault != nil {
		f = n.fault(op)
	}
	n.pass(f.Before)
	for gate != nil && gate.stopped() {
		running := gate.running
		n.c.mu.Unlock()
		<-running
		n.c.mu.Lock()
	}
	if f.Err != nil {
		return 0, f.Err
	}
	r, err := do(f)
	n.pass(f.After)
	return r, err
}

func (n *Node) pass(g *Gate) {
	if g != nil {
		n.c.mu.Unlock()
		<-g.open
		n.c.mu.Lock()
	}
}

// Gate is closed until Open is called.
type Gate struct {
	open chan struct{}

	mu    sync.Mutex // guards what follows
	isOn  bool
	after []func()
}

// NewGate makes a closed gate.
func NewGate() *Gate { return &Gate{open: make(chan struct{})} }

// Open opens the gate for good.
func (g *Gate) Open() {
	g.mu.Lock()
	first := !g.isOn
	g.isOn = true
	after := g.after
	g.after = nil
	g.mu.Unlock()
	if first {
		close(g.open)
	}
	for _, f := range after {
		f()
	}
}

// then has f called when the gate opens, or reports false if it is open.
func (g *Gate) then(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isOn {
		return false
	}
	g.after = append(g.after, f)
	return true
}
