package metrics

import (
	"sync"
	"time"
)

// partPatience is how long a scrape waits for a part of the daemon. All of them
// answer from memory, in microseconds.
const partPatience = 200 * time.Millisecond

// part reads the figures of one part of the daemon. One that hangs keeps one
// goroutine, however often it is asked.
type part[T any] struct {
	read func() T

	mu   sync.Mutex    // guards what follows
	done chan struct{} // nil unless it is being read; closed after that
	last T
	have bool // last was read
}

// get returns the figures of this moment, or if the part does not answer in
// time, the last ones; then fresh is false. Without any, ok is false.
func (p *part[T]) get() (figures T, ok, fresh bool) {
	p.mu.Lock()
	done := p.done
	if done == nil {
		done = make(chan struct{})
		p.done = done
		go func() {
			figures := p.read()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.last, p.have, p.done = figures, true, nil
			close(done)
		}()
	}
	p.mu.Unlock()
	patience := time.NewTimer(partPatience)
	defer patience.Stop()
	select {
	case <-done:
		fresh = true
	case <-patience.C:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last, p.have, fresh
}
