package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

var lab = Timing{Token: 5650 * time.Millisecond, Consensus: 6780 * time.Millisecond, Grace: 10 * time.Second, HoldOff: time.Minute}

func TestTiming(t *testing.T) {
	three := Timing{Token: 3650 * time.Millisecond, Consensus: 4380 * time.Millisecond, Grace: 10 * time.Second, HoldOff: time.Minute}
	if got := three.LeastHoldOff(); got != 35364*time.Millisecond {
		t.Errorf("the shortest hold-off is %v; docs/guard.md says 35.4 s", got)
	}
	if err := three.Check(); err != nil {
		t.Error(err)
	}
	three.HoldOff = three.LeastHoldOff() - time.Millisecond
	err := three.Check()
	if err == nil || !strings.Contains(err.Error(), "35.364s") || !strings.Contains(err.Error(), "guard.hold_off") {
		t.Errorf("one millisecond less: %v", err)
	}
	three.HoldOff, three.Watchdog = time.Minute, 30*time.Second
	if err := three.Check(); err == nil {
		t.Error("a watchdog that takes as long as the rest makes no difference")
	}
	three.Watchdog, three.Device = 0, 16*time.Second
	if got := three.LeastHoldOff(); got != 54264*time.Millisecond {
		t.Errorf("with a quorum device the shortest hold-off is %v; docs/guard.md says 54.3 s", got)
	}
	three.HoldOff = 50 * time.Second
	if err := three.Check(); err == nil || !strings.Contains(err.Error(), "quorum.device.timeout") {
		t.Errorf("a hold-off that is too short for the device: %v", err)
	}
}

// seen is what node 1 of three sees.
func seen(at time.Duration, ring uint64, members ...uint32) view {
	return view{
		at: at, self: 1, majority: true, configured: []uint32{1, 2, 3}, space: members, asked: true,
		ring: &corosync.Ring{ID: corosync.RingID{Seq: ring}, Members: members, Quorate: len(members) > 1},
	}
}

// watching is a ledger of node 1 that has seen all, with promises.
func watching() *ledger {
	l := newLedger()
	l.look(seen(0, 1, 1, 2, 3), lab, time.Unix(1000, 0))
	for _, node := range []uint32{2, 3} {
		l.hear(seen(0, 1, 1, 2, 3), node, message{Promise: true, Complete: true, Ring: 1, Space: []uint32{1, 2, 3}})
	}
	return l
}

// goesOn has a guard look in time until v, while nothing changes.
func (l *ledger) goesOn(v view) {
	for end := v.at; l.lookedAt < end; {
		v.at = min(l.lookedAt+lab.Lease()/2, end)
		l.look(v, lab, time.Unix(1000, 0).Add(v.at))
	}
}

func (l *ledger) only(t *testing.T, what string) fact {
	t.Helper()
	if len(l.facts) != 1 {
		t.Fatalf("%s: %+v are held off for, and it should be one", what, l.list())
	}
	return l.list()[0]
}

func (l *ledger) none(t *testing.T, what string) {
	t.Helper()
	if len(l.facts) != 0 {
		t.Fatalf("%s: %+v are held off for", what, l.list())
	}
}

func TestVanished(t *testing.T) {
	l := watching()
	l.none(t, "all are there")
	if !l.complete() {
		t.Fatal("all were heard, and it is not complete")
	}
	l.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	if f := l.only(t, "node 3 is gone"); f.Node != 3 || f.Until != time.Second+lab.HoldOff || !f.Promised || f.Guess {
		t.Errorf("%+v", f)
	}
	l.goesOn(seen(time.Second+lab.HoldOff-1, 2, 1, 2))
	l.only(t, "a moment before the end")
	l.goesOn(seen(time.Second+lab.HoldOff, 2, 1, 2))
	l.none(t, "at the end")
}

