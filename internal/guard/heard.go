package guard

import (
	"slices"
	"time"
)

// listen takes the promise of who does not say anything, while what this host says goes round in
// a ring that both are in: there is nobody who would keep it. Where a watchdog does it stays for as long as that node
// would be waited for: when it is in the ring after that, nothing has reset it, so its watchdog was not armed.
func (l *ledger) listen(v view, t Timing) {
	if !v.isProven || !t.Known() || l.ring != v.ring.ID.Seq {
		return
	}
	for node, w := range l.words {
		if !w.Promise || !v.inRing(node) || !slices.Contains(v.space, node) {
			continue
		}
		limit := t.Token + silence
		if w.Watchdog {
			limit += max(t.HoldOff, w.Needs)
		}
		if v.proven-max(l.spoke[node], l.since, l.began) > limit {
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
	case !noted && len(l.facts) >= maxHeard:
		return
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
