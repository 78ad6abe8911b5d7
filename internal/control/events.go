package control

import (
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Bounds of what is remembered. Names come from clients and may be long, so the
// bytes count too.
const (
	maxEvents   = 1024
	maxRefusals = 256
	maxBytes    = 1 << 20
)

// kinds are the names of locking.EventKind in the API.
var kinds = []string{
	locking.Granted:         "granted",
	locking.Refused:         "refused",
	locking.Released:        "released",
	locking.ReleasedGone:    "released_owner_gone",
	locking.ReleaseFailed:   "release_failed",
	locking.OwnerEnding:     "owner_ending",
	locking.OwnerEndFailed:  "owner_end_failed",
	locking.OwnerUnverified: "owner_unverified",
	locking.TakenBack:       "taken_back",
	locking.ReleasedUntold:  "released_untold",
	locking.Lost:            "lost",
	locking.Forced:          "forced",
	locking.OwnerGone:       "owner_gone",
	locking.TakenAgain:      "taken_again",
	locking.NotTakenAgain:   "not_taken_again",
}

func kindOf(k locking.EventKind) string {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return "unknown"
}

// Events remembers the latest events, and lets others wait for the next ones.
// The zero value is ready for use.
type Events struct {
	mu       sync.Mutex // guards what follows
	last     uint64     // number of the last event; the first is 1
	counts   [256]uint64
	all      ring
	refusals ring
	watchers map[chan struct{}]struct{}
}

// noted is an event as it is kept: the conversion is left to those who read.
type noted struct {
	seq    uint64
	time   time.Time
	event  locking.Event
	reason string
}

func (n *noted) size() int {
	return len(n.event.Ref.Lockspace) + len(n.event.Ref.Name) + len(n.event.Owner.Name) + len(n.reason)
}

// ring keeps the last of what it is given, as far as the bounds allow.
type ring struct {
	buf   []noted
	first int // index of the oldest
	n     int
	bytes int
}

func (r *ring) add(e noted, most int) {
	if r.buf == nil {
		r.buf = make([]noted, most)
	}
	r.bytes += e.size()
	for r.n == len(r.buf) || r.n > 0 && r.bytes > maxBytes {
		old := &r.buf[r.first]
		r.bytes -= old.size()
		*old = noted{}
		r.first, r.n = (r.first+1)%len(r.buf), r.n-1
	}
	r.buf[(r.first+r.n)%len(r.buf)] = e
	r.n++
}

func (r *ring) at(i int) *noted { return &r.buf[(r.first+i)%len(r.buf)] }

// Observe notes an event, which has a time. It is quick, and waits for nobody.
func (es *Events) Observe(e locking.Event) {
	n := noted{time: e.Time, event: e}
	if e.Err != nil {
		// The text now: an error may hold on to much.
		n.reason, n.event.Err = e.Err.Error(), nil
	}
	es.mu.Lock()
	defer es.mu.Unlock()
	es.last++
	n.seq = es.last
	es.counts[e.Kind]++
	es.all.add(n, maxEvents)
	if e.Kind == locking.Refused {
		es.refusals.add(n, maxRefusals)
	}
	for w := range es.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Counts is how many events of each kind there were.
func (es *Events) Counts() map[string]uint64 {
	es.mu.Lock()
	defer es.mu.Unlock()
	m := map[string]uint64{}
	for k, name := range kinds {
		m[name] = es.counts[k]
	}
	return m
}

// Refusals lists the latest refusals, oldest first.
func (es *Events) Refusals() []Event {
	es.mu.Lock()
	defer es.mu.Unlock()
	list := make([]Event, es.refusals.n)
	for i := range list {
		list[i] = eventOf(es.refusals.at(i))
	}
	return list
}

// Last is the number of the last event.
func (es *Events) Last() uint64 {
	es.mu.Lock()
	defer es.mu.Unlock()
	return es.last
}

// After lists events that came after number seq, oldest first and not more than
// most, and says how many of them are forgotten already.
func (es *Events) After(seq uint64, most int) (list []Event, missed uint64) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if seq >= es.last {
		return nil, 0
	}
	oldest := es.last - uint64(es.all.n) + 1
	if seq+1 < oldest {
		missed = oldest - seq - 1
		seq = oldest - 1
	}
	for i := int(seq + 1 - oldest); i < es.all.n && len(list) < most; i++ {
		list = append(list, eventOf(es.all.at(i)))
	}
	return list, missed
}

// watch returns a channel that is sent to after every event, without ever being
// waited for.
func (es *Events) watch() (wake <-chan struct{}, done func()) {
	w := make(chan struct{}, 1)
	es.mu.Lock()
	defer es.mu.Unlock()
	if es.watchers == nil {
		es.watchers = map[chan struct{}]struct{}{}
	}
	es.watchers[w] = struct{}{}
	return w, func() {
		es.mu.Lock()
		defer es.mu.Unlock()
		delete(es.watchers, w)
	}
}

func eventOf(n *noted) Event {
	e := Event{
		Seq: n.seq, Time: n.time.UTC(), Kind: kindOf(n.event.Kind),
		VM: n.event.Owner.Name, UUID: locking.FormatUUID(n.event.Owner.UUID), PID: n.event.Owner.PID,
		Lockspace: n.event.Ref.Lockspace, Resource: n.event.Ref.Name,
		Reason: n.reason, Took: n.event.Took.Seconds(), Held: n.event.Held.Seconds(), Locks: n.event.Locks,
	}
	if n.event.Ref != (locking.Ref{}) {
		e.Mode = n.event.Mode.String()
	}
	return e
}
