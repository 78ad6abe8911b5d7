// Package deadline_test proves on real clusters that the daemon refuses within a
// second, and says why, while the cluster cannot grant. It needs the lab, without
// libvirt; see CONTRIBUTING.md.
package deadline_test

import (
	"context"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// lockspace is the daemon's default DLM lockspace.
const lockspace = "vmlockd"

// config has no guard: a node without quorum must refuse in time by itself, and its
// locks stay, where the guard would end who has them. That is in tests/guard.
const config = "backend = \"cluster\"\nguard.mode = \"off\"\n"

// suite is a lab of three nodes with vmlockd in each.
type suite struct {
	*lab.Lab
	ctx     context.Context
	again   int  // how often the case has been played already
	playing bool // in a case that can be played again
	refused bool // see skipIfRefused
}

func start(t *testing.T, cfg lab.Config) *suite {
	t.Helper()
	lab.Need(t, cfg)
	cfg.VMLockd = lab.Build(t, "github.com/vmlockd/vmlockd/cmd/vmlockd")
	cfg.VMLockdConfig = func(int) string { return config }
	cfg.Binaries = map[string]string{"asker": lab.Build(t, "github.com/vmlockd/vmlockd/tests/deadline/asker")}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	t.Cleanup(cancel)
	s := &suite{Lab: lab.ForTest(t, cfg), ctx: ctx}
	s.serve(t, nil)
	return s
}

// serve waits until all three nodes, which have been booted since then, use the lockspace and serve.
func (s *suite) serve(t *testing.T, since lengths) {
	t.Helper()
	for _, n := range s.Nodes() {
		s.waitMembers(t, n.ID(), 3)
		s.logged(t, since, n.ID(), "vmlockd is ready") // it joins before it has its socket
	}
}

func (s *suite) step(t *testing.T, text string) {
	t.Helper()
	t.Logf("%s %s", time.Now().UTC().Format("15:04:05.000"), text)
}

func (s *suite) do(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	s.step(t, what)
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (s *suite) waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	if err := lab.WaitFor(ctx, what, func(context.Context) (bool, error) { return ok(), nil }); err != nil {
		s.skipIfRefused(t, err)
		t.Fatal(err)
	}
}

// TestCluster has one lab for all that goes wrong with a cluster without fencing. Each
// case leaves three nodes that use the lockspace, and ends what it has started.
func TestCluster(t *testing.T) {
	s := start(t, lab.Config{})
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Quorum", s.quorum},
		{"RestartWithoutQuorum", s.restartsWithoutQuorum},
		{"DaemonKilled", s.daemonKilled},
		{"Frozen", s.frozen},
	} {
		if !s.try(t, c.name, c.run) {
			return // nobody knows how the nodes are
		}
	}
}

// quorum: two of three nodes are cut off.
func (s *suite) quorum(t *testing.T) {
	watch := s.asker(t, 1, "watch", "watch", lockspace)
	holder := s.asker(t, 1, "holder", "hold", "mine", "holder")
	holder.says(t, "has the lock")
	every := s.asker(t, 1, "every", "every", "500ms", "disk")
	// It may have been stopped when watching began, for the nodes that joined last.
	served := every.wait(t, 4, time.Time{}, "granted").begun
	// A node reads a page of the program from the machine's disk when it comes to it for the first time, beside all
	// else that runs there. The first answer with metrics took 1.1 s once, beside another lab, and is not what is measured.
	if _, err := s.get(1, "/metrics"); err != nil {
		t.Error(err)
	}
	before := s.logLengths(t)
	s.do(t, "cut node 2", s.Node(2).Cut)
	s.do(t, "cut node 3", s.Node(3).Cut)
	stopped := watch.wait(t, 1, served, "stopped").begun
	s.step(t, "the lockspace is stopped")
	every.wait(t, 8, stopped, "the cluster has no quorum: 2 of 3 nodes are missing: 2, 3")
	s.operatorsAreAnswered(t, watch)

	s.do(t, "release", func(ctx context.Context) error { return holder.Signal(ctx, syscall.SIGTERM) })
	release := holder.wait(t, 1, stopped, "given back as soon as possible")
	inTime(t, []answer{release}, watch.answers(t), stopped)
	inTime(t, every.answers(t), watch.answers(t), stopped)
	for _, a := range every.answers(t) {
		if a.begun.After(stopped) && a.text == "granted" {
			t.Error("granted while the lockspace was stopped")
		}
	}
	s.logged(t, before, 1, "the DLM lockspace is stopped")

	// All three were alone, so none is in the right; nodes that are rebooted are.
	s.do(t, "heal node 2", s.Node(2).Heal)
	s.do(t, "heal node 3", s.Node(3).Heal)
	met := s.met(t, every, stopped, before)
	s.reboot(t, 2, 3)
	every.wait(t, 4, met, "granted")
	s.serves(t, 2, "serves")
	heir := s.asker(t, 2, "heir", "hold", "mine")
	heir.says(t, "has the lock")
	s.logged(t, before, 1, "lockspace runs again")
	every.end(t)
	watch.end(t)
	heir.end(t)
}

