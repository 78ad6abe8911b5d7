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

// TestDaemons ends, or has stand still, the three daemons of a host in every order.
func TestDaemons(t *testing.T) {
	s := start(t, setup{nodes: 3, grace: 2 * time.Second, holdOff: 36 * time.Second, table: "daemons"})
	for _, how := range []struct {
		name, text string
		signal     syscall.Signal
	}{{"Killed", "is killed", syscall.SIGKILL}, {"StandStill", "stands still", syscall.SIGSTOP}} {
		for _, order := range orders(lab.ServiceCorosync, lab.ServiceDLM, lab.ServiceLock) {
			s.try(t, how.name+"/"+strings.Join(order, ","), func(t *testing.T) {
				r := s.begin(t)
				t.Cleanup(func() { r.end(theLoser) })
				r.daemons(order, how.text, how.signal)
			})
		}
	}
	s.writeFaults(t)
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

// daemons sends a signal to one daemon after the other. What is sent to vmlockd comes when the writer has been stopped,
// or when the others have noticed that nobody guards this host; before that it is not covered without a watchdog.
func (r *run) daemons(order []string, text string, signal syscall.Signal) {
	r.contend()
	r.fault(fmt.Sprintf("%s %s on node 3, then %s, then %s", order[0], text, order[1], order[2]))
	unguarded := order[0] == lab.ServiceLock
	for i, name := range order {
		p := r.loser().Service(name)
		send := p.SignalGroup
		if name == lab.ServiceLock {
			send = p.Signal // the keeper of its locks is another process
		}
		// It has ended by itself where one has that it depends on.
		if err := send(r.ctx, signal); err != nil && !errors.Is(err, lab.ErrState) {
			r.t.Fatal(err)
		}
		r.step("%s of node 3 %s", name, text)
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
