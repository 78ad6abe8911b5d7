package deadline_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestRestartWithoutQuorum: the daemon is killed and started while the lockspace is
// stopped. The kernel keeps the device of the one that was killed open until the
// lockspace runs again, and until then nobody can know which locks this host has.
// It serves, refuses with the cluster's reason, and has its locks when that is over.
func TestRestartWithoutQuorum(t *testing.T) {
	for _, underWay := range []bool{false, true} {
		name := "NothingUnderWay"
		if underWay {
			name = "UnderWay"
		}
		t.Run(name, func(t *testing.T) { restartWithoutQuorum(t, start(t, lab.Config{}), underWay) })
	}
}

func restartWithoutQuorum(t *testing.T, s *suite, underWay bool) {
	watch := s.asker(t, 1, "watch", "watch", lockspace)
	holder := s.asker(t, 1, "holder", "hold", "mine")
	holder.says(t, "held")
	every := s.asker(t, 1, "every", "every", "500ms", "disk")
	every.wait(t, 4, time.Time{}, "granted")
	if !underWay {
		s.do(t, "end the requests", func(ctx context.Context) error { return every.Signal(ctx, syscall.SIGTERM) })
	}
	s.do(t, "cut node 2", s.Node(2).Cut)
	s.do(t, "cut node 3", s.Node(3).Cut)
	stopped := watch.wait(t, 1, time.Time{}, "stopped").begun
	if underWay {
		every.wait(t, 2, stopped, "the cluster has no quorum")
	}

	daemon := s.Node(1).Service(lab.ServiceLock)
	s.do(t, "kill vmlockd on node 1", daemon.Kill)
	s.do(t, "start vmlockd on node 1", daemon.Start)
	served := time.Now()
	other := s.asker(t, 1, "other", "every", "500ms", "free")
	other.wait(t, 4, served, "the cluster has no quorum: 2 of 3 nodes are missing: 2, 3")
	s.logged(t, 1, "locks-not-yet")
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
	again := s.asker(t, 1, "again", "hold", "mine")
	again.says(t, "the cluster has no quorum")

	s.do(t, "heal node 2", s.Node(2).Heal)
	s.do(t, "heal node 3", s.Node(3).Heal)
	s.met(t, other, served)
	s.reboot(t, 2, 3)
	s.logged(t, 1, "locks-restored")
	other.wait(t, 4, served, "granted")
	s.serves(t, 2)
	s.areFree(t, 2, other, "free")
	if underWay {
		s.areFree(t, 2, every, "disk")
	}
	s.asker(t, 2, "thief", "hold", "mine").says(t, "is locked")
	log, err := s.Node(1).Log(s.ctx, lab.ServiceLock)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"lock-lost", "could not be taken back"} {
		if strings.Contains(string(log), text) {
			t.Errorf("the log of node 1 has %q", text)
		}
	}
	s.do(t, "release", func(ctx context.Context) error { return holder.Signal(ctx, syscall.SIGTERM) })
	s.logged(t, 1, "lock-released-gone")
	s.asker(t, 2, "heir", "hold", "mine").says(t, "held")
}
