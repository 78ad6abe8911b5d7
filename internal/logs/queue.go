package logs

import (
	"io"
	"runtime"
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
	batch   []byte // several lines; used by the goroutine also while it does not hold mu
}

// entry is either a line for a writer, or something else to do.
type entry struct {
	bytes int
	line  []byte
	to    io.Writer // nil: write is called
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
func (q *queue) put(bytes int, write func()) { q.add(entry{bytes: bytes, write: write}) }

// putLine is put of a line, which belongs to the queue from then on. Lines that follow each
// other and go to the same writer, which is a pointer, are written with one call.
func (q *queue) putLine(to io.Writer, line []byte) {
	q.add(entry{bytes: len(line), line: line, to: to})
}

func (q *queue) add(e entry) {
	e.bytes += overhead
	q.mu.Lock()
	defer q.mu.Unlock()
	q.full = q.full && q.bytes > q.limit/2
	if q.closed || q.full || e.bytes > q.limit-q.bytes {
		q.full = true
		q.lost++
		q.dropped++
		q.more.Signal() // it may be idle, if this record alone is too large
		return
	}
	q.bytes += e.bytes
	q.lockedAdd(e)
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
			// Those who are ready to run may log as well: then one write does for all. Where nobody
			// is, this takes no time.
			q.mu.Unlock()
			runtime.Gosched()
			q.mu.Lock()
		}
		if len(q.entries) == 0 {
			q.lockedTell()
		}
		if len(q.entries) == 0 {
			return
		}
		e := q.lockedNext()
		q.mu.Unlock()
		if e.to != nil {
			_, _ = e.to.Write(e.line)
		} else {
			e.write()
		}
		q.mu.Lock()
		q.bytes -= e.bytes
	}
}

// batches is into how many writes a queue that is full of lines goes at least. What is being written counts
// until all of it is.
const batches = 256

// lockedNext takes the first entry, with the lines after it that go to the same place.
func (q *queue) lockedNext() entry {
	e, n := q.entries[0], 1
	if e.to != nil {
		size := len(e.line)
		for ; n < len(q.entries) && q.entries[n].to == e.to; n++ {
			if size += len(q.entries[n].line); size > q.limit/batches {
				break
			}
		}
		if n > 1 {
			q.batch = q.batch[:0]
			e.bytes = 0
			for _, one := range q.entries[:n] {
				q.batch = append(q.batch, one.line...)
				e.bytes += one.bytes
			}
			e.line = q.batch
		}
	}
	clear(q.entries[:n]) // so that they can be collected
	q.entries = q.entries[n:]
	return e
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
