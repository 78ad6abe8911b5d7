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
	slot  bool         // one of Backend.slots is taken for it; none for what gives up a lock
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

// run is what the goroutine of a job does.
func (j *job) run(b *Backend) {
	b.pace.begin(&j.access)
	err := j.task.do(j)
	b.pace.end(&j.access)
	if !j.state.CompareAndSwap(stateRunning, stateFinished) {
		j.task.late()
		b.returned(j)
	}
	if j.slot {
		<-b.slots
	}
	j.answer <- err
}

// await returns the answer of a job, or the error of its context when that ends before.
func (b *Backend) await(j *job) error {
	ctx := j.ctx
	select {
	case err := <-j.answer:
		b.recycle(j)
		return err
	case <-ctx.Done():
	}
	if b.leave(j) {
		return ctx.Err()
	}
	err := <-j.answer // there is one, or will be at once
	b.recycle(j)
	return err
}

// leave notes that the caller of a job goes away: of one with a slot, that its path hangs. It is
// false, and nothing is noted, if the job has done its work meanwhile.
func (b *Backend) leave(j *job) bool {
	if j.slot {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !j.state.CompareAndSwap(stateRunning, stateAbandoned) {
			return false
		}
		b.lockedHangs(j.path, j.begun)
		return true
	}
	b.unsettled.Add(1) // first, as the job takes it back as soon as it is abandoned
	if !j.state.CompareAndSwap(stateRunning, stateAbandoned) {
		b.unsettled.Add(-1)
		return false
	}
	return true
}

// returned undoes leave.
func (b *Backend) returned(j *job) {
	if !j.slot {
		b.unsettled.Add(-1)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lockedReturned(j.path)
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
	return b.await(j)
}