// What has ended here by its time is not begun again by what is left of it elsewhere: that came later as
// it was on its way, and the two would send it to and fro.
func TestEndedIsNotToldAgain(t *testing.T) {
	ended := func() (*ledger, view) {
		l := watching()
		l.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
		v := seen(time.Second+lab.HoldOff, 2, 1, 2)
		l.goesOn(v)
		l.none(t, "at the end")
		return l, v
	}
	rest := func(promised, unsure bool) message {
		return message{Promise: true, Complete: true, Ring: 2, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 800, Promised: promised, Unsure: unsure}}}
	}
	l, v := ended()
	l.hear(v, 2, rest(true, false))
	l.none(t, "another one has some of it left")

	// Who knows that it gave no promise knows more.
	l, v = ended()
	l.hear(v, 2, rest(false, false))
	if f := l.only(t, "it had given no promise"); f.Promised {
		t.Errorf("%+v", f)
	}

	// It was there again, and is lost again, which another one has found first.
	l, v = ended()
	l.look(seen(v.at+time.Second, 3, 1, 2, 3), lab, time.Unix(1070, 0))
	l.hear(seen(v.at+2*time.Second, 3, 1, 2), 2, message{Promise: true, Ring: 3, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 60_000, Promised: true}}})
	l.only(t, "it is lost again")

	// This host may not have seen that.
	l, v = ended()
	out := seen(v.at+time.Second, 3, 1)
	l.look(out, lab, time.Unix(1070, 0))
	in := seen(v.at+2*time.Second, 4, 1, 2)
	l.look(in, lab, time.Unix(1071, 0))
	l.only(t, "it may have been there meanwhile")
}

// Who needs longer than this host's hold-off, by other settings, is waited for longer.
func TestNeeds(t *testing.T) {
	const needs = 90 * time.Second
	l := watching()
	l.hear(seen(0, 1, 1, 2, 3), 3, message{Promise: true, Needs: needs.Milliseconds(), Ring: 1})
	l.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	if f := l.only(t, "node 3 is gone"); f.Until != time.Second+needs {
		t.Errorf("it was seen to vanish: %+v", f)
	}
	l.look(seen(2*time.Second, 3, 1), lab, time.Unix(1002, 0)) // without quorum
	l.look(seen(3*time.Second, 4, 1, 2), lab, time.Unix(1003, 0))
	if f := l.only(t, "after a time without quorum"); f.Until != 3*time.Second+needs {
		t.Errorf("it was gone when quorum was gained: %+v", f)
	}

	// Another one who does not know either when it vanished, nor how long it needs, has a shorter time of its own.
	l = watching()
	l.hear(seen(0, 1, 1, 2, 3), 3, message{Promise: true, Needs: needs.Milliseconds(), Ring: 1})
	l.look(seen(2*time.Second, 3, 1), lab, time.Unix(1002, 0))
	v := seen(3*time.Second, 4, 1, 2)
	l.look(v, lab, time.Unix(1003, 0))
	other := newLedger()
	other.look(v, lab, time.Unix(1003, 0))
	guess := other.only(t, "a host that was booted")
	say := func(f fact) message {
		return message{Promise: true, Ring: 4, Space: []uint32{1, 2}, Facts: []told{
			{Node: 3, Left: (f.Until - v.at).Milliseconds(), Promised: f.Promised, Unsure: !f.sure(), Needs: f.Needs.Milliseconds()}}}
	}
	own := l.only(t, "it is a guess of both")
	l.hear(v, 2, say(guess))
	if f := l.only(t, "who knows less has spoken"); f.Until != v.at+needs {
		t.Errorf("the shorter time counts: %+v", f)
	}
	other.hear(v, 2, say(own))
	if f := other.only(t, "who knows more has spoken"); f.Until != v.at+needs {
		t.Errorf("it is not waited for as long as it needs: %+v", f)
	}
	for range 3 {
		l.hear(v, 2, say(other.list()[0]))
		other.hear(v, 2, say(l.list()[0]))
	}
	if a, b := l.list()[0], other.list()[0]; a.Until != v.at+needs || b.Until != v.at+needs {
		t.Errorf("told to and fro it becomes another time: %+v, %+v", a, b)
	}
}

