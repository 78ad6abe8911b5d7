// Package deadline_test proves on real clusters that the daemon refuses within a
// second, and says why, while the cluster cannot grant. It needs the lab, without
// libvirt; see CONTRIBUTING.md.
package deadline_test

import (
	"context"
	"regexp"
	"slices"
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
	ctx context.Context
}

func start(t *testing.T, cfg lab.Config) *suite {
	t.Helper()
	lab.Need(t, cfg)
	cfg.VMLockd = lab.Build(t, "github.com/vmlockd/vmlockd/cmd/vmlockd")
	cfg.VMLockdConfig = func(int) string { return config }
	cfg.Binaries = map[string]string{"asker": lab.Build(t, "github.com/vmlockd/vmlockd/tests/deadline/asker")}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	s := &suite{lab.ForTest(t, cfg), ctx}
	for _, n := range s.Nodes() {
		s.waitMembers(t, n.ID(), 3)
	}
	return s
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
		t.Fatal(err)
	}
}

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

// logged waits until the node's lock daemon has logged a text.
func (s *suite) logged(t *testing.T, node int, text string) {
	t.Helper()
	s.waitFor(t, "log "+text, func() bool {
		log, err := s.Node(node).Log(s.ctx, lab.ServiceLock)
		return err == nil && strings.Contains(string(log), text)
	})
}

// reboot switches nodes off and on, and waits until they use the lockspace.
func (s *suite) reboot(t *testing.T, ids ...int) {
	t.Helper()
	for _, id := range ids {
		s.do(t, "switch off "+s.Node(id).Name(), s.Node(id).PowerCut)
	}
	var rest []int
	for _, n := range s.Nodes() {
		if !slices.Contains(ids, n.ID()) {
			rest = append(rest, n.ID())
		}
	}
	for _, id := range rest { // see lab.Node.Boot
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
	for _, id := range ids {
		s.do(t, "switch on "+s.Node(id).Name(), s.Node(id).Boot)
	}
	s.do(t, "wait for quorum", s.WaitQuorate)
	for _, n := range s.Nodes() {
		s.waitMembers(t, n.ID(), 3)
	}
}

func TestCluster(t *testing.T) {
	s := start(t, lab.Config{})
	t.Run("Quorum", s.quorum)
	if !t.Failed() {
		t.Run("DaemonKilled", s.daemonKilled)
	}
	if !t.Failed() {
		t.Run("Frozen", s.frozen)
	}
}

// quorum: two of three nodes are cut off.
func (s *suite) quorum(t *testing.T) {
	watch := s.asker(t, 1, "watch", "watch", lockspace)
	holder := s.asker(t, 1, "holder", "hold", "mine", "holder")
	holder.says(t, "held")
	every := s.asker(t, 1, "every", "every", "500ms", "disk")
	every.wait(t, 4, time.Time{}, "granted")
	s.do(t, "cut node 2", s.Node(2).Cut)
	s.do(t, "cut node 3", s.Node(3).Cut)
	stopped := watch.wait(t, 1, time.Time{}, "stopped").begun
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
	s.logged(t, 1, "the DLM lockspace is stopped")

	// All three were alone, so none is in the right; nodes that are rebooted are.
	s.do(t, "heal node 2", s.Node(2).Heal)
	s.do(t, "heal node 3", s.Node(3).Heal)
	met := s.met(t, every, stopped)
	s.reboot(t, 2, 3)
	every.wait(t, 4, met, "granted")
	s.serves(t, 2)
	s.asker(t, 2, "heir", "hold", "mine")
	s.waitFor(t, "the released lock on node 2", func() bool {
		log, err := s.Node(2).Log(s.ctx, "heir")
		return err == nil && strings.Contains(string(log), "held")
	})
	s.logged(t, 1, "lockspace runs again")
	for _, p := range []*asker{every, watch} {
		s.do(t, "end "+p.Name(), func(ctx context.Context) error { return p.Signal(ctx, syscall.SIGTERM) })
	}
}

// met waits until the three nodes, each of which was alone, have met again, and
// returns when. If all three meet at once none is in the right and all wait, which
// node 1 must say. If corosync on node 1 meets the others one after the other,
// its dlm_controld ends corosync on each of them: of two that were alone the one
// with the lower number is in the right (dlm_controld 4.2, daemon_cpg.c).
func (s *suite) met(t *testing.T, every *asker, stopped time.Time) time.Time {
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
			log, err := s.Node(id).Log(s.ctx, lab.ServiceLock)
			if err != nil || !strings.Contains(string(log), "this host must be rebooted") {
				return false
			}
		}
		s.step(t, "node 1 has ended corosync on nodes 2 and 3")
		when = time.Now()
		return true
	})
	return when
}