// daemonKilled: dlm_controld dies while this host has a lock. The reboot that this
// host needs is at the end of ToldTwiceToStop.
func (s *suite) daemonKilled(t *testing.T) {
	before := s.logLengths(t)
	watch := s.asker(t, 1, "watch-killed", "watch", lockspace)
	s.asker(t, 1, "keeper", "hold", "kept")
	every := s.asker(t, 1, "every-killed", "every", "500ms", "disk")
	served := every.wait(t, 4, time.Time{}, "granted").begun
	s.do(t, "kill dlm_controld", s.Node(1).Service(lab.ServiceDLM).Kill)
	stopped := watch.wait(t, 1, served, "stopped").begun
	every.wait(t, 8, stopped, "dlm_controld is not running: this host can neither get nor give back locks until it is rebooted; locks held here: 1: asker has 'kept' (exclusive)")
	inTime(t, every.answers(t), watch.answers(t), stopped)
	s.logged(t, before, 1, "this host must be rebooted")
	s.logged(t, before, 1, "resource=kept")
	t.Run("ToldTwiceToStop", s.toldTwiceToStop)
}

// thawedSays is all that a thawed node may say once its lockspace is stopped: that it
// is alone, that the cluster changes, that it has met the others, or that it is
// thrown out; and on a busy machine that dlm_controld has not answered yet why.
var thawedSays = regexp.MustCompile(`^operation failed: Unable to acquire 'warm-\d+': (` + strings.Join([]string{
	// Seen once 202 ms after the lockspace was stopped: dlm_controld had heard that there is no quorum, and still had
	// all nodes as members, so that none is missing yet.
	`the cluster has no quorum(: 2 of 3 nodes are missing: 1, 2)? \(see corosync-quorumtool -s\)`,
	`the membership of the cluster is changing`,
	`the DLM is recovering from a change of the cluster's membership`,
	`hosts of the cluster were separated and have met again without a reboot between: the DLM goes on when all but one side of them are rebooted \(see dlm_tool status\)`,
	`dlm_controld does not answer, it hangs or is stopped \(see dlm_tool status\)`,
	`dlm_controld is not running: this host can neither get nor give back locks until it is rebooted(; locks held here: \d+: asker has 'warm-\d+' .*)?`,
}, "|") + `)$`)

// number is what is different in each answer.
var number = regexp.MustCompile(`'warm-\d+'`)

// frozen: a node stands still for longer than the cluster waits for it, and then
// goes on as if nothing had happened.
func (s *suite) frozen(t *testing.T) {
	watch := s.asker(t, 3, "watch-thawed", "watch", lockspace)
	thawed := s.asker(t, 3, "every-thawed", "every", "500ms", "warm")
	served := thawed.wait(t, 4, time.Time{}, "granted").begun
	s.do(t, "freeze node 3", s.Node(3).Freeze)
	s.waitMembers(t, 1, 2)
	every := s.asker(t, 1, "every-frozen", "every", "500ms", "cold")
	every.wait(t, 4, time.Time{}, "granted")
	s.do(t, "thaw node 3", s.Node(3).Thaw)
	// It does not know yet. It is stopped when it meets the others, who went on
	// without it.
	stopped := watch.wait(t, 1, served, "stopped").begun
	thawed.wait(t, 8, stopped, "")
	list := thawed.answers(t)
	inTime(t, list, watch.answers(t), stopped)
	said := ""
	for _, a := range list {
		if !a.begun.After(stopped) {
			continue
		}
		if !thawedSays.MatchString(a.text) {
			t.Errorf("node 3 says, %v after the lockspace was stopped: %s", a.begun.Sub(stopped), a.text)
		}
		if text := number.ReplaceAllString(a.text, "'warm-N'"); text != said {
			said = text
			t.Logf("node 3 says: %s", said)
		}
	}
	// All of them: if corosync on node 3 meets the others before it finds itself
	// alone, node 3 had quorum throughout as they had, and the dlm_controld of each
	// side ends corosync on the other (daemon_cpg.c, receive_protocol).
	s.reboot(t, 1, 2, 3)
	s.asker(t, 3, "every-back", "every", "500ms", "back").wait(t, 4, time.Time{}, "granted")
}

// TestFencing: a node is lost and the fence agent never comes to an end.
func TestFencing(t *testing.T) {
	s := start(t, lab.Config{
		Fencing:     lab.ScriptFencing,
		FenceScript: "#!/bin/sh\nexec sleep 100000\n",
	})
	before := s.logLengths(t)
	watch := s.asker(t, 1, "watch", "watch", lockspace)
	every := s.asker(t, 1, "every", "every", "500ms", "disk")
	served := every.wait(t, 4, time.Time{}, "granted").begun
	s.do(t, "switch off node 3", s.Node(3).PowerCut)
	stopped := watch.wait(t, 1, served, "stopped").begun
	every.wait(t, 8, stopped, "waiting for fencing of node 3, lost at ")
	inTime(t, every.answers(t), watch.answers(t), stopped)
	s.logged(t, before, 1, "waiting for fencing of node 3")

	// dlm_controld hangs. It survives that the questions of that time were given up.
	daemon := s.Node(1).Service(lab.ServiceDLM)
	s.do(t, "stop dlm_controld", func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGSTOP) })
	hung := every.wait(t, 8, stopped, "dlm_controld does not answer")
	s.do(t, "continue dlm_controld", func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGCONT) })
	every.wait(t, 4, hung.begun, "waiting for fencing of node 3, lost at ")
	inTime(t, every.answers(t), watch.answers(t), stopped)
}