// A guard that says nothing while what this host says goes round does not keep its promise.
func TestSilent(t *testing.T) {
	const last = 10 * time.Second
	limit := lab.Token + silence
	for name, c := range map[string]struct {
		proven time.Duration // when what has come back was sent
		word   message
		change func(*view)
		want   bool
	}{
		"for long enough":                 {last + limit + 1, message{Promise: true}, func(*view) {}, false},
		"not yet":                         {last + limit, message{Promise: true}, func(*view) {}, true},
		"it has a watchdog":               {last + limit + lab.HoldOff, message{Promise: true, Watchdog: true}, func(*view) {}, true},
		"which has reset nothing":         {last + limit + lab.HoldOff + 1, message{Promise: true, Watchdog: true}, func(*view) {}, false},
		"which may take longer there":     {last + limit + lab.HoldOff + 1, message{Promise: true, Watchdog: true, Needs: 90_000}, func(*view) {}, true},
		"and has not done it":             {last + limit + 90*time.Second + 1, message{Promise: true, Watchdog: true, Needs: 90_000}, func(*view) {}, false},
		"nothing of this host goes round": {last + time.Hour, message{Promise: true}, func(v *view) { v.isProven = false }, true},
		"the ring is a new one":           {last + time.Hour, message{Promise: true}, func(v *view) { v.ring.ID.Seq = 2 }, true},
		"it is not in the ring":           {last + time.Hour, message{Promise: true}, func(v *view) { v.ring.Members = []uint32{1, 2} }, true},
	} {
		l := watching()
		c.word.Ring = 1
		l.hear(seen(last, 1, 1, 2, 3), 3, c.word)
		v := seen(c.proven+time.Second, 1, 1, 2, 3)
		v.proven, v.isProven = c.proven, true
		l.hear(v, 2, message{Promise: true, Ring: 1})
		c.change(&v)
		l.look(v, lab, time.Unix(1001, 0))
		if got := l.words[3].Promise; got != c.want {
			t.Errorf("%s: the promise of node 3 counts: %v", name, got)
		}
		if !l.words[2].Promise {
			t.Errorf("%s: that of node 2, which was heard, does not count", name)
		}
		l.hear(v, 3, message{Promise: true, Ring: 1})
		if !l.words[3].Promise {
			t.Errorf("%s: it speaks again, and does not count", name)
		}
	}
}

func TestNoHoldOff(t *testing.T) {
	for name, f := range map[string]func(l *ledger, v *view){
		"it has left": func(l *ledger, v *view) {
			l.hear(*v, 3, message{Promise: true, Leaving: true, Ring: 1})
			l.left(3, true)
		},
		"it was fenced": func(_ *ledger, v *view) {
			v.cluster.Nodes = []controld.DaemonNode{{NodeID: 3, Failed: time.Unix(1002, 0), Fenced: time.Unix(1003, 0)}}
		},
		"it was confirmed": func(l *ledger, v *view) {
			l.look(*v, lab, time.Unix(1001, 0))
			if err := l.confirm(*v, 3); err != nil {
				panic(err)
			}
		},
		"it was confirmed elsewhere": func(l *ledger, v *view) {
			l.look(*v, lab, time.Unix(1001, 0))
			l.hear(*v, 2, message{Promise: true, Ring: v.ring.ID.Seq, Dead: []uint32{3}})
		},
		"it is back": func(l *ledger, v *view) {
			l.look(*v, lab, time.Unix(1001, 0))
			*v = seen(2*time.Second, 3, 1, 2, 3)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, v := watching(), seen(time.Second, 2, 1, 2)
			f(l, &v)
			l.look(v, lab, time.Unix(1004, 0))
			l.none(t, name)
			// And what another guard has not heard of yet does not bring it back.
			l.hear(v, 2, message{Promise: true, Ring: v.ring.ID.Seq, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 1000, Promised: true}}})
			if name == "it was confirmed" || name == "it was confirmed elsewhere" || name == "it is back" {
				l.none(t, "told again")
			}
		})
	}
}

