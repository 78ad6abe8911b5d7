package local

import (
	"sync"

	"github.com/vmlockd/vmlockd/internal/stack"
)

// workers are goroutines that run jobs. A new one costs as much as a small system call, most
// of it for its stack, so some that have done their job wait for the next.
type workers struct {
	mu   sync.Mutex // guards both below
	most int        // how many may wait
	idle []*worker  // which do; the last one has worked last, and what it needs is still in the caches
}

type worker struct {
	next chan *job // room for one; nil: there will be none
}

// KeepWorkers lets up to n goroutines wait for system calls on files that are to be made. With 0,
// as at the beginning, each ends with its call, and those that wait end.
func (b *Backend) KeepWorkers(n int) {
	w := &b.workers
	w.mu.Lock()
	defer w.mu.Unlock()
	w.most = n
	for len(w.idle) > n {
		w.lockedTake().next <- nil
	}
}

func (w *workers) lockedTake() *worker {
	last := len(w.idle) - 1
	one := w.idle[last]
	w.idle[last] = nil
	w.idle = w.idle[:last]
	return one
}

// start has a goroutine run j.
func (b *Backend) start(j *job) {
	w := &b.workers
	w.mu.Lock()
	if len(w.idle) == 0 {
		w.mu.Unlock()
		go b.work(j)
		return
	}
	one := w.lockedTake()
	w.mu.Unlock()
	one.next <- j
}

// work runs j, and what comes then.
func (b *Backend) work(j *job) {
	stack.Grow()
	w, self := &b.workers, (*worker)(nil)
	for j != nil {
		j.run(b)
		w.mu.Lock()
		if len(w.idle) >= w.most {
			w.mu.Unlock()
			return
		}
		if self == nil {
			self = &worker{next: make(chan *job, 1)}
		}
		w.idle = append(w.idle, self)
		w.mu.Unlock()
		j = <-self.next
	}
}