// daemonKilled: dlm_controld dies while this host has a lock.
func (s *suite) daemonKilled(t *testing.T) {
	watch := s.asker(t, 1, "watch-killed", "watch", lockspace)
	s.asker(t, 1, "keeper", "hold", "kept")
	every := s.asker(t, 1, "every-killed", "every", "500ms", "disk")
	every.wait(t, 4, time.Time{}, "granted")
	s.do(t, "kill dlm_controld", s.Node(1).Service(lab.ServiceDLM).Kill)
	stopped := watch.wait(t, 1, time.Time{}, "stopped").begun
	every.wait(t, 8, stopped, "dlm_controld is not running: this host can neither get nor give back locks until it is rebooted; locks held here: 1: asker has 'kept' (exclusive)")
	inTime(t, every.answers(t), watch.answers(t), stopped)
	s.logged(t, 1, "this host must be rebooted")
	s.logged(t, 1, "resource=kept")
	s.reboot(t, 1)
}

// thawedSays is all that a thawed node may say once its lockspace is stopped: that it
// is alone, that the cluster changes, that it has met the others, or that it is
// thrown out.
var thawedSays = regexp.MustCompile(`^operation failed: Unable to acquire 'warm-\d+': (` + strings.Join([]string{
	`the cluster has no quorum: 2 of 3 nodes are missing: 1, 2 \(see corosync-quorumtool -s\)`,
	`the membership of the cluster is changing`,
	`the DLM is recovering from a change of the cluster's membership`,
	`hosts of the cluster were separated and have met again without a reboot between: the DLM goes on when all but one side of them are rebooted \(see dlm_tool status\)`,
	`dlm_controld is not running: this host can neither get nor give back locks until it is rebooted(; locks held here: \d+: asker has 'warm-\d+' .*)?`,
}, "|") + `)$`)

// number is what is different in each answer.
var number = regexp.MustCompile(`'warm-\d+'`)

// frozen: a node stands still for longer than the cluster waits for it, and then
// goes on as if nothing had happened.
func (s *suite) frozen(t *testing.T) {
	watch := s.asker(t, 3, "watch-thawed", "watch", lockspace)
	thawed := s.asker(t, 3, "every-thawed", "every", "500ms", "warm")
	thawed.wait(t, 4, time.Time{}, "granted")
	s.do(t, "freeze node 3", s.Node(3).Freeze)
	s.waitMembers(t, 1, 2)
	every := s.asker(t, 1, "every-frozen", "every", "500ms", "cold")
	every.wait(t, 4, time.Time{}, "granted")
	s.do(t, "thaw node 3", s.Node(3).Thaw)
	// It does not know yet. It is stopped when it meets the others, who went on
	// without it.
	stopped := watch.wait(t, 1, time.Time{}, "stopped").begun
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
	watch := s.asker(t, 1, "watch", "watch", lockspace)
	every := s.asker(t, 1, "every", "every", "500ms", "disk")
	every.wait(t, 4, time.Time{}, "granted")
	s.do(t, "switch off node 3", s.Node(3).PowerCut)
	stopped := watch.wait(t, 1, time.Time{}, "stopped").begun
	every.wait(t, 8, stopped, "waiting for fencing of node 3, lost at ")
	inTime(t, every.answers(t), watch.answers(t), stopped)
	s.logged(t, 1, "waiting for fencing of node 3")

	// dlm_controld hangs. It survives that the questions of that time were given up.
	daemon := s.Node(1).Service(lab.ServiceDLM)
	s.do(t, "stop dlm_controld", func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGSTOP) })
	hung := every.wait(t, 8, stopped, "dlm_controld does not answer")
	s.do(t, "continue dlm_controld", func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGCONT) })
	every.wait(t, 4, hung.begun, "waiting for fencing of node 3, lost at ")
	inTime(t, every.answers(t), watch.answers(t), stopped)
}
