package rpc

import (
	"sync"
	"time"
)

// logInterval is the least time between two lines in the log about the same
// thing, when a client can make it happen as often as it likes.
const logInterval = 5 * time.Second

// occasionally does something no more often than once in logInterval.
type occasionally struct {
	mu   sync.Mutex // guards what follows
	last time.Time
	n    int
}

// do calls f with the number of times that do was called since f was last
// called, or does nothing.
func (o *occasionally) do(f func(since int)) {
	o.mu.Lock()
	o.n++
	now := time.Now()
	if !o.last.IsZero() && now.Sub(o.last) < logInterval {
		o.mu.Unlock()
		return
	}
	n := o.n
	o.n, o.last = 0, now
	o.mu.Unlock()
	f(n)
}
