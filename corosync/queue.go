package corosync

import "sync"

// queue holds events until the program takes them from a channel. Its memory is bounded: by limit for the events of one
// connection, and by there being those of two connections at most.
type queue struct {
	out  chan Event
	wake chan struct{} // has a value when pump should look again
	stop <-chan struct{}

	mu     sync.Mutex // guards the rest
	limit  int
	events []Event
	bytes  int
	term   int // the number of the connection whose events are taken; an abandoned one's are not
	full   bool
}

func newQueue(limit int, stop <-chan struct{}) *queue {
	return &queue{out: make(chan Event), wake: make(chan struct{}, 1), stop: stop, limit: limit}
}

// pump moves events to the channel, and closes it at the end.
func (q *queue) pump() {
	defer close(q.out)
	for {
		ev, ok := q.pop()
		if !ok {
			select {
			case <-q.wake:
				continue
			case <-q.stop:
				return
			}
		}
		select {
		case q.out <- ev:
		case <-q.stop:
			return
		}
	}
}

func (q *queue) pop() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.events) == 0 {
		return nil, false
	}
	ev := q.events[0]
	q.events[0] = nil
	q.events = q.events[1:]
	q.bytes -= size(ev)
	return ev, true
}

// begin starts the events of a new connection.
func (q *queue) begin() (term int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.term++
	q.full = false
	return q.term
}

// push adds an event of a connection. It is false if the queue is full now; then nothing more is taken from that connection.
func (q *queue) push(term int, ev Event) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.full || term != q.term {
		return false
	}
	if q.bytes+size(ev) > q.limit {
		q.full = true
		return false
	}
	q.lockedAppend(ev)
	return true
}

// down ends the events of a connection. If the program has not even taken the end of the one before, or has taken too
// little, all that waits is dropped: it is void now.
func (q *queue) down(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.term++
	drop := q.full
	for _, ev := range q.events {
		if _, is := ev.(Down); is {
			drop = true
		}
	}
	if drop {
		q.events, q.bytes = nil, 0
	}
	q.lockedAppend(Down{Err: err})
}

func (q *queue) lockedAppend(ev Event) {
	q.events = append(q.events, ev)
	q.bytes += size(ev)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
