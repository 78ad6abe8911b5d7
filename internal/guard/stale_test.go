package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// again is what the next daemon has of a ledger that was noted at that time.
func (l *ledger) again(at time.Duration) *ledger {
	var s Saved
	l.save(&s)
	s.At = at
	n := newLedger()
	n.restore(&s)
	return n
}

// A promise that was withdrawn while nobody here listened counts for nothing, as soon as
// somebody says so who was there: in whatever order that is heard, and however it is known here.
func TestPromiseWithdrawnUnheard(t *testing.T) {
	without := seen(time.Minute, 2, 1, 2)
	says := message{Promise: true, Complete: true, Ring: 2, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 5000}}}

	n := watching().again(time.Second)
	n.look(without, lab, time.Unix(1060, 0))
	if f := n.only(t, "it was lost while no guard was here"); !f.Guess {
		t.Errorf("as if it had been seen: %+v", f)
	}
	n.hear(without, 2, says)
	if f := n.only(t, "node 2 knows better"); f.Promised || f.Guess {
		t.Errorf("%+v", f)
	}
	without.at = time.Hour
	n.goesOn(without)
	n.only(t, "an hour later")

	// The daemon was away for a moment only, and has heard nobody yet.
	n = watching().again(time.Second)
	n.look(seen(time.Second, 1, 1, 2, 3), lab, time.Unix(1001, 0))
	if !n.entered {
		t.Fatal("a moment is too long")
	}
	n.look(seen(2*time.Second, 2, 1, 2), lab, time.Unix(1002, 0))
	if f := n.only(t, "it was lost before it was heard"); !f.Guess {
		t.Errorf("as if its last word were known: %+v", f)
	}

	// What is noted as seen, here and there, takes the worse of both.
	n = watching()
	n.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	n.hear(seen(time.Second, 2, 1, 2), 2, says)
	if f := n.only(t, "both have seen it"); f.Promised || f.Guess || f.Until != time.Second+lab.HoldOff {
		t.Errorf("%+v", f)
	}

	// And what was noted before this host was away is no better.
	n = watching()
	n.look(seen(time.Second, 2, 1, 2), lab, time.Unix(1001, 0))
	n = n.again(2 * time.Second)
	n.look(seen(time.Minute, 4, 1, 2), lab, time.Unix(1060, 0))
	says.Ring = 4
	n.hear(seen(time.Minute, 4, 1, 2), 2, says)
	if f := n.only(t, "noted before"); f.Promised || !f.sure() {
		t.Errorf("%+v", f)
	}
}

// What is not sure takes nothing from what is, so that an old word does not have all
// others wait for ever; and it is told as what it is.
func TestUnsure(t *testing.T) {
	v := seen(time.Second, 2, 1, 2)
	guess := message{Promise: true, Ring: 2, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 90_000, Unsure: true}}}
	l := watching()
	l.look(v, lab, time.Unix(1001, 0))
	l.hear(v, 2, guess)
	if f := l.only(t, "an old word of another guard"); !f.Promised || !f.sure() {
		t.Errorf("%+v", f)
	}

	// Of two that are not sure one may know of a withdrawal.
	l = newLedger()
	l.look(v, lab, time.Unix(1001, 0))
	l.hear(v, 2, guess)
	if f := l.only(t, "two who do not know"); f.Promised || !f.Guess || f.Until != v.at+lab.HoldOff {
		t.Errorf("%+v", f)
	}
	// Who has seen it knows both.
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 2, Space: []uint32{1, 2}, Facts: []told{{Node: 3, Left: 5000, Promised: true}}})
	if f := l.only(t, "and one who does"); !f.Promised || f.Guess || f.Until != v.at+5*time.Second {
		t.Errorf("%+v", f)
	}

	// A word that was taken back meanwhile, noted here as the last one.
	l = watching()
	l.hear(seen(0, 1, 1, 2, 3), 3, message{Ring: 1, Space: []uint32{1, 2, 3}})
	l = l.again(time.Second)
	l.look(seen(time.Minute, 2, 1, 2), lab, time.Unix(1060, 0))
	if f := l.only(t, "its last word that is known"); f.Promised || f.sure() {
		t.Errorf("%+v", f)
	}

	// Noted before this host was away, it is not told as sure either.
	l = watching()
	l.look(v, lab, time.Unix(1001, 0))
	l = l.again(time.Second)
	l.look(seen(time.Minute, 4, 1, 2), lab, time.Unix(1060, 0))
	if f := l.only(t, "noted before"); f.Guess || f.sure() {
		t.Errorf("%+v", f)
	}
}

