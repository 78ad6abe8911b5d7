package locking

import (
	"context"
	"sync"
	"time"
)

// endTimeout is how long an owner may take to end after its connection closed
// before that is reported. It keeps its locks for as long as it takes.
const endTimeout = 10 * time.Second

// EndPatience is how long the end of an owner holds up the end of a Manager: long
// enough for Process.End to have sent SIGKILL, after which nobody needs to do
// anything more. What is left after that the kernel holds up, maybe for ever.
const EndPatience = 3 * time.Second

// ending is an owner that is being ended.
type ending struct {
	begun    time.Time
	releases sync.WaitGroup // what is released because it is gone; the first Add with Manager.mu held
	over     chan struct{}  // closed when it is gone and its locks are released, or it was given up
}

// Disconnected says that the owner itself had the session (its process is the
// peer) and that the connection has ended. An owner that holds nothing may do
// that. One that holds locks can no longer be told anything, so it is ended, and
// its locks are released when it is gone. Disconnected does not wait for that.
func (g *Registration) Disconnected() {
	m, o := g.m, g.owner
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(o.holds) == 0 || o.gone || o.ending != nil || m.closed {
		return
	}
	switch {
	case o.proc != nil:
		e := &ending{begun: time.Now(), over: make(chan struct{})}
		o.ending = e
		m.ending[e] = struct{}{}
		m.work.Go(func() { m.end(o, *g.info, e) })
	case o.pid > 0:
		// The peer of the connection had this pid, and when it registered no
		// process had it any more.
		m.lockedOwnerGone(o)
	default:
		// A peer in another pid namespace has pid 0, whoever it is. That it went
		// away proves nothing.
	}
}

func (m *Manager) end(o *owner, info Owner, e *ending) {
	defer close(e.over)
	gone := m.endProcess(o, info)
	m.mu.Lock()
	if gone {
		m.lockedOwnerGone(o) // the watch does it too, and may not have come to that
	}
	m.mu.Unlock()
	if gone {
		e.releases.Wait()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ending, e)
	o.ending = nil
	m.lockedForgetOwner(o)
}

func (m *Manager) endProcess(o *owner, info Owner) (gone bool) {
	if o.isGone() {
		return true
	}
	m.observe(Event{Kind: OwnerEnding, Owner: info})
	ctx, cancel := context.WithTimeout(m.endings, endTimeout)
	defer cancel()
	err := o.proc.End(ctx)
	if err == nil || o.isGone() {
		// Also with an error: the watch closes a process that is gone, maybe
		// before End has seen that it is.
		return true
	}
	m.observe(Event{Kind: OwnerEndFailed, Owner: info, Err: err})
	return false
}

// Endings is how many owners are being ended.
func (m *Manager) Endings() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ending)
}

// AwaitEndings waits until no owner is being ended, and what they held is
// released, or ctx ends. Each is waited for until EndPatience after its beginning
// at the longest; left is how many have not ended by then.
func (m *Manager) AwaitEndings(ctx context.Context) (left int) {
	for {
		m.mu.Lock()
		left = len(m.ending)
		var next *ending
		for e := range m.ending {
			if time.Since(e.begun) < EndPatience {
				next = e
				break
			}
		}
		m.mu.Unlock()
		if next == nil {
			return left
		}
		patience := time.NewTimer(EndPatience - time.Since(next.begun))
		select {
		case <-next.over:
		case <-patience.C:
		case <-ctx.Done():
			patience.Stop()
			return left
		}
		patience.Stop()
	}
}
