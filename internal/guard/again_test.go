package guard

import (
	"io/fs"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// A guard that was away for longer than a moment, and finds the ring that it had noted and
// everybody in the lockspace, has to hear nobody: none can have been lost. Whatever is not
// so has it ask the others.
func TestAwayWithNobodyMissing(t *testing.T) {
	long := 8 * absence // less than the lease
	for name, tc := range map[string]struct {
		before func(*ledger)
		change func(*view)
		hear   bool
	}{
		"nothing has changed":                        {},
		"it was away for a lease":                    {change: func(v *view) { v.at = time.Second + lab.Lease() }, hear: true},
		"the ring is another one":                    {change: func(v *view) { v.ring.ID.Seq++ }, hear: true},
		"a member of the ring is not in it":          {change: func(v *view) { v.space = []uint32{1, 2} }, hear: true},
		"one came into the ring that is not in it":   {change: func(v *view) { v.ring.Members = []uint32{1, 2, 3, 4} }, hear: true},
		"one that is configured was never there":     {change: func(v *view) { v.configured = []uint32{1, 2, 3, 4} }, hear: true},
		"and cannot have had quorum":                 {change: func(v *view) { v.configured, v.static = []uint32{1, 2, 3, 4}, true }},
		"one is held off for":                        {before: func(l *ledger) { l.note(fact{Node: 4, Until: time.Hour}) }, hear: true},
		"a node that was lost is configured no more": {before: func(l *ledger) { l.known[4] = time.Unix(1000, 0) }, hear: true},
		"it had not heard all":                       {before: func(l *ledger) { l.unheard[2] = struct{}{} }, hear: true},
		"it was outside":                             {before: func(l *ledger) { l.entered = false }, hear: true},
	} {
		t.Run(name, func(t *testing.T) {
			l, v := watching(), seen(time.Second+long, 1, 1, 2, 3)
			if tc.before != nil {
				tc.before(l)
			}
			if tc.change != nil {
				tc.change(&v)
			}
			l = l.again(time.Second)
			l.look(v, lab, time.Unix(1001, 0))
			if hear := len(l.unheard) > 0; hear != tc.hear || l.complete() == tc.hear {
				t.Errorf("to be heard: %v; all is known: %v", l.unheard, l.complete())
			}
		})
	}
}

// A guard is started before it is told anything of the cluster. That is no loss of it; to be
// told of one is. And while nothing is known what is noted stays as old as it is.
func TestAwayAndNotToldYet(t *testing.T) {
	ring := func(quorate bool) *corosync.Ring {
		return &corosync.Ring{ID: corosync.RingID{Seq: 1}, Members: []uint32{1, 2, 3}, Quorate: quorate}
	}
	for name, tc := range map[string]struct {
		first view
		lost  bool
	}{
		"nothing is known":                 {view{}, false},
		"corosync is not connected":        {view{self: 1, space: []uint32{1, 2, 3}, configured: []uint32{1, 2, 3}}, false},
		"the nodes are not known":          {view{self: 1, space: []uint32{1, 2, 3}, ring: ring(true)}, false},
		"the members cannot be read":       {view{self: 1, spaceErr: syscall.EMFILE, ring: ring(true)}, false},
		"there is no quorum":               {view{self: 1, space: []uint32{1, 2, 3}, ring: ring(false)}, true},
		"it is not in the lockspace":       {view{self: 1, space: []uint32{2, 3}}, true},
		"it is not in any lockspace":       {view{self: 1, spaceErr: fs.ErrNotExist}, true},
		"quorum is lost, the node unknown": {view{ring: ring(false)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := watching().again(time.Second)
			tc.first.at = 2 * time.Second
			l.look(tc.first, lab, time.Unix(1002, 0))
			// Nobody is believed before this host has looked.
			l.note(fact{Node: 4, Guess: true})
			l.hear(seen(tc.first.at, 1, 1, 2, 3), 2, message{Promise: true, Complete: true, Ring: 1, Space: []uint32{1, 3}})
			if _, ok := l.facts[4]; !ok {
				t.Error("node 2 was believed")
			}
			l.drop(4)
			var s Saved
			s.At = tc.first.at
			if l.save(&s); s.At != time.Second {
				t.Errorf("noted as of %v", s.At)
			}
			l.look(seen(3*time.Second, 1, 1, 2, 3), lab, time.Unix(1003, 0))
			if lost := len(l.unheard) > 0; lost != tc.lost {
				t.Errorf("to be heard: %v", l.unheard)
			}
			s.At = 3 * time.Second
			if l.save(&s); s.At != 3*time.Second {
				t.Errorf("after a look noted as of %v", s.At)
			}
		})
	}
}

// Who knows all takes nobody's guesses. Otherwise a node that is off has all guards wait for a
// hold-off whenever another one starts, as each tells the others what it had from them.
func TestGuessesAreNotCaught(t *testing.T) {
	v := seen(time.Hour, 2, 1, 2)
	v.configured = []uint32{1, 2, 3, 4}
	v.ring.Members, v.space = []uint32{1, 2, 4}, []uint32{1, 2, 4}
	guess := message{Promise: true, Ring: 2, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 50_000, Promised: true, Unsure: true}}}
	all := message{Promise: true, Complete: true, Ring: 2, Space: []uint32{1, 4}}

	// It knows itself.
	l := newLedger()
	l.entered, l.ring, l.known = true, 2, map[uint32]time.Time{2: {}, 4: {}}
	l.look(v, lab, time.Unix(4600, 0))
	l.hear(v, 4, guess)
	l.none(t, "nothing is missing in what it knows")

	// It has heard one who does.
	l = newLedger()
	l.look(v, lab, time.Unix(4600, 0))
	l.hear(v, 4, guess)
	l.only(t, "nobody knows better")
	l.hear(v, 2, all)
	l.none(t, "node 2 does")
	l.hear(v, 4, guess)
	l.none(t, "node 2 has said so before")
	l.hear(v, 4, message{Promise: true, Ring: 2, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 50_000, Promised: true}}})
	l.only(t, "this is no guess")

	// That was before this host was away.
	l = newLedger()
	l.look(v, lab, time.Unix(4600, 0))
	l.hear(v, 2, all)
	l.look(seen(time.Hour+time.Second, 4), lab, time.Unix(4601, 0))
	v.at, v.ring.ID.Seq, v.configured = time.Hour+2*time.Second, 6, []uint32{1, 2, 4}
	l.look(v, lab, time.Unix(4602, 0))
	guess.Ring = 6
	l.hear(v, 4, guess)
	l.only(t, "it does not know better any more")
}

// A node that was lost from the lockspace, and has not noticed yet, says that all is well.
func TestLostNodeIsNotBelieved(t *testing.T) {
	l := watching().again(time.Second)
	v := seen(2*time.Second, 1, 1, 2, 3)
	v.space = []uint32{1, 2}
	l.look(v, lab, time.Unix(1002, 0))
	l.only(t, "its dlm_controld has ended")
	l.hear(v, 3, message{Promise: true, Complete: true, Ring: 1, Space: []uint32{1, 2}})
	l.only(t, "it says nothing of itself")
}

// When a ring was seen first is not forgotten with the daemon that has seen it.
func TestSettledAfterARestart(t *testing.T) {
	l := watching()
	l.look(seen(time.Second, 2, 1, 2, 3), lab, time.Unix(1001, 0))
	l = l.again(1100 * time.Millisecond)
	l.look(seen(1200*time.Millisecond, 2, 1, 2, 3), lab, time.Unix(1001, 0))
	if l.since != time.Second {
		t.Errorf("the ring was seen first at %v", l.since)
	}
}