// An old record of fencing, a confirmation of a member, and a lost promise count for nothing.
func TestHoldOffInDoubt(t *testing.T) {
	l, v := watching(), seen(time.Second, 2, 1, 2)
	v.cluster.Nodes = []controld.DaemonNode{{NodeID: 3, Failed: time.Unix(500, 0), Fenced: time.Unix(600, 0)}}
	l.look(v, lab, time.Unix(1001, 0))
	l.only(t, "it was fenced, but an earlier time")

	l = watching()
	if err := l.confirm(seen(time.Second, 1, 1, 2, 3), 3); err == nil {
		t.Error("a member was confirmed dead")
	}

	l = watching()
	l.left(3, true) // vmlockd was killed there
	l.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	l.goesOn(seen(time.Hour, 2, 1, 2))
	if f := l.only(t, "its guard was killed, an hour ago"); f.Promised {
		t.Errorf("%+v", f)
	}

	l = watching()
	l.left(3, false) // with its whole node
	l.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	if f := l.only(t, "its node is gone"); !f.Promised {
		t.Errorf("%+v", f)
	}

	l = watching()
	v = seen(time.Second, 2, 1, 2)
	v.majority = false
	l.look(v, lab, time.Unix(1001, 0))
	v.at = time.Hour
	l.goesOn(v)
	l.only(t, "quorum is no majority")
}

// Who gains quorum does not know who had it before, unless another guard does.
func TestGainedQuorum(t *testing.T) {
	l := watching()
	l.look(seen(time.Second, 2, 1), lab, time.Unix(1001, 0)) // alone: no quorum
	l.look(seen(2*time.Minute, 3, 1, 2), lab, time.Unix(1120, 0))
	if f := l.only(t, "quorum is back without node 3"); f.Until != 2*time.Minute+lab.HoldOff {
		t.Errorf("hold-off does not begin with the quorum: %+v", f)
	}

	l = newLedger() // just booted
	v := seen(time.Second, 7, 1, 2)
	l.look(v, lab, time.Unix(1001, 0))
	if f := l.only(t, "node 3 was not there"); !f.Guess || l.complete() {
		t.Errorf("%+v, complete %v", f, l.complete())
	}
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 6, Space: []uint32{1, 2}})
	l.only(t, "node 2 speaks of another ring")
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 7, Space: []uint32{2}})
	l.only(t, "node 2 has not seen this host in the lockspace")
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 7, Space: []uint32{1, 2}})
	l.none(t, "node 2 was there all the time")
	if !l.complete() {
		t.Error("and so this host knows all")
	}

	l = newLedger()
	l.look(v, lab, time.Unix(1001, 0))
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 7, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 5000, Promised: true}}})
	if f := l.only(t, "node 2 knows when node 3 vanished"); f.Until != 6*time.Second || f.Guess {
		t.Errorf("%+v", f)
	}
}

// A restart of the daemon loses nothing, and finds what happened meanwhile.
func TestLedgerSurvives(t *testing.T) {
	l := watching()
	l.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	again := func(at time.Duration) *ledger {
		var s Saved
		l.save(&s)
		s.At = at
		n := newLedger()
		n.restore(&s)
		return n
	}
	n := again(2 * time.Second)
	n.look(seen(3*time.Second, 2, 1, 2), lab, time.Unix(1003, 0))
	if f := n.only(t, "after a restart"); f.Until != time.Second+lab.HoldOff {
		t.Errorf("%+v", f)
	}
	n = again(2 * time.Second)
	n.look(seen(10*time.Second, 2, 1, 2), lab, time.Unix(1010, 0))
	if f := n.only(t, "after a long absence"); f.Until != 10*time.Second+lab.HoldOff {
		t.Errorf("%+v", f)
	}
	l = watching()
	n = again(time.Second)
	n.look(seen(2*time.Second, 2, 1, 2), lab, time.Unix(1002, 0))
	if f := n.only(t, "it vanished meanwhile"); f.Node != 3 || !f.Promised {
		t.Errorf("%+v", f)
	}
}

