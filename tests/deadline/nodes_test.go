package deadline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// waitMembers waits until the node is in the lockspace with so many members.
func (s *suite) waitMembers(t *testing.T, node, members int) {
	t.Helper()
	s.waitFor(t, "members of the lockspace", func() bool {
		res, err := s.Node(node).Exec(s.ctx, "dlm_tool", "ls", lockspace)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(res.Stdout) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "members" {
				return len(f) == 1+members && !strings.Contains(res.Stdout, "new change")
			}
		}
		return false
	})
}

// lengths are how long the logs of the nodes' lock daemons were at some time, by node.
type lengths map[int]int

func (s *suite) logLengths(t *testing.T) lengths {
	t.Helper()
	l := lengths{}
	for _, n := range s.Nodes() {
		l[n.ID()] = len(s.logSince(t, nil, n.ID()))
	}
	return l
}

// logSince is what the node's lock daemons have logged since then, or all with nil.
func (s *suite) logSince(t *testing.T, since lengths, node int) string {
	t.Helper()
	log, err := s.Node(node).Log(s.ctx, lab.ServiceLock)
	if err != nil {
		t.Fatal(err)
	}
	return string(log[since[node]:])
}

// logged waits until the node's lock daemon has logged a text since then.
func (s *suite) logged(t *testing.T, since lengths, node int, text string) {
	t.Helper()
	s.waitFor(t, "log "+text, func() bool { return strings.Contains(s.logSince(t, since, node), text) })
}

// atOnce calls f for several nodes at the same time.
func (s *suite) atOnce(ids []int, f func(*lab.Node) error) error {
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { errs[i] = f(s.Node(id)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// switchOff cuts the power of nodes.
func (s *suite) switchOff(t *testing.T, ids ...int) {
	t.Helper()
	s.do(t, fmt.Sprintf("switch off nodes %v", ids), func(ctx context.Context) error {
		return s.atOnce(ids, func(n *lab.Node) error { return n.PowerCut(ctx) })
	})
}

// reboot switches nodes off, unless they are, and on, and waits until all use the
// lockspace, and those serve. They are booted at once, as at the lab's start, but not before all
// others have missed all of them: see lab.Node.Boot.
func (s *suite) reboot(t *testing.T, ids ...int) {
	t.Helper()
	s.switchOff(t, ids...)
	var rest []int
	for _, n := range s.Nodes() {
		if !slices.Contains(ids, n.ID()) {
			rest = append(rest, n.ID())
		}
	}
	for _, id := range rest {
		s.do(t, s.Node(id).Name()+" to miss them", func(ctx context.Context) error {
			if err := s.Node(id).WaitRing(ctx, rest...); err != nil {
				return err
			}
			if 2*len(rest) < len(s.Nodes()) {
				return s.Node(id).WaitInquorate(ctx)
			}
			return s.Node(id).WaitMembers(ctx, rest...)
		})
	}
	before := s.logLengths(t)
	s.do(t, fmt.Sprintf("switch on nodes %v", ids), func(ctx context.Context) error {
		return s.atOnce(ids, func(n *lab.Node) error { return n.Boot(ctx) })
	})
	s.do(t, "wait for quorum", s.WaitQuorate)
	for _, n := range s.Nodes() {
		s.waitMembers(t, n.ID(), 3)
	}
	for _, id := range ids {
		s.logged(t, before, id, "vmlockd is ready") // it joins before it has its socket
	}
}

// rejoin brings nodes back that were cut off: they are off when they are healed, so that nobody meets who was alone (see met).
func (s *suite) rejoin(t *testing.T, ids ...int) {
	t.Helper()
	s.switchOff(t, ids...)
	for _, id := range ids {
		s.do(t, "heal "+s.Node(id).Name(), s.Node(id).Heal)
	}
	s.reboot(t, ids...)
}

// met waits until the three nodes, each of which was alone, have met again, and
// returns when. If all three meet at once none is in the right and all wait, which
// node 1 must say. If corosync on node 1 meets the others one after the other,
// its dlm_controld ends corosync on each of them: of two that were alone the one
// with the lower number is in the right (dlm_controld 4.2, daemon_cpg.c). before
// is logLengths from before they were separated.
func (s *suite) met(t *testing.T, every *asker, stopped time.Time, before lengths) time.Time {
	t.Helper()
	var when time.Time
	s.waitFor(t, "the nodes to meet again, or to be ended by node 1", func() bool {
		for _, a := range every.answers(t) {
			if a.begun.After(stopped) && strings.Contains(a.text, "were separated and have met again") {
				s.step(t, "node 1 says: "+a.text)
				when = a.begun
				return true
			}
		}
		for _, id := range []int{2, 3} {
			if !strings.Contains(s.logSince(t, before, id), "this host must be rebooted") {
				return false
			}
		}
		s.step(t, "node 1 has ended corosync on nodes 2 and 3")
		when = time.Now()
		return true
	})
	return when
}
