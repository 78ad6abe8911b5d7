package dlmtest

import (
	"container/list"
	"os"
	"sync"
	"syscall"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// Process is a process on a node: its dlm.Kernel, with devices that all close when it is killed.
type Process struct {
	node     *Node
	procs    map[*proc]struct{} // open lockspace devices
	detached map[int]*proc      // those that no device in use is of, by descriptor
	lastFD   int
	killed   bool
}

var _ dlm.HandoverKernel = (*Process)(nil)

// Kill ends the process at once, as SIGKILL does: its devices read and write nothing any more, and are closed. Writes
// that wait for a stopped lockspace are carried out before that, when it goes on; Kill does not wait for it.
func (p *Process) Kill() {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	p.killed = true
	for d := range p.procs {
		d.shutLocked()
	}
}

// Node is the node the process runs on.
func (p *Process) Node() *Node { return p.node }

// Control opens the control device.
func (p *Process) Control() (dlm.Device, error) {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	if p.killed {
		return nil, os.ErrClosed
	}
	return &controlDevice{p: p}, nil
}

// Minor is the minor number of the lockspace's device.
func (p *Process) Minor(lockspace string) (uint32, error) {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	m := p.node.members[lockspace]
	if m == nil || m.leaving || m.dead {
		return 0, dlm.ErrNoLockspace
	}
	return m.minor, nil
}

// Lockspace opens the lockspace's device.
func (p *Process) Lockspace(lockspace string, minor uint32) (dlm.Device, error) {
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	m := p.node.members[lockspace]
	switch {
	case p.killed:
		return nil, os.ErrClosed
	case m == nil || m.leaving || m.dead || m.minor != minor:
		return nil, syscall.ENOENT
	}
	d := &proc{p: p, m: m, cleared: make(chan struct{})}
	d.readable.L = &p.node.c.mu
	p.procs[d] = struct{}{}
	m.open[d] = struct{}{}
	return &device{proc: d}, nil
}

// Attach goes on with a device that was detached in the same process.
func (p *Process) Attach(lockspace string, minor uint32, fd int) (dlm.Device, error) {
	p.node.c.mu.Lock()
	d := p.detached[fd]
	delete(p.detached, fd)
	switch {
	case p.killed:
		p.node.c.mu.Unlock()
		return nil, os.ErrClosed
	case d == nil:
		p.node.c.mu.Unlock()
		return nil, syscall.EINVAL
	case d.m.s.name != lockspace || d.m.minor != minor:
		p.node.c.mu.Unlock()
		d.Close()
		return nil, syscall.EINVAL
	}
	defer p.node.c.mu.Unlock()
	return &device{proc: d}, nil
}

// device is what a program has of an open file, until it detaches it.
type device struct {
	*proc
	left bool // guarded by the cluster's mu
}

func (d *device) Write(buf []byte) (int, error) {
	d.p.node.c.mu.Lock()
	left := d.left
	d.p.node.c.mu.Unlock()
	if left {
		return 0, os.ErrClosed
	}
	return d.proc.Write(buf)
}

func (d *device) Read(buf []byte) (int, error) { return d.proc.read(buf, &d.left) }

func (d *device) Close() error {
	d.p.node.c.mu.Lock()
	left := d.left
	d.p.node.c.mu.Unlock()
	if left {
		return os.ErrClosed
	}
	return d.proc.Close()
}

// Detach leaves the file open.
func (d *device) Detach() (int, error) {
	p := d.p
	p.node.c.mu.Lock()
	defer p.node.c.mu.Unlock()
	if d.left || d.closed {
		return -1, os.ErrClosed
	}
	d.left = true
	d.readable.Broadcast()
	if p.detached == nil {
		p.detached = map[int]*proc{}
	}
	p.lastFD++
	p.detached[p.lastFD] = d.proc
	return p.lastFD, nil
}

// controlDevice is an open /dev/dlm-control.
type controlDevice struct {
	p *Process
}

func (d *controlDevice) Read([]byte) (int, error) { return 0, syscall.EINVAL }
func (d *controlDevice) Close() error             { return nil }

func (d *controlDevice) Write(buf []byte) (int, error) {
	n := d.p.node
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	req, errno := decode(buf)
	if errno != 0 {
		return 0, errno
	}
	op := Op{Lockspace: req.Name}
	switch req.Cmd {
	case abi.CmdCreateLockspace:
		op.Op = "create"
	case abi.CmdRemoveLockspace:
		op.Op = "remove"
		for name, m := range n.members {
			if m.minor == req.Lspace.Minor && !m.dead {
				op.Lockspace = name
			}
		}
	default:
		return 0, syscall.EINVAL // locks only on the device of a lockspace
	}
	return n.run(op, nil, func(Fault) (int, error) {
		if op.Op == "create" {
			return n.create(op.Lockspace, req.Lspace.Flags)
		}
		return n.remove(op.Lockspace, req.Lspace.Flags)
	})
}

func decode(buf []byte) (abi.Request, syscall.Errno) {
	req, err := abi.DecodeRequest(buf)
	switch {
	case err == nil:
		return req, 0
	case err.Error() == "request: "+abi.ErrVersion.Error():
		return req, syscall.EBADE
	}
	return req, syscall.EINVAL
}

func (n *Node) create(name string, flags uint32) (int, error) {
	if name == "" || len(name) > dlm.MaxLockspaceName {
		return 0, syscall.EINVAL
	}
	m := n.members[name]
	if m != nil && !m.dead {
		if flags&abi.LspaceNewExcl != 0 {
			return 0, syscall.EEXIST
		}
		m.created++
		return int(m.minor), nil
	}
	s := n.c.spaces[name]
	if s == nil {
		s = &space{name: name, resources: map[string]*resource{}, members: map[uint32]*member{}}
		n.c.spaces[name] = s
	}
	if m != nil {
		s.recover() // a node cannot come back before the others know that it was away
	}
	n.lastMinor++
	m = &member{node: n, s: s, minor: n.lastMinor, created: 1, open: map[*proc]struct{}{}, locks: map[uint32]*lock{}}
	n.members[name], s.members[n.id] = m, m
	return int(m.minor), nil
}

func (n *Node) remove(name string, flags uint32) (int, error) {
	m := n.members[name]
	if m == nil || m.dead || m.leaving {
		return 0, syscall.ENOENT
	}
	if flags&abi.LspaceForceFree == 0 && m.busy() && m.created == 1 {
		return 0, syscall.EBUSY
	}
	if m.created--; m.created > 0 {
		return 0, nil
	}
	m.leaving = true
	for len(m.open) > 0 && !m.dead {
		m.unused = make(chan struct{})
		unused := m.unused
		n.c.mu.Unlock()
		<-unused
		n.c.mu.Lock()
	}
	if m.dead {
		return 0, syscall.ESHUTDOWN
	}
	delete(n.members, name)
	m.s.leave(m)
	return 0, nil
}

// busy reports whether the node knows of any lock in the lockspace: its own, or one on a resource it is the master of.
func (m *member) busy() bool {
	if len(m.locks) > 0 {
		return true
	}
	for _, r := range m.s.resources {
		if r.master == m {
			return true // a resource without locks does not exist
		}
	}
	return false
}

// proc is an open device of a lockspace, which to the kernel is a process (struct dlm_user_proc).
type proc struct {
	p *Process
	m *member

	readable sync.Cond // results has grown, or the device is closed
	results  list.List // of *lock with callbacks
	locks    list.List // of *lock, in the order they were had in
	inFlight int       // writes
	closed   bool
	clearing bool          // the close has done its work
	cleared  chan struct{} // closed when that is so
}

func (d *proc) Write(buf []byte) (int, error) {
	c := d.p.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.closed {
		return 0, os.ErrClosed
	}
	req, errno := decode(buf)
	if errno != 0 {
		return 0, errno
	}
	op := Op{Lockspace: d.m.s.name, Name: req.Name, Mode: dlm.Mode(req.Lock.Mode), Flags: req.Lock.Flags}
	var do func(Fault) (int, error)
	gate := d.m
	switch {
	case req.Cmd == abi.CmdPurge:
		op.Op, op.Mode = "purge", 0
		do = func(Fault) (int, error) { return 0, d.m.purge(req.Purge.Nodeid, req.Purge.Pid) }
		if id := req.Purge.Nodeid; id != 0 && id != d.m.node.id {
			gate = nil // another node is only sent a message
		}
	case req.Cmd == abi.CmdLock && req.Lock.Flags&abi.FlagConvert != 0:
		op.Op = "convert"
		do = func(f Fault) (int, error) { return 0, d.convert(&req.Lock, f) }
	case req.Cmd == abi.CmdLock && req.Lock.Flags&abi.FlagOrphan != 0:
		op.Op = "adopt"
		do = func(Fault) (int, error) { return d.adopt(&req.Lock, req.Name) }
		gate = nil
	case req.Cmd == abi.CmdLock:
		op.Op = "lock"
		do = func(f Fault) (int, error) { return d.request(&req.Lock, req.Name, f) }
	case req.Cmd == abi.CmdUnlock:
		op.Op = "unlock"
		if req.Lock.Flags&abi.FlagCancel != 0 {
			op.Op = "cancel"
		}
		if l := d.m.locks[req.Lock.Lkid]; l != nil {
			op.Name = l.r.name
		}
		do = func(f Fault) (int, error) { return 0, d.unlock(&req.Lock, f) }
	default:
		return 0, syscall.EINVAL
	}
	if op.Op == "convert" {
		if l := d.m.locks[req.Lock.Lkid]; l != nil {
			op.Name = l.r.name
		}
	}
	d.inFlight++
	defer func() {
		d.inFlight--
		d.clearIfIdle()
	}()
	return d.p.node.run(op, gate, func(f Fault) (int, error) {
		if d.m.dead {
			return 0, syscall.ESHUTDOWN
		}
		return do(f)
	})
}

func (d *proc) read(buf []byte, left *bool) (int, error) {
	c := d.p.node.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for d.results.Len() == 0 && !d.closed && !d.m.dead && !*left {
			d.readable.Wait()
		}
		switch {
		case d.closed, *left:
			return 0, os.ErrClosed
		case d.m.dead:
			return 0, syscall.ESHUTDOWN
		case len(buf) < abi.ResultSize:
			return 0, syscall.EINVAL
		}
		if result := d.nextResult(len(buf)); result != nil {
			return copy(buf, result), nil
		}
	}
}

func (d *proc) Close() error {
	c := d.p.node.c
	c.mu.Lock()
	if d.closed && !d.p.killed {
		c.mu.Unlock()
		return os.ErrClosed
	}
	d.shutLocked()
	c.mu.Unlock()
	<-d.cleared
	return nil
}

func (d *proc) shutLocked() {
	d.closed = true
	d.readable.Broadcast()
	d.clearIfIdle()
}

// clearIfIdle does the work of a close when nothing is in the way any more: no write, no stopped lockspace.
func (d *proc) clearIfIdle() {
	if d.clearing || d.inFlight > 0 || !d.closed && !d.m.dead {
		return
	}
	if d.m.stopped() {
		d.m.held = append(d.m.held, d.clearIfIdle)
		return
	}
	d.clearing = true
	if !d.m.dead {
		d.clearLocks()
	}
	delete(d.p.procs, d)
	delete(d.m.open, d)
	if len(d.m.open) == 0 && d.m.unused != nil {
		close(d.m.unused)
		d.m.unused = nil
	}
	close(d.cleared)
}
