package history_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	lockspace      = "history"
	requestTimeout = 10 * time.Second
	restoreTimeout = time.Minute // as in internal/daemon
	stopTimeout    = 5 * time.Second
)

// instance is one process of the daemon, as internal/daemon wires it. From the
// moment it is dead nothing that its goroutines do has an effect.
type instance struct {
	n       *node
	process *process
	journal mortalJournal
	backend *cluster.Backend
	locks   *locking.Manager
	dead    atomic.Bool
	buried  chan struct{} // closed when the kernel has closed what it had open
}

// start starts the daemon on the node and reports whether it serves. It does not
// if it was killed meanwhile.
func (n *node) start() bool {
	return n.startIn(&process{Process: n.w.c.Node(n.id).NewProcess()}, nil)
}

// startIn is start in a process that may be an earlier instance's, with what that
// one has handed over.
func (n *node) startIn(p *process, earlier *dlm.Handover) bool {
	in := &instance{n: n, process: p, buried: make(chan struct{})}
	in.journal.in = in
	n.in = in
	n.releaseOfGone()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := in.run(earlier); err != nil {
			n.w.Errorf("start on node %d: %v", n.id, err)
		}
	}()
	<-done
	if in.dead.Load() {
		in.bury()
		return false
	}
	return true
}

func (in *instance) run(earlier *dlm.Handover) error {
	n := in.n
	b, err := cluster.New(cluster.Options{Lockspace: lockspace, Kernel: in.process, Earlier: earlier, Identify: identify})
	if err != nil {
		return err
	}
	in.backend = b
	dir := fmt.Sprintf("%s/%d", n.w.dir, n.id)
	if n.journalLost {
		n.journalLost = false
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	j, found, err := journal.Open(dir, fmt.Sprintf("boot %d", n.boots))
	if err != nil {
		return err
	}
	in.journal.real = j
	if d := found.Damage; d != nil && d.Unknown {
		return fmt.Errorf("the journal is damaged: %v", d)
	}
	in.locks = locking.New(locking.Options{
		Backend: b, Processes: n.processes, Observe: in.observe, RequestTimeout: requestTimeout,
		AnyLockspace: true, Journal: &in.journal,
	})
	// As long as the daemon gives it: a gate in the kernel may stay shut for ever.
	ctx, cancel := context.WithTimeout(context.Background(), restoreTimeout)
	defer cancel()
	in.locks.Restore(ctx, b, found.Entries, found.Lockspaces, false)
	n.w.saw("restored", len(found.Entries))
	return nil
}

// observe knows what must never be told: every lock that an instance finds in
// its journal can be taken back, and every release works.
func (in *instance) observe(e locking.Event) {
	if in.dead.Load() {
		return
	}
	switch e.Kind {
	case locking.Lost:
		in.n.w.saw("lost", 1)
		if !in.n.w.mayLose {
			in.n.w.Errorf("node %d says that %q is lost: %v", in.n.id, e.Ref.Name, e.Err)
		}
	case locking.ReleaseFailed, locking.OwnerUnverified, locking.OwnerEnding:
		in.n.w.Errorf("node %d told of event %d about %q: %v", in.n.id, e.Kind, e.Ref.Name, e.Err)
	case locking.ReleasedUntold:
		in.n.w.saw("released untold", 1)
	}
}

// die is the SIGKILL. What is in the kernel goes on there.
func (in *instance) die() {
	in.dead.Store(true)
	in.process.Kill()
}

// dieHere kills the instance of the goroutine that passes a fail point, and ends
// that goroutine.
func (in *instance) dieHere(p *failpoint.Point) {
	in.n.w.saw(p.Name(), 1)
	in.die()
	runtime.Goexit()
}

// bury frees what a dead instance has in this process, in the background.
func (in *instance) bury() {
	if in.n.in == in {
		in.n.in = nil
	}
	in.n.late = in
	if in.journal.real != nil {
		_ = in.journal.real.Close()
	}
	go func() {
		defer close(in.buried)
		if in.locks != nil {
			within(in.locks.Close)
		}
		if in.backend != nil {
			within(func(ctx context.Context) error { return in.backend.Close(ctx, false) })
		}
		in.process.leaveKernel()
	}()
}

// stop is an orderly end, which is given up where it takes too long, as
// internal/daemon does. A fail point may kill the instance meanwhile.
func (in *instance) stop() {
	held := len(in.locks.Holders()) > 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		within(in.locks.Close)
		within(func(ctx context.Context) error { return in.backend.Close(ctx, !held) })
	}()
	<-done
	in.die()
	in.bury()
}

// replace is a restart in place, as internal/daemon does it: another instance goes
// on in the same process. What is under way gets no answer any more.
func (in *instance) replace() {
	if err := in.backend.Replaceable(); err != nil {
		in.n.w.saw("not replaceable", 1)
		return
	}
	var h *dlm.Handover
	var err error
	handed := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		within(in.locks.Close)
		within(func(ctx context.Context) error {
			h, err = in.backend.Handover(ctx)
			return err
		})
		handed = true
	}()
	<-done
	if !handed || err != nil { // killed meanwhile, or the kernel holds it up, and what executes then waits for that
		in.die()
		in.bury()
		return
	}
	in.dead.Store(true)
	_ = in.journal.real.Close()
	if h != nil {
		in.n.w.saw("handed over", h.Len())
	} else {
		in.n.w.saw("closed instead of handed over", 1)
	}
	in.n.startIn(in.process, h)
}

func within(f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	_ = f(ctx)
}

// process is an instance to the kernel.
type process struct {
	*dlmtest.Process
	mu      sync.Mutex // guards devices
	devices []dlm.Device
}

func (p *process) Lockspace(name string, minor uint32) (dlm.Device, error) {
	d, err := p.Process.Lockspace(name, minor)
	if err == nil {
		p.mu.Lock()
		p.devices = append(p.devices, d)
		p.mu.Unlock()
	}
	return d, err
}

func (p *process) Attach(name string, minor uint32, fd int) (dlm.Device, error) {
	d, err := p.Process.Attach(name, minor, fd)
	if err == nil {
		p.mu.Lock()
		p.devices = append(p.devices, d)
		p.mu.Unlock()
	}
	return d, err
}

// leaveKernel waits until the kernel has let go of a process that was killed.
func (p *process) leaveKernel() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.devices {
		_ = d.Close()
	}
}

var errDead = errors.New("this instance was killed")

// mortalJournal writes nothing more once its instance is dead.
type mortalJournal struct {
	in   *instance
	mu   sync.Mutex // held during calls, so that none goes on after the death
	real *journal.Journal
}

func (j *mortalJournal) call(f func() error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.in.dead.Load() {
		return errDead
	}
	return f()
}

func (j *mortalJournal) Intend(e locking.Entry) (seq uint64, err error) {
	err = j.call(func() (err error) { seq, err = j.real.Intend(e); return err })
	return seq, err
}

func (j *mortalJournal) Grant(seq uint64) error {
	return j.call(func() error { return j.real.Grant(seq) })
}

func (j *mortalJournal) Releasing(seq uint64) error {
	return j.call(func() error { return j.real.Releasing(seq) })
}

func (j *mortalJournal) Forget(seq uint64) error {
	return j.call(func() error { return j.real.Forget(seq) })
}

func (j *mortalJournal) AddLockspace(path string) error {
	return j.call(func() error { return j.real.AddLockspace(path) })
}
