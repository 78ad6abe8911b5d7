package guard_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
// stands still.
var mixes = [][]does{
	{killed, standStill, standStill},
	{standStill, killed, killed},
	{killed, standStill, killed},
	{standStill, standStill, killed},
	{killed, killed, standStill},
	{standStill, killed, standStill},
}

// TestDaemonsMixed kills some of the three daemons of a host, and has the others stand still, in every order.
func TestDaemonsMixed(t *testing.T) {
	s := start(t, daemonsSetup)
	for _, order := range orders(lab.ServiceCorosync, lab.ServiceDLM, lab.ServiceLock) {
		for _, mix := range mixes {
			var what []string
			for at, d := range mix {
				what = append(what, order[at]+strings.ReplaceAll(" "+d.text, " ", "_"))
			}
			s.daemons(t, strings.Join(what, ","), order, mix...)
		}
	}
	s.writeFaults(t)
}

// TestMixesDiffer: all ways to mix are there.
func TestMixesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, mix := range mixes {
		seen[fmt.Sprint(mix)] = true
		if mix[0] == mix[1] && mix[1] == mix[2] {
			t.Errorf("%v: the same is done to all", mix)
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d different mixes", len(seen))
	}
}

// daemonsText says what is done to node 3.
func daemonsText(order []string, mix []does) string {
	what := fmt.Sprintf("%s %s on node 3", order[0], mix[0].text)
	for i, name := range order[1:] {
		what += ", then " + name
		if mix[i+1] != mix[0] || mix[1] != mix[2] {
			what += " " + mix[i+1].text
		}
	}
	return what
}

// TestDaemonsHaveRows: each order of each mix has been played (TestEveryFaultHasARow sees only what is written out).
func TestDaemonsHaveRows(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := append([][]does{{killed, killed, killed}, {standStill, standStill, standStill}}, mixes...)
	for _, order := range orders(lab.ServiceCorosync, lab.ServiceDLM, lab.ServiceLock) {
		for _, mix := range all {
			if what := daemonsText(order, mix); !strings.Contains(string(page), "\n| "+what+" | ") {
				t.Errorf("%q has no row in docs/faults.md: VMLOCKD_FAULTS has TestDaemonsMixed write it", what)
			}
		}
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
	r.fault(daemonsText(order, mix))
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
	forEver := func() bool { return strings.Contains(r.said(1), "its guard had given no promise") }
	if unguarded {
		r.await("node 1 to be told that no time is enough", 2*detection, forEver)
		r.goesOn(3, 10*time.Second)
		r.confirm()
		return
	}
	if slices.Index(order, lab.ServiceLock) < slices.Index(order, lab.ServiceCorosync) && mix[slices.Index(order, lab.ServiceLock)] == killed {
		// In the moment between the two corosync may tell the others of the end of vmlockd. Then they count on nothing, although
		// the writer has been stopped.
		r.await("node 1 to write, or to be told that no time is enough", r.takeOver(), func() bool { return len(r.records(1)) > enough || forEver() })
		if forEver() {
			r.step("the others were told that nobody guards node 3, before they lost it")
			r.confirm()
			return
		}
	}
	r.goesOn(1, r.takeOver())
}