// A guard that has not found yet who is gone in a new ring does not say that nobody is.
func TestSilenceOfOneWhoHasNotLooked(t *testing.T) {
	v := seen(time.Second, 7, 1, 2)
	l := newLedger()
	l.look(v, lab, time.Unix(1001, 0))
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 7, Space: []uint32{1, 3}})
	l.only(t, "node 3 is a member still, for node 2")
	if len(l.unheard) == 0 {
		t.Error("and node 2 has said all it knows")
	}
}

// A guard that has got into the cluster, and is started again before it has heard the others,
// has to hear them all the same: who vanished before may be in the ring, where nobody guesses
// that it is gone.
func TestStartedAgainBeforeTheOthersWereHeard(t *testing.T) {
	v := seen(time.Second, 7, 1, 2, 3)
	v.space = []uint32{1, 2} // node 3 was lost before this host came, and runs corosync
	l := newLedger()
	l.look(v, lab, time.Unix(1001, 0))
	if len(l.unheard) == 0 {
		t.Fatal("nobody has to be heard")
	}
	l = l.again(v.at)
	v.at += absence / 2
	l.look(v, lab, time.Unix(1002, 0))
	if _, ok := l.unheard[2]; !ok || l.complete() {
		t.Errorf("node 2 was not heard, and %v are to be; all is known: %v", l.unheard, l.complete())
	}
	l.hear(v, 2, message{Promise: true, Complete: true, Ring: 7, Space: []uint32{1}, Facts: []told{{Node: 3}}})
	l.only(t, "node 2 knows")
	// With all heard a moment's absence is none.
	l = l.again(v.at)
	l.look(v, lab, time.Unix(1002, 0))
	if len(l.unheard) != 0 || !l.complete() {
		t.Errorf("%v are to be heard again; all is known: %v", l.unheard, l.complete())
	}
}

// A guard that stood still for longer than a lease, with a node that came and was lost meanwhile, has seen nothing
// of it, and does not take what it knew for all there is.
func TestStoodStill(t *testing.T) {
	for name, tc := range map[string]struct {
		gap  time.Duration
		want bool
	}{"for a lease": {lab.Lease(), true}, "for longer": {lab.Lease() + 1, false}} {
		l, v := watching(), seen(time.Second, 2, 1, 2)
		l.look(v, lab, time.Unix(1001, 0))
		if err := l.confirm(v, 3); err != nil {
			t.Fatal(err)
		}
		l.look(v, lab, time.Unix(1001, 0))
		if !l.complete() {
			t.Fatal("all is known before")
		}
		v = seen(v.at+tc.gap, 4, 1, 2)
		l.look(v, lab, time.Unix(1100, 0))
		if got := l.complete(); got != tc.want {
			t.Errorf("%s: all is known: %v", name, got)
		}
		if tc.want {
			continue
		}
		if f := l.only(t, name); f.Node != 3 || !f.Guess || f.Until != v.at+lab.HoldOff {
			t.Errorf("%s: %+v", name, f)
		}
	}
	// Nor does the next daemon, when this one has noted meanwhile that it is there.
	l := watching()
	s := Saved{At: time.Hour}
	l.look(seen(time.Second, 1, 1, 2, 3), lab, time.Unix(1001, 0))
	if l.save(&s); s.At != time.Second {
		t.Errorf("what was seen last after a second is noted as of %v", s.At)
	}
}

