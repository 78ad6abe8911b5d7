package locktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Processes is a locking.Processes in memory. Make it with NewProcesses.
type Processes struct {
	t Reporter

	mu       sync.Mutex // guards all below and what Process says so of
	running  map[int32]*Process
	started  uint64              // how many have been started
	watched  map[*watch]struct{} // opened and not closed
	openErr  error
	openGate *Gate
}

var _ locking.Processes = (*Processes)(nil)

// NewProcesses makes Processes of which none runs.
func NewProcesses(t Reporter) *Processes {
	return &Processes{t: t, running: map[int32]*Process{}, watched: map[*watch]struct{}{}}
}

// Process is one process of the test.
type Process struct {
	ps       *Processes
	pid      int32
	start    uint64
	stubborn bool
	overtake bool
	grace    time.Duration

	asked chan struct{} // closed by the first End
	once  sync.Once
	dead  bool          // guarded by Processes.mu
	gone  chan struct{} // closed when its death was noticed
}

// Start starts a process. The last one with this pid must have ended.
func (ps *Processes) Start(pid int32) *Process {
	p := &Process{ps: ps, pid: pid, asked: make(chan struct{}), gone: make(chan struct{})}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.running[pid] != nil {
		panic(fmt.Sprintf("locktest: process %d runs already", pid))
	}
	ps.running[pid] = p
	ps.started++
	p.start = ps.started
	return p
}

// StartTime implements locking.Process. No two processes have the same.
func (p *Process) StartTime() uint64 { return p.start }

// Gone implements locking.Process.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// Stubborn makes the process go on when it is asked to end, and when it is killed, as
// one in state D does.
func (p *Process) Stubborn() *Process {
	p.stubborn = true
	return p
}

// Deaf makes the process go on when it is asked to end; if End is not given up
// before grace is over it kills it then.
func (p *Process) Deaf(grace time.Duration) *Process {
	p.stubborn, p.grace = true, grace
	return p
}

// Overtaken makes End miss the death of the process: it tries to send a signal
// when whoever watches the process has seen the death and closed it, and fails.
func (p *Process) Overtaken() *Process {
	p.overtake = true
	return p
}

// Die ends the process. Its pid is free, and nobody has noticed yet.
func (p *Process) Die() {
	p.ps.mu.Lock()
	defer p.ps.mu.Unlock()
	if !p.dead {
		p.dead = true
		delete(p.ps.running, p.pid)
	}
}

// Kill ends the process, and everybody who watches it notices.
func (p *Process) Kill() {
	p.Die()
	p.ps.mu.Lock()
	defer p.ps.mu.Unlock()
	select {
	case <-p.gone:
	default:
		close(p.gone)
	}
}

// Asked is closed when the process was asked to end for the first time.
func (p *Process) Asked() <-chan struct{} { return p.asked }

// FailOpen makes Open fail with err, until it is called with nil.
func (ps *Processes) FailOpen(err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.openErr = err
}

// BlockOpen makes calls of Open wait at a gate, once they have found their
// process or found none.
func (ps *Processes) BlockOpen() *Gate {
	g := &Gate{arrived: make(chan Call, 1024), opened: make(chan struct{})}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.openGate = g
	return g
}

// Watched counts what was opened and not closed.
func (ps *Processes) Watched() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.watched)
}

// Open implements locking.Processes.
func (ps *Processes) Open(pid int32) (locking.Process, error) {
	if pid <= 0 {
		ps.t.Errorf("Open of pid %d, which names no process", pid)
	}
	w, gate, err := ps.find(pid)
	if gate != nil && !gate.isOpen() {
		gate.arrive(Call{})
		<-gate.opened
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (ps *Processes) find(pid int32) (*watch, *Gate, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.openErr != nil {
		return nil, ps.openGate, ps.openErr
	}
	p := ps.running[pid]
	if p == nil {
		return nil, ps.openGate, locking.ErrNoProcess
	}
	w := &watch{Process: p, closed: make(chan struct{})}
	ps.watched[w] = struct{}{}
	return w, ps.openGate, nil
}

// watch is what Open returns: one descriptor of a process.
type watch struct {
	*Process
	closed chan struct{}
}

var errClosed = errors.New("the process was closed")

// End implements locking.Process. On a closed watch it fails, as a signal
// through a closed descriptor does.
func (w *watch) End(ctx context.Context) error {
	select {
	case <-w.closed:
		return errClosed
	default:
	}
	w.once.Do(func() { close(w.asked) })
	if !w.stubborn {
		w.Kill()
	}
	gone := w.Gone()
	if w.overtake {
		gone = nil
	}
	var grace <-chan time.Time
	if w.grace > 0 {
		timer := time.NewTimer(w.grace)
		defer timer.Stop()
		grace = timer.C
	}
	select {
	case <-grace:
		select {
		case <-w.closed:
			return errClosed
		default:
		}
		w.Kill()
		return nil
	case <-gone:
		return nil
	case <-w.closed:
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("process %d has not ended yet: %w", w.pid, ctx.Err())
	}
}

// Close implements locking.Process.
func (w *watch) Close() {
	w.ps.mu.Lock()
	defer w.ps.mu.Unlock()
	if _, ok := w.ps.watched[w]; !ok {
		w.ps.t.Errorf("process %d was closed twice", w.pid)
		return
	}
	delete(w.ps.watched, w)
	close(w.closed)
}
