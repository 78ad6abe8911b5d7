package logs

import (
	"sync"
	"time"
)

const (
	// maxQueued bounds, in bytes, what waits to be written: some 10,000 records. Names in
	// records come from clients, so their number alone bounds nothing.
	maxQueued = 4 << 20
	// overhead is what a record costs besides its text, and each field besides its own.
	overhead, fieldOverhead = 256, 64
)

// queue is between who logs, who must not wait, and one goroutine that writes, and may
// have to: journald takes nothing while it hangs, be it by its socket or by the stream
// that is stderr of a unit.
//
// What does not fit is dropped and counted, from then on until half of the queue is
// free: so one line among many, and not every second one, says how many records are
// missing at its place.
type queue struct {
	tell  func(records uint64) // writes that line
	limit int                  // of bytes: maxQueued, and less in tests
	ended chan struct{}        // closed when the goroutine has ended

	mu      sync.Mutex // guards what follows; never held while anything is written
	more    *sync.Cond // there is something to do for the goroutine
	entries []entry    // in the order in which they are written
	bytes   int        // of entries, and of the one that is being written
	full    bool       // records are dropped
	lost    uint64     // records that were dropped, and no line in entries says so
	dropped uint64     // records that were, ever
	closed  bool
}

type entry struct {
	bytes int
	write func()
}

// newQueue starts the goroutine, which close ends.
func newQueue(tell func(uint64)) *queue {
	q := &queue{tell: tell, limit: maxQueued, ended: make(chan struct{})}
	q.more = sync.NewCond(&q.mu)
	go q.run()
	return q
}

// put has write called by the goroutine, or drops it. It does not wait. bytes is what
// write keeps of a record.
func (q *queue) put(bytes int, write func()) {
	bytes += overhead
	q.mu.Lock()
	defer q.mu.Unlock()
	q.full = q.full && q.bytes > q.limit/2
	if q.closed || q.full || bytes > q.limit-q.bytes {
		q.full = true
		q.lost++
		q.dropped++
		q.more.Signal() // it may be idle, if this record alone is too large
		return
	}
	q.bytes += bytes
	q.lockedAdd(entry{bytes, write})
}

// after has f called when all that was put before is written.
func (q *queue) after(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		f()
		return
	}
	q.lockedAdd(entry{write: f})
}

func (q *queue) lockedAdd(e entry) {
	q.lockedTell()
	q.entries = append(q.entries, e)
	q.more.Signal()
}

// lockedTell says at this place what was dropped.
func (q *queue) lockedTell() {
	if n := q.lost; n > 0 {
		q.lost = 0
		q.entries = append(q.entries, entry{write: func() { q.tell(n) }})
	}
}

// run writes until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.ended)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.entries) == 0 && q.lost == 0 && !q.closed {
			q.more.Wait()
		}
		if len(q.entries) == 0 {
			q.lockedTell()
		}
		if len(q.entries) == 0 {
			return
		}
		e := q.entries[0]
		q.entries[0] = entry{} // so that it can be collected
		q.entries = q.entries[1:]
		q.mu.Unlock()
		e.write()
		q.mu.Lock()
		q.bytes -= e.bytes
	}
}

// flush waits until all that was put before is written, and reports whether it is.
func (q *queue) flush(patience time.Duration) bool {
	q.mu.Lock()
	done := q.ended
	if !q.closed {
		written := make(chan struct{})
		q.lockedAdd(entry{write: func() { close(written) }})
		done = written
	}
	q.mu.Unlock()
	return within(patience, done)
}

// close is flush, and ends the goroutine; what is put later is dropped. A goroutine that
// waits for journald ends when that takes what it writes.
func (q *queue) close(patience time.Duration) bool {
	q.mu.Lock()
	q.closed = true
	q.more.Signal()
	q.mu.Unlock()
	return within(patience, q.ended)
}

func within(patience time.Duration, done <-chan struct{}) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
