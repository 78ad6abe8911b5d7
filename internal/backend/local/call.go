package local

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// task is what a goroutine of its own does with files. do makes the system calls. Where its
// caller has gone away meanwhile, late follows, to undo what came about.
type task interface {
	do(*job) error
	late()
}

// funcs is a task made of two functions.
type funcs struct {
	f    func() error
	undo func()
}

func (t funcs) do(*job) error { return t.f() }
func (t funcs) late()         { t.undo() }

// job is a task under way, which its goroutine and its caller share.
type job struct {
	task  task
	ctx   context.Context // its caller's
	path  string
	mode  locking.Mode // for a lockTask
	slot  bool         // one of Backend.slots is taken for it
	begun time.Time

	access access
	// answer has room for the one answer. That is the last that the goroutine does with
	// the job: who has received it may use the job for another task.
	answer chan error
	state  atomic.Uint32
}

const (
	stateRunning   = iota
	stateFinished  // do has returned before anybody went away
	stateAbandoned // the caller went away before
)

func (b *Backend) newJob(ctx context.Context, path string, t task) *job {
	j, ok := b.spareJobs.Get().(*job)
	if !ok {
		j = &job{answer: make(chan error, 1)}
	}
	j.task, j.ctx, j.path = t, ctx, path
	return j
}

// recycle gives up a job whose answer was received.
func (b *Backend) recycle(j *job) {
	j.task, j.ctx, j.path, j.mode, j.slot = nil, nil, "", 0, false
	j.state.Store(stateRunning)
	b.spareJobs.Put(j)
}

// abandon says that the caller goes away. It is false if do has returned already: then there
// is an answer, or will be at once.
func (j *job) abandon() bool { return j.state.CompareAndSwap(stateRunning, stateAbandoned) }

// run is what the goroutine of a job does.
func (j *job) run(b *Backend) {
	b.pace.begin(&j.access)
	err := j.task.do(j)
	b.pace.end(&j.access)
	left := !j.state.CompareAndSwap(stateRunning, stateFinished)
	if left {
		j.task.late()
	}
	if j.slot {
		if left {
			b.mu.Lock()
			b.lockedReturned(j.path)
			b.mu.Unlock()
		}
		<-b.slots
	}
	j.answer <- err
}

// call is do for a task of two functions.
func (b *Backend) call(ctx context.Context, path string, f func() error, late func()) error {
	return b.do(ctx, path, funcs{f, late}, 0)
}

// do runs t on a goroutine of its own and returns when it has returned or ctx
// has ended. In the second case t.late runs after t.do, whenever that is.
func (b *Backend) do(ctx context.Context, path string, t task, mode locking.Mode) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	stuck := b.hanging[path].calls > 0
	b.mu.Unlock()
	if stuck {
		return fmt.Errorf("an earlier access to it still hangs in the kernel: is its file system's server reachable? (%w)", unix.EAGAIN)
	}
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%d file accesses hang in the kernel: %w", maxCalls, ctx.Err())
	}
	j := b.newJob(ctx, path, t)
	j.mode, j.slot, j.begun = mode, true, time.Now()
	b.start(j)
	select {
	case err := <-j.answer:
		b.recycle(j)
		return err
	case <-ctx.Done():
	}
	b.mu.Lock()
	if !j.abandon() {
		b.mu.Unlock()
		err := <-j.answer
		b.recycle(j)
		return err
	}
	b.lockedHangs(path, j.begun)
	b.mu.Unlock()
	return ctx.Err()
}