// A guard that goes on has the ring from before for a moment, and what the others had said in it: that is not all that has happened
// since. Node 3, which was confirmed dead, has been there, and is lost, and node 2 has not said so yet.
func TestStoodStillInAnotherRing(t *testing.T) {
	l, v := watching(), seen(time.Second, 2, 1, 2)
	l.look(v, lab, time.Unix(1001, 0))
	if err := l.confirm(v, 3); err != nil {
		t.Fatal(err)
	}
	l.look(v, lab, time.Unix(1001, 0))
	before := message{Promise: true, Complete: true, Ring: 2, Space: []uint32{1, 2}, Dead: []uint32{3}}
	v = seen(v.at+lab.Lease()+time.Second, 2, 1, 2)
	l.look(v, lab, time.Unix(1100, 0))
	l.hear(v, 2, before)
	now := seen(v.at+tick, 6, 1, 2)
	l.look(now, lab, time.Unix(1100, 0))
	if f := l.only(t, "in the ring that is there"); f.Node != 3 || !f.Guess || l.complete() {
		t.Errorf("%+v", f)
	}
	if _, ok := l.unheard[2]; !ok {
		t.Error("node 2 counts as heard in a ring in which it has said nothing")
	}
	before.Ring, before.Dead = 6, nil
	l.hear(now, 2, before)
	l.none(t, "node 2 knows all")
	// A ring that is another one later is one that it has seen change.
	l.look(seen(now.at+2*settleTime, 10, 1, 2), lab, time.Unix(1102, 0))
	l.none(t, "in yet another ring")
}

// What an earlier daemon has noted is not told before this one has looked; and who was
// confirmed dead in another ring may be another one's loss now.
func TestNotedIsNotTold(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(1, 3, none)
		x := w.nodes[0]
		if err := (store{x}).Save(Saved{Entered: true, Ring: 1, Facts: []fact{{Node: 2, Until: time.Hour}}, Confirmed: []uint32{3}}); err != nil {
			t.Fatal(err)
		}
		g, err := New(Options{Timing: lab, Clock: w.now, Store: store{x}, Processes: x})
		if err != nil {
			t.Fatal(err)
		}
		if m := g.lockedMessage(); m.Complete || len(m.Facts)+len(m.Dead)+len(m.Space) != 0 {
			t.Errorf("told before anything was seen: %+v", m)
		}
		g.ledger.look(seen(time.Second, 1, 1, 2), lab, time.Unix(1001, 0))
		if m := g.lockedMessage(); len(m.Dead) != 1 {
			t.Errorf("told after that: %+v", m)
		}
	})
	l, v := watching(), seen(time.Second, 3, 1, 2)
	l.look(v, lab, time.Unix(1001, 0))
	l.hear(v, 2, message{Promise: true, Ring: 2, Dead: []uint32{3}})
	l.only(t, "confirmed in the ring before")
}

// A vmlockd is stopped while its virtual machine runs, and only one of the other two
// guards hears that. Then that host is cut off, and the other guard comes back.
func TestWithdrawnWhileAnotherIsAway(t *testing.T) {
	onBench(t, none, func(b *bench) {
		b.nodes[2].kill()
		b.settle(b.ctx, 3*time.Second)
		x := b.nodes[0]
		if err := x.guard.Withdraw(b.ctx); err != nil {
			b.t.Fatal(err)
		}
		x.kill()
		b.settle(b.ctx, 3*time.Second)
		b.change("node 1 is cut off", func() { b.parts[0] = 1 })
		b.settle(b.ctx, 15*time.Second)
		b.nodes[2].start()
		// A moment would be enough for a grant.
		for end := b.now() + 2*b.timing.HoldOff; b.now() < end; b.settle(b.ctx, 100*time.Millisecond) {
			if err := b.nodes[2].guard.Admit(b.ctx); err == nil {
				b.t.Fatal("node 3 grants what may be in use")
			}
		}
		b.is("nobody guards it", true, false)
		for _, y := range b.nodes[1:] {
			if err := y.guard.Admit(b.ctx); err == nil || !strings.Contains(err.Error(), "no promise") {
				b.t.Errorf("node %d: %v", y.id, err)
			}
		}
	})
}
