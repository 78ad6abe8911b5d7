package guard

import (
	"fmt"
	"slices"
	"time"
)

// fact is a node that has vanished, or may have.
type fact struct {
	Node  uint32        `json:"node"`
	Since time.Duration `json:"since"` // when it was found gone
	Until time.Duration `json:"until"` // when what it may have had can be granted, if Promised
	// Promised: the guard of that node stops what it has. If not, no time is enough.
	Promised bool `json:"promised"`
	// Guess: nobody here has seen it vanish, and knows what it had said last. It was away
	// when this host gained quorum, or when its guard began.
	Guess bool `json:"guess,omitempty"`
	// Needs is how long it must be waited for by its own settings, as far as somebody has heard it say so; 0 if nobody has.
	Needs time.Duration `json:"needs,omitempty"`
	// Before: it was noted before this host was away for a while. That node may have come
	// back meanwhile, and have been lost again.
	Before bool `json:"before,omitempty"`
}

// sure reports whether others may rely on it.
func (f fact) sure() bool { return !f.Guess && !f.Before }

// word is what the guard of another node has said of itself.
type word struct {
	Promise  bool          `json:"promise"`
	Watchdog bool          `json:"watchdog,omitempty"`
	Leaving  bool          `json:"leaving,omitempty"`
	Needs    time.Duration `json:"needs,omitempty"`
}

// ledger knows which nodes have vanished. It is pure: it is told what is seen
// and heard, and what time it is.
type ledger struct {
	known map[uint32]time.Time // members of the lockspace besides this one, and by the wall clock when they were seen last
	words map[uint32]word
	// heard are nodes whose guards have said it while this one listened. Of others words
	// may be old.
	heard map[uint32]struct{}
	// spoke is when a node's guard was heard last, and began when this ledger looked first.
	spoke     map[uint32]time.Duration
	began     time.Duration
	looked    bool
	silent    []uint32 // nodes whose promise has just become void as nothing is heard of it; for the log
	facts     map[uint32]fact
	over      map[uint32]struct{} // nodes whose hold-off has ended here by itself in this ring
	confirmed map[uint32]struct{} // an operator said that they are dead, and they have not come back
	// entered: at the last look this host had quorum and was in the lockspace.
	// Otherwise it does not know what others did meanwhile.
	entered bool
	ring    uint64 // at the last look with entered
	// since is when ring was seen first.
	since time.Duration
	// unheard are members of the lockspace that may know of nodes that had vanished
	// before this host came. They are waited for until heardBy.
	unheard map[uint32]struct{}
	heardBy time.Duration
	// vouched: since this host has entered there was a moment at which nothing could have happened
	// that is not in facts. What has happened since it has seen.
	vouched bool
	changed bool // something that must be noted
	// restored: it is of an earlier daemon, which noted it at restoredAt, and nothing
	// was seen since.
	restored   bool
	restoredAt time.Duration
	lookedAt   time.Duration // the last look of this daemon
	// woke is when it was found that this guard had stood still; 0 if that never was. What it has of corosync and of the
	// others may be from before that for a moment.
	woke time.Duration
}

// absence is how long a daemon may have been away without having to doubt that
// this host had quorum all the time, if the ring is still the same. With nobody
// missing it is a lease.
const absence = 2 * time.Second

func newLedger() *ledger {
	return &ledger{
		known: map[uint32]time.Time{}, words: map[uint32]word{}, heard: map[uint32]struct{}{}, spoke: map[uint32]time.Duration{},
		facts: map[uint32]fact{}, over: map[uint32]struct{}{},
		confirmed: map[uint32]struct{}{}, unheard: map[uint32]struct{}{},
	}
}

// look compares what is seen with what was. wall is the time by the wall clock.
func (l *ledger) look(v view, t Timing, wall time.Time) {
	gap := v.at - l.lookedAt
	l.lookedAt = v.at
	if !v.quorate() || !v.inSpace() || len(v.configured) == 0 {
		// That a daemon has just started, and was told nothing yet, is no loss of anything.
		if !l.restored || v.outside() {
			l.entered = false
		}
		return
	}
	if l.restored {
		l.restored = false
		away := v.at - l.restoredAt
		l.entered = l.entered && l.ring == v.ring.ID.Seq && (away < absence || t.Known() && away < t.Lease() && l.nobodyMissing(v))
	} else if l.looked && t.Known() && gap > t.Lease() {
		// This guard stood still, and knows no more than one that was not there: a node may have come and
		// have been lost meanwhile.
		l.entered, l.woke = false, v.at
	}
	if l.woke > 0 && l.ring != v.ring.ID.Seq && v.at-l.woke <= settleTime {
		// The ring has changed while it stood still, and it was told of that after it had looked. What it has heard in between
		// was said in the ring before.
		l.entered = false
	}
	for node := range l.confirmed {
		if v.inRing(node) || slices.Contains(v.space, node) {
			delete(l.confirmed, node)
			l.changed = true
		}
	}
	if !l.looked {
		l.looked, l.began = true, v.at
	}
	l.listen(v, t)
	for node, seen := range l.known {
		if !slices.Contains(v.space, node) {
			delete(l.known, node)
			l.changed = true
			l.vanished(v, t, node, seen)
		}
	}
	if !l.entered {
		l.enter(v, t)
	}
	if l.ring != v.ring.ID.Seq {
		l.ring, l.since, l.changed = v.ring.ID.Seq, v.at, true
		clear(l.over) // in it there may be who was there in between
	}
	for _, node := range v.space {
		if node == v.self {
			continue
		}
		if _, ok := l.known[node]; !ok {
			l.changed = true
			if w := l.words[node]; w.Leaving {
				// It is back. That its guard is may be told later, or never.
				l.words[node] = word{Needs: w.Needs}
			}
		}
		l.known[node] = wall
		// It can have entered only after all its locks were gone: it was rebooted, or
		// has left before.
		l.drop(node)
	}
	for node, f := range l.facts {
		if v.majority && f.Promised && v.at >= f.Until {
			l.drop(node)
			l.over[node] = struct{}{}
		}
	}
	for node := range l.unheard {
		if !slices.Contains(v.space, node) || v.at >= l.heardBy {
			delete(l.unheard, node)
		}
	}
	l.vouched = l.vouched || l.complete()
}

