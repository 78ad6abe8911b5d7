package guard_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// does is what is done to a daemon.
type does struct {
	text   string
	signal syscall.Signal
}

var (
	killed     = does{"is killed", syscall.SIGKILL}
	standStill = does{"stands still", syscall.SIGSTOP}
)

var daemonsSetup = setup{nodes: 3, grace: 2 * time.Second, holdOff: 36 * time.Second, table: "daemons"}

// TestDaemons ends, or has stand still, the three daemons of a host in every order.
func TestDaemons(t *testing.T) {
	s := start(t, daemonsSetup)
	for _, how := range []struct {
		name string
		does
	}{{"Killed", killed}, {"StandStill", standStill}} {
		for _, order := range orders(lab.ServiceCorosync, lab.ServiceDLM, lab.ServiceLock) {
			s.daemons(t, how.name+"/"+strings.Join(order, ","), order, how.does, how.does, how.does)
		}
	}
	s.writeFaults(t)
}

// mixes are what is done to the first, the second and the third daemon of an order: all ways in which one is killed and another one
// stands still. Each order has the one at its own place, and the opposite of it: so whatever comes at which place, both are done to it.
// All 36 would take more than half an hour.
var mixes = [][]does{
	{killed, standStill, standStill},
	{standStill, killed, killed},
	{killed, standStill, killed},
	{standStill, standStill, killed},
	{killed, killed, standStill},
	{standStill, killed, standStill},
}

// opposite kills what a mix has stand still, and the other way round.
func opposite(mix []does) (other []does) {
	for _, d := range mix {
		if d == killed {
			other = append(other, standStill)
		} else {
			other = append(other, killed)
		}
	}
	return other
}

// TestDaemonsMixed kills some of the three daemons of a host, and has the others stand still, in every order.
func TestDaemonsMixed(t *testing.T) {
	s := start(t, daemonsSetup)
	for i, order := range orders(lab.ServiceCorosync, lab.ServiceDLM, lab.ServiceLock) {
		s.daemons(t, "One/"+strings.Join(order, ","), order, mixes[i]...)
		s.daemons(t, "Opposite/"+strings.Join(order, ","), order, opposite(mixes[i])...)
	}
	s.writeFaults(t)
}

// TestMixesDiffer: all ways to mix are there, and at each place of an order a daemon is killed once and stands still once.
func TestMixesDiffer(t *testing.T) {
	list := orders(lab.ServiceCorosync, lab.ServiceDLM, lab.ServiceLock)
	if len(list) != len(mixes) {
		t.Fatalf("%d orders and %d mixes", len(list), len(mixes))
	}
	seen, places := map[string]bool{}, map[string]bool{}
	for i, order := range list {
		seen[fmt.Sprint(mixes[i])] = true
		for _, mix := range [][]does{mixes[i], opposite(mixes[i])} {
			if mix[0] == mix[1] && mix[1] == mix[2] {
				t.Errorf("%v: the same is done to all", order)
			}
			for at := range order {
				places[fmt.Sprint(order, at, mix[at].text)] = true
			}
		}
	}
	if len(seen) != 6 || len(places) != 6*3*2 {
		t.Errorf("%d different mixes, and %d things done at a place of an order: %v", len(seen), len(places), places)
	}
}

// daemons plays one case on node 3.
func (s *suite) daemons(t *testing.T, name string, order []string, mix ...does) {
	s.try(t, name, func(t *testing.T) {
		r := s.begin(t)
		t.Cleanup(func() { r.end(theLoser) })
		r.daemonsOf(order, mix)
	})
}

// orders are all orders of some words.
func orders(words ...string) (list [][]string) {
	if len(words) < 2 {
		return [][]string{words}
	}
	for i, first := range words {
		var rest []string
		rest = append(append(rest, words[:i]...), words[i+1:]...)
		for _, more := range orders(rest...) {
			list = append(list, append([]string{first}, more...))
		}
	}
	return list
}

// daemonsOf does to one daemon after the other what the mix says. What is done to vmlockd is done when the writer has been stopped,
// or when the others have noticed that nobody guards this host; before that it is not covered without a watchdog.
func (r *run) daemonsOf(order []string, mix []does) {
	r.contend()
	what := fmt.Sprintf("%s %s on node 3", order[0], mix[0].text)
	for i, name := range order[1:] {
		what += ", then " + name
		if mix[i+1] != mix[0] || mix[1] != mix[2] {
			what += " " + mix[i+1].text
		}
	}
	r.fault(what)
	unguarded := order[0] == lab.ServiceLock
	for i, name := range order {
		p := r.loser().Service(name)
		send := p.SignalGroup
		if name == lab.ServiceLock {
			send = p.Signal // the keeper of its locks is another process
		}
		// It has ended by itself where one has that it depends on.
		if err := send(r.ctx, mix[i].signal); err != nil && !errors.Is(err, lab.ErrState) {
			r.t.Fatal(err)
		}
		r.step("%s of node 3 %s", name, mix[i].text)
		switch {
		case name == lab.ServiceLock && unguarded:
			r.await("the others to know that nobody guards node 3", 30*time.Second, func() bool { return !r.promised(1) && !r.promised(2) })
		case i == 0:
			r.awaitLog("guard-stopped", detection)
		}
	}
	if unguarded {
		r.await("node 1 to be told that no time is enough", 2*detection, func() bool { return strings.Contains(r.said(1), "its guard had given no promise") })
		r.goesOn(3, 10*time.Second)
		r.confirm()
		return
	}
	r.goesOn(1, r.takeOver())
}
