package locking

import (
	"context"
	"slices"
	"sync"
)

// turn lets one in at a time, in the order in which they came. There is one for
// each resource that is held, and hardly ever anybody waits: a channel does the same
// and takes five times the memory. The zero value is free.
type turn struct {
	mu sync.Mutex // guards what follows; never held for longer than a moment
	// line is who waits, the first first; nil while it is free, and &nobodyWaits while it
	// is taken and nobody does.
	line *[]chan struct{}
}

// nobodyWaits is never changed.
var nobodyWaits []chan struct{}

// take waits for the turn. After an error, which is that of ctx, it is not taken.
func (t *turn) take(ctx context.Context) error {
	t.mu.Lock()
	if t.line == nil {
		t.line = &nobodyWaits
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	if t.line == &nobodyWaits {
		t.line = new([]chan struct{})
	}
	*t.line = append(*t.line, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	at := -1
	if t.line != nil {
		at = slices.Index(*t.line, mine)
	}
	if at >= 0 {
		t.leaveLine(at)
	}
	t.mu.Unlock()
	if at < 0 { // it has come at the same time, and is for the next one
		t.give()
	}
	return ctx.Err()
}

// give ends the turn.
func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.line == &nobodyWaits {
		t.line = nil
		return
	}
	next := (*t.line)[0]
	t.leaveLine(0)
	close(next)
}

// leaveLine is called with mu held.
func (t *turn) leaveLine(at int) {
	if *t.line = slices.Delete(*t.line, at, at+1); len(*t.line) == 0 {
		t.line = &nobodyWaits
	}
}
