package deadline_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// restart is a restart of one node's daemon while the lockspace is stopped.
type restart struct {
	prefix   string // of all names of the case
	node     int
	others   [2]int
	underWay bool // requests are in the kernel when the daemon ends
	// lose takes the others away from the node, and comeBack brings them back.
	lose     func(*testing.T)
	comeBack func(t *testing.T, other *asker, served time.Time, before lengths)
	// end ends the daemon. If that takes its process to end, again undoes lose for another try, as a write that
	// hangs in the kernel keeps a process.
	end   func(t *testing.T, watch *asker)
	again func(t *testing.T)
}

// restartsWithoutQuorum: the daemon is killed and started while the lockspace is
// stopped. The kernel keeps the device of the one that was killed open until the
// lockspace runs again, and until then nobody can know which locks this host has.
// It serves, refuses with the cluster's reason, and has its locks when that is over.
func (s *suite) restartsWithoutQuorum(t *testing.T) {
	r := restart{
		node: 1, others: [2]int{2, 3},
		lose: func(t *testing.T) {
			s.do(t, "cut node 2", s.Node(2).Cut)
			s.do(t, "cut node 3", s.Node(3).Cut)
		},
		comeBack: func(t *testing.T, _ *asker, _ time.Time, _ lengths) { s.rejoin(t, 2, 3) },
		end: func(t *testing.T, _ *asker) {
			s.do(t, "kill vmlockd on node 1", s.Node(1).Service(lab.ServiceLock).Kill)
		},
	}
	r.again = func(t *testing.T) { s.rejoin(t, 2, 3) }
	r.prefix = "idle"
	if !t.Run("NothingUnderWay", func(t *testing.T) { s.restartWithoutQuorum(t, r) }) || s.refused {
		return
	}
	r.prefix, r.underWay = "busy", true
	t.Run("UnderWay", func(t *testing.T) { s.restartWithoutQuorum(t, r) })
}

func (s *suite) restartWithoutQuorum(t *testing.T, r restart) {
	node, next := s.Node(r.node), r.others[0]
	named := func(what string) string { return r.prefix + "-" + what }
	mine, disk, free := named("mine"), named("disk"), named("free")
	noQuorum := fmt.Sprintf("the cluster has no quorum: 2 of 3 nodes are missing: %d, %d", r.others[0], r.others[1])

	s.nothingUnderWay(t, r.node)
	before := s.logLengths(t)
	watch := s.asker(t, r.node, named("watch"), "watch", lockspace)
	holder := s.asker(t, r.node, named("holder"), "hold", mine)
	holder.says(t, "has the lock")
	every := s.asker(t, r.node, named("every"), "every", "500ms", disk)
	every.wait(t, 4, time.Time{}, "granted")
	if !r.underWay {
		every.end(t)
		s.nothingUnderWay(t, r.node)
	}
	var stopped time.Time
	for try := 1; ; try++ {
		begin := time.Now()
		r.lose(t)
		stopped = watch.wait(t, 1, begin, "stopped").begun
		if !r.underWay {
			break
		}
		every.wait(t, 2, stopped, "the cluster has no quorum")
		if s.requestsInKernel(t, r.node); r.again == nil || !s.writeHangs(t, r.node) {
			break
		}
		// The lockspace was stopped in the moment of a write, before vmlockd could know.
		if try == 3 {
			t.Fatal("three times a write was under way when the lockspace was stopped, and hangs")
		}
		s.step(t, "a write hangs in the kernel: once more")
		r.again(t)
		s.nothingUnderWay(t, r.node)
		before = s.logLengths(t)
	}

	r.end(t, watch)
	s.do(t, "start vmlockd on "+node.Name(), node.Service(lab.ServiceLock).Start)
	served := time.Now()
	other := s.asker(t, r.node, named("other"), "every", "500ms", free)
	other.wait(t, 4, served, noQuorum)
	s.logged(t, before, r.node, "locks-not-yet")
	for _, got := range other.answers(t) {
		if got.text == "granted" {
			t.Error("granted while the lockspace is stopped")
		}
	}
	var refusals []answer // others are of the time before it served
	for _, got := range other.answers(t) {
		if strings.Contains(got.text, "quorum") {
			refusals = append(refusals, got)
		}
	}
	inTime(t, refusals, watch.answers(t), stopped)
	again := s.asker(t, r.node, named("again"), "hold", mine)
	again.says(t, "the cluster has no quorum")
	again.end(t)

	r.comeBack(t, other, served, before)
	s.logged(t, before, r.node, "locks-restored")
	other.wait(t, 4, served, "granted")
	s.serves(t, next, named("serves"))
	s.areFree(t, next, other, free)
	if r.underWay {
		s.areFree(t, next, every, disk)
	}
	s.asker(t, next, named("thief"), "hold", mine).says(t, "is locked")
	log := s.logSince(t, before, r.node)
	for _, text := range []string{"lock-lost", "could not be taken back"} {
		if strings.Contains(log, text) {
			t.Errorf("the log of %s has %q", node.Name(), text)
		}
	}
	s.do(t, "release", func(ctx context.Context) error { return holder.Signal(ctx, syscall.SIGTERM) })
	s.logged(t, before, r.node, `event=lock-released-gone lockspace="" name=`+mine+" ") // other owners end as well
	heir := s.asker(t, next, named("heir"), "hold", mine)
	heir.says(t, "has the lock")
	heir.end(t)
	watch.end(t)
}

// nothingUnderWay waits until a node's daemon has joined and waits for no answer of the
// kernel: what was asked for earlier is over.
func (s *suite) nothingUnderWay(t *testing.T, node int) {
	t.Helper()
	last := ""
	defer func() {
		t.Helper()
		if t.Failed() {
			t.Logf("node %d said at last: %s", node, last)
		}
	}()
	s.waitFor(t, "nothing to be under way", func() bool {
		body, err := s.get(node, "/v1/status")
		if err != nil {
			last = err.Error()
			return false
		}
		last = string(body)
		var st control.Status
		if err := json.Unmarshal(body, &st); err != nil || st.Cluster == nil {
			t.Fatalf("%v: %s", err, body)
		}
		l := st.Cluster.Lockspace
		notYet := slices.ContainsFunc(st.Warnings, func(w control.Warning) bool { return w.Code == control.WarnNotYet })
		return l.State == control.LockspaceRunning && l.InFlight+l.Undecided == 0 && !notYet
	})
}

// metric is one of a node's daemon.
func (s *suite) metric(t *testing.T, node int, name string) float64 {
	t.Helper()
	body, err := s.get(node, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMetrics(body)
	if err != nil {
		t.Fatal(err)
	}
	return m[name]
}

// writeHangs says whether a write of a node's daemon is in the kernel, and does not return.
func (s *suite) writeHangs(t *testing.T, node int) bool {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); <-tick.C {
		if s.metric(t, node, "vmlockd_kernel_calls_in_flight") == 0 {
			return false
		}
	}
	return true
}

// requestsInKernel waits until a node's daemon has given up requests that the kernel
// has not answered.
func (s *suite) requestsInKernel(t *testing.T, node int) {
	t.Helper()
	s.waitFor(t, "requests without an answer of the kernel", func() bool {
		return s.metric(t, node, "vmlockd_kernel_calls_unsettled") > 0
	})
}
