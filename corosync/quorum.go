package corosync

import (
	"context"
	"sync"
)

// Quorum follows the ring's membership and whether this part of the cluster has quorum.
type Quorum struct {
	l    *link
	mu   sync.Mutex // guards ring
	ring *Ring      // nil while it is not known
}

// Track follows the quorum for as long as the Quorum is open. Who needs Ring alone need not take Events: what waits is
// bounded. Errors as of Join.
func Track(ctx context.Context, sys System, opts Options) (*Quorum, error) {
	if err := loadable(sys); err != nil {
		return nil, fault("track", "", err)
	}
	q := &Quorum{}
	q.l = newLink(opts.withDefaults(), func(deliver func(Event)) (Conn, error) {
		return sys.OpenQuorum(func(ev Event) {
			if r, ok := ev.(Ring); ok {
				r = r.clone()
				q.set(&r)
			}
			deliver(ev)
		})
	})
	q.l.ended = func() { q.set(nil) }
	if err := q.l.start(ctx); err != nil {
		return nil, fault("track", "", err)
	}
	return q, nil
}

func (q *Quorum) set(r *Ring) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ring = r
}

// Events are the changes: Up, Ring and Down. The channel is closed by Close; what is not taken waits as with a Group.
func (q *Quorum) Events() <-chan Event { return q.l.q.out }

// Ring is the state as last heard of, which may be ahead of Events; Joined and Left are those of the last event. ErrDown
// while it is not known.
func (q *Quorum) Ring() (Ring, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ring == nil {
		return Ring{}, fault("track", "", ErrDown)
	}
	return q.ring.clone(), nil
}

// Close ends Events. It is as with a Group.
func (q *Quorum) Close(ctx context.Context) error {
	return fault("close", "", q.l.close(ctx))
}
