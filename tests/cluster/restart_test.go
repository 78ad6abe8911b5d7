package cluster_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// daemonKilled is about a daemon that is killed while its locks are in use.
func daemonKilled(t *testing.T, s *suite) {
	path := s.disk(t, "killed.img", lab.CountingGuest())
	s.create(t, 1, vm("survivor", lab.Disk{Path: path}))
	daemon := s.Node(1).Service(lab.ServiceLock)
	s.waitNamed(t, 1)
	if err := daemon.Kill(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.step(t, "vmlockd on node 1 is killed")
	// Nobody on node 1 answers: this is what the lock itself says.
	s.refusedNaming(t, 2, vm("thief", lab.Disk{Path: path}), path, 1, "survivor")
	counts(t, s, "killed.img")
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.waitServing(t, 1)
	s.refusedNaming(t, 2, vm("thief", lab.Disk{Path: path}), path, 1, "survivor")
	s.createRefused(t, 1, vm("thief", lab.Disk{Path: path}), path)
	s.state(t, 1, "survivor", "running")
	s.destroy(t, 1, "survivor")
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.waitFree(t, ctx, 2, path)
}

// waitNamed waits until all locks of a node say whose they are, which is a while after they were granted.
func (s *suite) waitNamed(t *testing.T, node int) {
	t.Helper()
	said := ""
	s.waitFor(t, "all locks of the node to name their holders", func() bool {
		res, err := s.Node(node).Shell(s.ctx, "curl -sf --unix-socket /run/vmlockd/control.sock http://vmlockd/metrics | grep ^vmlockd_owner_records_pending")
		if err != nil {
			t.Fatal(err)
		}
		said = res.String()
		return strings.TrimSpace(res.Stdout) == "vmlockd_owner_records_pending 0"
	}, func() string { return said })
}

// ownerEndsMeanwhile is about an owner that ends while no daemon runs.
func ownerEndsMeanwhile(t *testing.T, s *suite) {
	path := s.disk(t, "meanwhile.img", lab.IdleGuest())
	s.create(t, 1, vm("mayfly", lab.Disk{Path: path}))
	daemon := s.Node(1).Service(lab.ServiceLock)
	if err := daemon.Kill(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.destroy(t, 1, "mayfly")
	s.wantHeld(t, 2, path) // nobody is there to release it, and nobody else may
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.waitFree(t, ctx, 2, path)
}

// stoppedAndStarted is about a daemon that is stopped in order.
func stoppedAndStarted(t *testing.T, s *suite) {
	path := s.disk(t, "stopped.img", lab.IdleGuest())
	s.create(t, 1, vm("patient", lab.Disk{Path: path}))
	daemon := s.Node(1).Service(lab.ServiceLock)
	if err := daemon.Stop(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.wantHeld(t, 2, path)
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.waitServing(t, 1)
	s.wantHeld(t, 1, path)
	log, err := s.Node(1).Log(s.ctx, lab.ServiceLock)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "stopping while locks are held") {
		t.Error("the log does not say that locks stay held")
	}
}

// stoppedWithoutLocks is about a daemon that leaves nothing behind, so that the
// cluster's software on its host can be stopped.
func stoppedWithoutLocks(t *testing.T, s *suite) {
	path := s.disk(t, "elsewhere.img", lab.IdleGuest())
	s.create(t, 1, vm("elsewhere", lab.Disk{Path: path}))
	daemon := s.Node(3).Service(lab.ServiceLock)
	lockspaces := func() string {
		res, err := s.Node(3).MustSucceed(s.ctx, "dlm_tool", "ls")
		if err != nil {
			t.Fatal(err)
		}
		return res.Stdout
	}
	if got := lockspaces(); !strings.Contains(got, "vmlockd") {
		t.Fatalf("node 3 is in no lockspace while vmlockd runs: %q", got)
	}
	if err := daemon.Stop(s.ctx); err != nil {
		t.Fatal(err)
	}
	if got := lockspaces(); strings.Contains(got, "vmlockd") {
		t.Errorf("node 3 is still in the lockspace: %q", got)
	}
	s.wantHeld(t, 2, path)
	if err := daemon.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.waitServing(t, 3)
	s.wantHeld(t, 3, path)
}

// upgradeDuringMigration executes the daemons again, on both sides, while a
// virtual machine moves: at least once on each while its memory is being copied, and
// then until it has moved. The migration does not end before it is allowed to, unless QEMU looks
// for what the guest has written when that had no processor for a while: then another one is begun.
func upgradeDuringMigration(t *testing.T, s *suite) {
	for i := range 3 {
		if upgradedDuringMigration(t, s, fmt.Sprintf("upgrade%d.img", i+1)) {
			return
		}
	}
	t.Fatal("each of the migrations had ended before both daemons were executed again")
}

func upgradedDuringMigration(t *testing.T, s *suite, image string) bool {
	path := s.disk(t, image, busyGuest())
	s.create(t, 1, vm("traveller", lab.Disk{Path: path}))
	s.waitBusy(t, image)
	migrated := startMigration(t, s, "traveller")
	var before [2]int
	for i := range before {
		before[i] = s.restarted(t, i+1)
	}
	ctx, stop := context.WithCancel(s.ctx)
	done := make(chan int, 2)
	for _, n := range []int{1, 2} {
		go func() {
			signals := 0
			defer func() { done <- signals }()
			// Without a pause the nodes would do little else, and the migration takes minutes.
			for tick := time.NewTicker(8 * time.Second); ctx.Err() == nil; {
				if s.Node(n).Service(lab.ServiceLock).Signal(ctx, syscall.SIGUSR1) == nil {
					signals++
				}
				// The answer comes from the new program or from the old one; in either case some time has passed.
				_, _ = s.Node(n).Exec(ctx, "probe", "try", "/nobody/has/this")
				select {
				case <-tick.C:
				case <-ctx.Done():
					tick.Stop()
				}
			}
		}()
	}
	defer stop()
	s.endsWithTest(t, 2, "traveller")
	patience, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	err := lab.WaitFor(patience, "a restart in place on both nodes during the migration", func(context.Context) (bool, error) {
		return s.restarted(t, 1) > before[0] && s.restarted(t, 2) > before[1], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.step(t, "both daemons were executed again")
	during := true
	var o outcome
	select {
	case o = <-migrated:
		during = false
	default:
		for _, more := range [][]string{{"migrate-setmaxdowntime", "traveller", "10000"}, {"migrate-setspeed", "traveller", "1000"}} {
			if res, err := s.Node(1).Virsh(s.ctx, more...); err != nil || !res.OK() {
				s.step(t, "%v: it has ended just now? %v, %v", more, res, err)
			}
		}
		o = <-migrated
	}
	if o.err != nil || !o.res.OK() {
		t.Fatalf("migrate from node 1 to 2: %v, %v", o.res, o.err)
	}
	stop()
	s.step(t, "%d and %d restarts in place meanwhile", <-done, <-done)
	s.waitServing(t, 1)
	s.waitServing(t, 2)
	s.state(t, 2, "traveller", "running")
	s.state(t, 1, "traveller", "")
	s.createRefused(t, 1, vm("thief", lab.Disk{Path: path}), path)
	s.destroy(t, 2, "traveller")
	s.wantFree(t, 1, path)
	return during
}

// restarted is how often the log of a node's daemon says that it was restarted in place.
func (s *suite) restarted(t *testing.T, node int) (n int) {
	t.Helper()
	return s.logged(t, node, "vmlockd is ready", "restarted=true")
}

// logged is how many lines of the log of a node's daemon have all these parts.
func (s *suite) logged(t *testing.T, node int, parts ...string) (n int) {
	t.Helper()
	log, err := s.Node(node).Log(s.ctx, lab.ServiceLock)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			n++
		}
	}
	return n
}

// waitServing waits until a node's daemon answers, and grants.
func (s *suite) waitServing(t *testing.T, node int) {
	t.Helper()
	s.waitServingFor(t, node, time.Minute)
}

func (s *suite) waitServingFor(t *testing.T, node int, most time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, most)
	defer cancel()
	err := lab.WaitFor(ctx, "vmlockd to answer", func(ctx context.Context) (bool, error) {
		res, err := s.Node(node).Exec(ctx, "probe", "try", "/nobody/has/this")
		return res.OK(), err
	})
	if err != nil {
		t.Fatal(err)
	}
}
