package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// Who holds an exclusive lock is published in its value block, by a conversion
// from EX to EX, a while after the grant was answered. Nobody waits for that: a
// lock that is given back before is never published, and all that remain are done
// one after the other, with pauses. A release that meets the conversion of its
// own lock comes after it, and clears the block again.
//
// The owner's right to the disk does not depend on any of this: whatever becomes
// of the conversion, the lock is in mode EX before and after it.

const (
	// publishAfter is how long a lock is held before it is published. What is held
	// for a shorter time costs nothing but a place in a list.
	publishAfter = 75 * time.Millisecond
	// publishLater is the same for a lock that was taken back after a restart, whose
	// block has what the earlier process wrote, and for another try.
	publishLater = time.Second
	// publishTries bounds how often it is tried: without the record refusals say
	// less, and that is all.
	publishTries = 3
	// publishTimeout bounds one conversion, if the lockspace runs.
	publishTimeout = 5 * time.Second
	// A pause after each conversion, of publishRest times what it took, keeps the
	// share that publishing has of the kernel's work to about a tenth.
	publishRest     = 9
	publishPauseMin = time.Millisecond
	publishPauseMax = 100 * time.Millisecond
)

// publication is a record that is to be published. There is one for each lock that was
// taken a while ago, at times for all.
type publication struct {
	h     *handle
	lvb   dlm.LVB
	due   time.Duration // since publisher.began
	tries uint8

	// Where it waits; line is nil while the conversion is made.
	line       *line
	prev, next *publication
}

// line are publications that wait, about in the order of due. A list of the library's
// would have as much memory again for each.
type line struct {
	first, last *publication
	n           int
}

func (l *line) push(p *publication) {
	p.line, p.prev, p.next = l, l.last, nil
	if l.last != nil {
		l.last.next = p
	} else {
		l.first = p
	}
	l.last = p
	l.n++
}

// leave takes p out of the line in which it waits, if it does.
func (p *publication) leave() {
	l := p.line
	if l == nil {
		return
	}
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		l.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		l.last = p.prev
	}
	p.line, p.prev, p.next = nil, nil, nil
	l.n--
}

// publisher publishes. Its lines have at most one entry for each lock that is held.
type publisher struct {
	b     *Backend
	began time.Time
	kick  chan struct{} // has room for one: run waits for an entry, and there is one

	mu    sync.Mutex // guards what follows, and the fields publication and written of handles
	node  uint32     // of this host; 0 if it is not known
	idle  bool       // run waits for kick
	fresh line
	later line
	asked int // 1 while a conversion is made
}

func newPublisher(b *Backend) *publisher {
	return &publisher{b: b, began: time.Now(), kick: make(chan struct{}, 1)}
}

// Publishing says that records of holders wait to be published, which goes on in the background.
func (b *Backend) Publishing() bool { return b.publisher.waiting() > 0 }

// waiting is how many records wait, or are being published.
func (p *publisher) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fresh.n + p.later.n + p.asked
}

// enter says which node this host is, before there are any locks.
func (p *publisher) enter(node uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node = node
}

// Describe notes that the lock is to be published, unless it is a shared one,
// whose holders cannot write the block.
func (h *handle) Describe(o locking.Owner, since time.Time) {
	if h.lock == nil || h.mode != locking.Exclusive {
		return
	}
	p := h.b.publisher
	p.mu.Lock()
	defer p.mu.Unlock()
	pub := &publication{h: h, lvb: record{node: p.node, owner: o, since: since}.encode()}
	h.publication = pub
	// Where the clock is dear, a look at it for each of 10,000 locks would be felt.
	switch last := p.later.last; {
	case !h.written:
		p.lockedAdd(&p.fresh, pub, since.Sub(p.began)+publishAfter)
	case last != nil:
		p.lockedAdd(&p.later, pub, last.due)
	default:
		p.lockedAdd(&p.later, pub, p.now()+publishLater)
	}
}

// now is how long the publisher is there.
func (p *publisher) now() time.Duration { return time.Since(p.began) }

func (p *publisher) lockedAdd(l *line, pub *publication, due time.Duration) {
	pub.due = due
	l.push(pub)
	if p.idle {
		p.idle = false
		p.kick <- struct{}{}
	}
}

// withdraw sees to it that the lock is not published any more, and reports
// whether its value block may have a record. A conversion that is under way goes
// on: see dlm.Lock.Settle.
func (p *publisher) withdraw(h *handle) (written bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pub := h.publication; pub != nil {
		h.publication = nil
		pub.leave()
	}
	return h.written
}

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait, any := p.wait()
		if !any {
			select {
			case <-p.kick:
				continue
			case <-ctx.Done():
				return
			}
		}
		if wait <= 0 {
			// Its lock, and with that the wish to publish it, may be gone when the
			// lockspace runs again.
			running, changed := p.b.watch.runs()
			if !running {
				select {
				case <-changed:
					continue
				case <-ctx.Done():
					return
				}
			}
			wait = p.next(ctx)
		}
		timer.Reset(min(wait, publishAfter)) // a new lock may be due before the others
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// wait is how long nothing is to be done; not any if there is no entry.
func (p *publisher) wait() (d time.Duration, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, l := range []*line{&p.fresh, &p.later} {
		if pub := l.first; pub != nil {
			left := pub.due - now
			if !any || left < d {
				d, any = left, true
			}
		}
	}
	p.idle = !any
	return d, any
}

// next publishes what is due first, new locks before others, and returns how long
// the pause after it is.
func (p *publisher) next(ctx context.Context) time.Duration {
	pub := p.claim()
	if pub == nil {
		return 0
	}
	begin := time.Now()
	err := p.publish(ctx, pub)
	took := time.Since(begin)
	p.done(ctx, pub, err)
	return min(max(publishRest*took, publishPauseMin), publishPauseMax)
}

func (p *publisher) claim() *publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, l := range []*line{&p.fresh, &p.later} {
		if pub := l.first; pub != nil && pub.due <= now {
			pub.leave()
			p.asked = 1
			pub.tries++
			pub.h.written = true // from now on nobody can say that it is not
			return pub
		}
	}
	return nil
}

// publish makes the conversion. A release that has begun meanwhile makes it fail,
// and one that begins later waits for it.
func (p *publisher) publish(ctx context.Context, pub *publication) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	r := p.b.watch.begin(ctx, true)
	defer r.end()
	beforePublish.Pass()
	defer afterPublish.Pass()
	return pub.h.lock.Convert(r.ctx, dlm.EX, dlm.ConvertOptions{NoQueue: true, WriteLVB: &pub.lvb})
}

// done ends a publication, or makes it wait for another try.
func (p *publisher) done(ctx context.Context, pub *publication, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = 0
	if pub.h.publication != pub {
		return // it is being released
	}
	switch {
	case err == nil, ctx.Err() != nil, errors.Is(err, dlm.ErrUnlocked):
		pub.h.publication = nil
	case pub.tries >= publishTries, errors.Is(err, dlm.ErrNoResult):
		pub.h.publication = nil
		p.b.log.Debug("the holder of a lock could not be published, so refusals on other hosts do not name it",
			"resource", pub.h.ref.Name, "lockspace", pub.h.ref.Lockspace, "reason", err)
	default:
		p.lockedAdd(&p.later, pub, p.now()+publishLater)
	}
}