// Who was confirmed dead, came back and was lost again while no guard ran here is not
// dead by that word, here or anywhere else.
func TestConfirmedIsForOneAbsence(t *testing.T) {
	l := watching()
	v := seen(time.Second, 2, 1, 2)
	l.look(v, lab, time.Unix(1001, 0))
	if err := l.confirm(v, 3); err != nil {
		t.Fatal(err)
	}
	l.none(t, "confirmed dead")
	var s Saved
	l.save(&s)
	s.At = v.at
	n := newLedger()
	n.restore(&s)
	n.look(seen(time.Hour, 4, 1, 2), lab, time.Unix(4600, 0))
	if f := n.only(t, "in another ring"); f.Node != 3 || len(n.confirmed) != 0 {
		t.Errorf("%+v, confirmed %v", f, n.confirmed)
	}
}

// Nobody knows who is missing before corosync's configuration is known.
func TestNotEnteredBeforeTheNodesAreKnown(t *testing.T) {
	l := newLedger()
	v := seen(time.Second, 7, 1, 2)
	v.configured = nil
	l.look(v, lab, time.Unix(1001, 0))
	if l.entered || l.complete() {
		t.Error("entered without knowing whom to expect")
	}
	l.look(seen(2*time.Second, 7, 1, 2), lab, time.Unix(1002, 0))
	l.only(t, "node 3 is missing")
}

// A node that had left, and is back when a guard starts here, is heard of by what it
// said before. That it is leaving is not true any more.
func TestLeftAndBack(t *testing.T) {
	l := watching()
	l.hear(seen(time.Second, 1, 1, 2, 3), 3, message{Leaving: true, Ring: 1, Space: []uint32{1, 2, 3}})
	l.look(seen(2*time.Second, 2, 1, 2), lab, time.Unix(1002, 0))
	l.none(t, "it has left")
	var s Saved
	l.save(&s)
	s.At = 2 * time.Second
	n := newLedger()
	n.restore(&s)
	n.look(seen(time.Minute, 3, 1, 2, 3), lab, time.Unix(1060, 0))
	n.look(seen(time.Minute+time.Second, 4, 1, 2), lab, time.Unix(1061, 0))
	if f := n.only(t, "lost, and its guard not heard since it was back"); f.Promised {
		t.Errorf("%+v", f)
	}
}

// TestToldOfManyNodes: one that tells of ever other nodes takes no more than its room, neither from what this host
// sees itself nor from its messages.
func TestToldOfManyNodes(t *testing.T) {
	l, v := watching(), seen(time.Second, 1, 1, 2, 3)
	l.look(v, lab, time.Unix(1001, 0))
	for round := range uint32(20) {
		m := message{Space: []uint32{1, 2, 3}, Ring: v.ring.ID.Seq}
		for i := range uint32(maxFacts) {
			m.Facts = append(m.Facts, told{Node: 1<<31 + round*maxFacts + i, Left: maxLeft, Needs: maxLeft})
		}
		l.hear(v, 2, m)
	}
	if n := len(l.facts); n != maxHeard {
		t.Errorf("%d nodes are noted", n)
	}
	l.look(seen(2*time.Second, 2, 1, 2), lab, time.Unix(1002, 0))
	if _, ok := l.facts[3]; !ok {
		t.Error("a node that this host has seen vanish is not noted")
	}
}

func FuzzDecode(f *testing.F) {
	b, err := encode(message{Promise: true, Facts: []told{{Node: 3, Left: 1, Promised: true}}, Dead: []uint32{4}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":2,"new":[1]}`))
	f.Add([]byte(`{"v":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		var err error
		testenv.Bounded(t, 1000, len(b), func() { m, err = decode(b) })
		if err != nil {
			return
		}
		if m.Version < 1 || max(len(m.Facts), len(m.Dead), len(m.Space)) > maxFacts || m.Needs < 0 || m.Needs > maxLeft {
			t.Fatalf("out of bounds: %+v", m)
		}
		l, v := watching(), seen(time.Second, 2, 1, 2)
		l.look(v, lab, time.Unix(1001, 0))
		l.hear(v, 2, m)
		for _, f := range l.list() {
			if f.Node == 1 || f.Node == 2 || f.Until > v.at+2*time.Hour {
				t.Fatalf("a message made this host hold off for %+v", f)
			}
		}
		if _, ok := l.facts[3]; !ok && len(m.Dead) == 0 {
			t.Fatal("a message ended the hold-off for a node that it does not call dead")
		}
	})
}
