package cluster_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// What bounds the take-over after a power cut, see corosync.conf(5): the token
// timeout of the lab (5 s) with the default token_coefficient (650 ms) for the
// third node, and the default consensus timeout, which is 1.2 times that.
const (
	token     = 5*time.Second + 650*time.Millisecond
	consensus = token * 12 / 10
	// afterDetection is what the daemons and the kernel may take once corosync knows.
	afterDetection = 5 * time.Second
	// slowness is for a machine whose cores are busy with the nodes themselves: one
	// more round of consensus, when a node is too late for the first, and 3 s for the
	// commands that look at it, each of which takes 50 ms when nothing else runs.
	slowness = consensus + 3*time.Second
)

func powerCut(t *testing.T, s *suite) {
	path := s.disk(t, "power.img", lab.IdleGuest())
	s.create(t, 1, vm("victim", lab.Disk{Path: path}))
	s.createRefused(t, 2, vm("heir", lab.Disk{Path: path}), path)
	cut := time.Now()
	if err := s.Node(1).PowerCut(s.ctx); err != nil {
		t.Fatal(err)
	}
	// Corosync itself is asked: dlm_controld and all that follows are a part of
	// what has to be over soon.
	detection, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	err := lab.WaitFor(detection, "corosync to notice", func(ctx context.Context) (bool, error) {
		res, err := s.Node(2).Exec(ctx, "corosync-quorumtool", "-s")
		return quorumNodes(res.Stdout) == "2", err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.step(t, "corosync noticed after %v", time.Since(cut).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(s.ctx, afterDetection+holdOff())
	defer cancel()
	s.waitFree(t, ctx, 2, path)
	took := time.Since(cut).Round(time.Millisecond)
	s.step(t, "the disk was free after %v", took)
	if most := token + consensus + afterDetection + slowness + holdOff(); took > most || took < holdOff() {
		t.Errorf("the disk was free %v after the power cut, want at most %v, and at least the hold-off of a guard (%v)", took, most, holdOff())
	}
	s.create(t, 2, vm("heir", lab.Disk{Path: path}))
	s.waitFor(t, "the lost host to be missing in a list", func() bool {
		l, res := s.ls(t, 3)
		return res.Status == statusIncomplete && l.missing(1) && l.ofVM("heir") == 1
	}, func() string { return "" })
}

// quorumNodes is how many members the cluster has, in what corosync-quorumtool -s
// prints: "Nodes:            2".
func quorumNodes(out string) string {
	for line := range strings.Lines(out) {
		if n, ok := strings.CutPrefix(line, "Nodes:"); ok {
			return strings.TrimSpace(n)
		}
	}
	return ""
}
