package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestStockVirtlockdAllowsDoubleStart is why vmlockd exists: the same test bed and
// the same double start, where record locks do not cross from host to host, with
// the lock daemon that libvirt ships. If this fails, TestLibvirt proves nothing any
// more.
func TestStockVirtlockdAllowsDoubleStart(t *testing.T) {
	s := start(t, lab.Config{Nodes: 2, LockDaemon: lab.Virtlockd, NoCluster: true})
	_, second := doubleStart(t, s)
	if !second.OK() {
		t.Fatalf("virtlockd does not allow the second start: %v", second)
	}
	s.state(t, 2, "second", "running")
}

// TestReplacesVirtlockd: two hosts run virtlockd, and one disk on both, which it allows. vmlockd takes its
// place on one after the other while their virtual machines run: the first has the disk from then on, the second
// is told of it, and nothing is stopped.
func TestReplacesVirtlockd(t *testing.T) {
	s := start(t, lab.Config{Nodes: 2, LockDaemon: lab.Virtlockd})
	for _, n := range s.Nodes() {
		if err := n.WaitMembers(s.ctx, 1, 2); err != nil {
			t.Fatal(err)
		}
	}
	disk, second := doubleStart(t, s)
	if !second.OK() {
		t.Fatalf("virtlockd does not allow the second start: %v", second)
	}
	shared := s.disk(t, "shared.img", lab.CountingGuest())
	for _, n := range []int{1, 2} {
		s.create(t, n, vm(fmt.Sprintf("shares%d", n), lab.Disk{Path: shared, Access: lab.Shareable}))
	}
	program, err := os.ReadFile(binaries.vmlockd)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.Shared(), "vmlockd"), program, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.replaceVirtlockd(t, 1)
	s.state(t, 1, "first", "running")
	if log := s.lockLog(t, 1); strings.Contains(log, "virtlockd-conflict") {
		t.Errorf("node 1 met a conflict:\n%s", log)
	}

	s.replaceVirtlockd(t, 2)
	s.state(t, 2, "second", "running")
	log := s.lockLog(t, 2)
	if n := strings.Count(log, "virtlockd-conflict"); n != 1 || !strings.Contains(log, "owner=second") {
		t.Errorf("node 2 has told of %d conflicts, of which one has to be about the virtual machine second:\n%s", n, log)
	}

	s.step(t, "both are in vmlockd's hands")
	// While the second one runs nobody on its host gets the disk, also not when the first one has left.
	res, err := s.Node(2).Create(s.ctx, vm("fourth", lab.Disk{Path: disk}))
	if err != nil || res.OK() || !strings.Contains(res.Stderr, "end that virtual machine") || !strings.Contains(res.Stderr, "node 1") {
		t.Fatalf("fourth on node 2: %v, %v", res, err)
	}
	s.createRefused(t, 1, vm("fifth", lab.Disk{Path: shared}), shared)
	s.destroy(t, 2, "second")
	s.names(t, s.createRefused(t, 2, vm("fourth", lab.Disk{Path: disk}), disk), 1, "first")
	s.destroy(t, 1, "first")
	s.create(t, 2, vm("fourth", lab.Disk{Path: disk}))
	s.destroy(t, 1, "shares1")
	s.destroy(t, 2, "shares2")
	s.create(t, 1, vm("fifth", lab.Disk{Path: shared}))
}

// replaceVirtlockd has a virtlockd that runs become vmlockd, as docs/install.md says.
func (s *suite) replaceVirtlockd(t *testing.T, node int) {
	t.Helper()
	n := s.Node(node)
	before, err := n.Service(lab.ServiceLock).Status(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e
printf 'backend = "cluster"\nguard.mode = "%s"\nlog.format = "text"\nlog.level = "info"\n' >/etc/vmlockd.toml
mv /usr/sbin/virtlockd /usr/sbin/virtlockd.distrib
printf '#!/bin/sh\nexec %s/vmlockd --config /etc/vmlockd.toml\n' >/usr/sbin/virtlockd
chmod 755 /usr/sbin/virtlockd
`, lab.GuardMode(), lab.SharedDir)
	s.must(t, fmt.Sprintf("put vmlockd in the place of virtlockd on node %d", node), func() (lab.Result, error) { return n.Shell(s.ctx, script) })
	if err := n.Service(lab.ServiceLock).Signal(s.ctx, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	err = lab.WaitFor(ctx, "vmlockd in virtlockd's place", func(context.Context) (bool, error) {
		return strings.Contains(s.lockLog(t, node), "virtlockd-replaced"), nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.lockLog(t, node))
	}
	after, err := n.Service(lab.ServiceLock).Status(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if before.PID != after.PID {
		t.Fatalf("process %d is now %d:\n%s", before.PID, after.PID, s.lockLog(t, node))
	}
}

func (s *suite) lockLog(t *testing.T, node int) string {
	t.Helper()
	log, err := s.Node(node).Log(s.ctx, lab.ServiceLock)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}