// nobodyMissing reports whether everybody is in the lockspace who may have had locks in this ring
// and lost them unseen: then the others know of nobody who has vanished, as who is in it had no
// locks when it came. Nodes that were in no ring of this host do not matter if they cannot
// have had quorum.
func (l *ledger) nobodyMissing(v view) bool {
	missing := func(node uint32) bool { return !slices.Contains(v.space, node) }
	for node := range l.facts {
		if missing(node) {
			return false
		}
	}
	for node := range l.known {
		if missing(node) {
			return false
		}
	}
	return !slices.ContainsFunc(v.ring.Members, missing) && (v.static || !slices.ContainsFunc(v.configured, missing))
}

func (l *ledger) drop(node uint32) {
	if _, ok := l.facts[node]; ok {
		delete(l.facts, node)
		l.changed = true
	}
}

// vanished notes a node that is no member of the lockspace any more.
func (l *ledger) vanished(v view, t Timing, node uint32, seen time.Time) {
	w := l.words[node]
	if w.Leaving || l.isConfirmed(node) {
		return
	}
	// The times are whole seconds of this host's clock. dlm_controld lets the kernel
	// go on only when a node was fenced, where it fences.
	d, ok := v.daemon(node)
	if ok && !d.Member && !d.NeedFencing && !d.Fenced.IsZero() && d.Fenced.After(seen) {
		return
	}
	_, heard := l.heard[node]
	l.note(fact{Node: node, Since: v.at, Until: v.at + max(t.HoldOff, w.Needs), Promised: w.Promise, Guess: !l.entered || !heard, Needs: w.Needs})
}

func (l *ledger) isConfirmed(node uint32) bool {
	_, ok := l.confirmed[node]
	return ok
}

func (l *ledger) note(f fact) {
	l.facts[f.Node] = f
	l.changed = true
}

// enter is about what happened while this host had no quorum, or was not in the
// lockspace: whoever is away now may have had quorum until just now.
func (l *ledger) enter(v view, t Timing) {
	l.entered, l.changed = true, true
	if l.ring != v.ring.ID.Seq {
		// Who was confirmed dead may have been there again, and been lost again.
		clear(l.confirmed)
	}
	for node, f := range l.facts {
		f.Needs = max(f.Needs, l.words[node].Needs)
		f.Until = max(f.Until, v.at+max(t.HoldOff, f.Needs))
		f.Before = !f.Guess
		l.note(f)
	}
	for _, node := range v.configured {
		_, noted := l.facts[node]
		if noted || node == v.self || v.inRing(node) || slices.Contains(v.space, node) || l.isConfirmed(node) {
			continue
		}
		w, heard := l.words[node]
		if w.Leaving {
			// It may have come back to a part of the cluster in which this host was not.
			w.Promise = true
		}
		l.note(fact{Node: node, Since: v.at, Until: v.at + max(t.HoldOff, w.Needs), Promised: !heard || w.Promise, Guess: true, Needs: w.Needs})
	}
	clear(l.heard)
	clear(l.unheard)
	clear(l.over)
	l.vouched = false
	for _, node := range v.space {
		if node != v.self {
			l.unheard[node] = struct{}{}
		}
	}
	l.heardBy = v.at + t.HoldOff
}

// confirm notes that an operator has seen that a node is dead.
func (l *ledger) confirm(v view, node uint32) error {
	switch {
	case v.ring == nil || v.spaceErr != nil:
		return fmt.Errorf("it is not known who is in the cluster: try again when corosync runs")
	case v.inRing(node) || slices.Contains(v.space, node):
		return fmt.Errorf("node %d %w", node, ErrMember)
	}
	if !l.isConfirmed(node) && len(l.confirmed) < maxFacts {
		l.confirmed[node] = struct{}{}
		l.changed = true
	}
	l.drop(node)
	return nil
}

// complete reports whether nothing can have happened that is not in facts.
func (l *ledger) complete() bool {
	if !l.entered || len(l.unheard) > 0 {
		return false
	}
	for _, f := range l.facts {
		if f.Guess {
			return false
		}
	}
	return true
}

// list are the facts, by node.
func (l *ledger) list() []fact {
	list := make([]fact, 0, len(l.facts))
	for _, f := range l.facts {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b fact) int { return int(int64(a.Node) - int64(b.Node)) })
	return list
}
