package daemon

import (
	"sync"
	"time"
)

// idlePeriod is how often it is looked whether anybody uses the daemon, if it is to
// end when nobody does.
const idlePeriod = time.Second

// idler tells when nobody has used the daemon for a time that can be set. Whether
// somebody does it is told.
type idler struct {
	look chan struct{} // when check is to be called; has room for one

	mu      sync.Mutex // guards what follows
	timeout time.Duration
	timer   *time.Timer // nil if there is no timeout
	since   time.Time   // when it was found idle; zero if it was not
	seen    uint64      // the last client by then
}

func newIdler() *idler { return &idler{look: make(chan struct{}, 1)} }

// set sets the time; 0 is for ever.
func (d *idler) set(after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timeout, d.since = after, time.Time{}
	d.lockedBegin(0)
}

// lockedBegin waits until it has to be looked again.
func (d *idler) lockedBegin(after time.Duration) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.timeout > 0 {
		d.timer = time.AfterFunc(after, func() {
			select {
			case d.look <- struct{}{}:
			default:
			}
		})
	}
}

// check says whether the time is over, with what is the case now: nobody uses the
// daemon, and last was the last client that has.
func (d *idler) check(idle bool, last uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	switch {
	case d.timeout == 0:
		return false
	case !idle:
		d.since = time.Time{}
	case d.since.IsZero() || last != d.seen:
		d.since, d.seen = now, last
	}
	d.lockedBegin(min(idlePeriod, d.timeout))
	return idle && now.Sub(d.since) >= d.timeout
}

// stop ends looking.
func (d *idler) stop() { d.set(0) }

// isIdle says whether nobody uses the daemon: no client is there and nothing is
// held, nor may be.
func (i *instance) isIdle() bool {
	return i.server.Clients() == 0 && (i.admin == nil || i.admin.server.Clients() == 0) &&
		len(i.locks.Holders()) == 0 && len(i.owners()) == 0 && !i.doubt.inDoubt()
}

// endIdle says whether the daemon is to end now because nobody uses it. From then on
// nothing is granted.
func (i *instance) endIdle() bool {
	last := i.server.LastID()
	if i.admin != nil {
		last += i.admin.server.LastID()
	}
	if !i.idle.check(i.isIdle(), last) {
		return false
	}
	// Who comes in this moment is refused a lock, rather than left with one when the
	// daemon has ended.
	return i.drain.last(i.isIdle)
}
