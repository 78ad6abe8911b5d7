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

// listen takes the promise of who does not say anything, while what this host says goes round in
// a ring that both are in: there is nobody who would keep it. Where a watchdog does, it stays.
func (l *ledger) listen(v view, t Timing) {
	if !v.isProven || !t.Known() || l.ring != v.ring.ID.Seq {
		return
	}
	for node, w := range l.words {
		if !w.Promise || w.Watchdog || !v.inRing(node) || !slices.Contains(v.space, node) {
			continue
		}
		if v.proven-max(l.spoke[node], l.since, l.began) > t.Token+silence {
			w.Promise = false
			l.words[node] = w
			l.silent = append(l.silent, node)
			l.changed = true
		}
	}
}

// silence is what a guard has beyond the token timeout, which corosync itself allows a host to say nothing in, to be
// heard again: it speaks every second.
const silence = 2 * beat

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

// hear takes what the guard of another node says.
func (l *ledger) hear(v view, from uint32, m message) {
	needs := time.Duration(m.Needs) * time.Millisecond
	l.heard[from] = struct{}{}
	l.spoke[from] = v.at
	if w := (word{Promise: m.Promise, Watchdog: m.Watchdog, Leaving: m.Leaving, Needs: needs}); l.words[from] != w {
		l.words[from] = w
		l.changed = true
	}
	if v.ring == nil || m.Ring != v.ring.ID.Seq {
		return // in another ring who was dead may have been alive again, and who was there may be gone
	}
	for _, node := range m.Dead {
		if node != v.self {
			_ = l.confirm(v, node)
		}
	}
	if !l.entered || l.restored || !v.inSpace() || !slices.Contains(m.Space, v.self) {
		// What it knows may be older than what this host must know.
		return
	}
	said := map[uint32]bool{}
	for _, f := range m.Facts {
		said[f.Node] = true
		if f.Node != v.self && !slices.Contains(v.space, f.Node) && !l.isConfirmed(f.Node) && !(f.Promised && f.Left == 0) {
			l.merge(v, f)
		}
	}
	if slices.ContainsFunc(append(m.Space, from), func(node uint32) bool { return node != v.self && !slices.Contains(v.space, node) }) {
		return // it has not found yet who is gone in this ring, or that it is gone itself
	}
	// Now this host knows what that one knows, whether or not that is all: when all
	// have been heard there is nobody left who could know more.
	delete(l.unheard, from)
	if !m.Complete {
		return
	}
	l.vouched = true
	for node, f := range l.facts {
		if f.Guess && !said[node] {
			l.drop(node)
		}
	}
}

// merge takes what another guard knows of a node that has vanished. What is sure counts
// more than what is not. Where both know the same well, or badly, the promise counts only
// if both know of it: one of them may not have been there when it was withdrawn.
func (l *ledger) merge(v view, f told) {
	own, noted := l.facts[f.Node]
	was, needs := own, time.Duration(f.Needs)*time.Millisecond
	next := fact{Node: f.Node, Since: v.at, Until: v.at + time.Duration(f.Left)*time.Millisecond, Promised: f.Promised, Guess: f.Unsure, Needs: max(needs, own.Needs)}
	if own.Needs < needs {
		// That node has other settings, of which this host had not heard.
		own.Needs, own.Until = needs, max(own.Until, own.Since+needs)
	}
	_, over := l.over[f.Node]
	switch {
	case !noted && f.Unsure && l.vouched:
		return // it is known better
	case !noted && over && f.Promised:
		// The own time is enough. What is left of another one's was longer on its way, and would
		// come back from here when it has ended there.
		return
	case !noted, own.Guess && !f.Unsure:
	case own.sure() && f.Unsure:
		return
	case own.Guess:
		next.Since, next.Promised = own.Since, own.Promised && f.Promised
		if needs < own.Needs {
			next.Until = own.Until // the other one does not know how long that node needs
		} else {
			next.Until = min(own.Until, next.Until)
		}
	default:
		// Each has its own time from when it found that node gone, and either is enough. The
		// later one of the two would be told to and fro, and grow with each message.
		next = own
		next.Promised = own.Promised && f.Promised
		next.Before = own.Before && (f.Unsure || next.Promised != f.Promised)
	}
	if !noted || next != was {
		l.note(next)
	}
}

// joined and left are about the process of a guard on a node.
func (l *ledger) joined(node uint32) {
	if w, ok := l.words[node]; ok && (w.Leaving || w.Promise) {
		l.words[node] = word{Needs: w.Needs} // until it has said more
		l.changed = true
	}
}

// left: alone says that the guard has ended and its node has not.
func (l *ledger) left(node uint32, alone bool) {
	w, ok := l.words[node]
	if !ok || !alone || w.Leaving || w.Watchdog || !w.Promise {
		return
	}
	w.Promise = false
	l.words[node] = w
	l.changed = true
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
