package cluster_test

import (
	"context"
	"crypto/sha256"
	"fmt"
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
	space := lab.SharedDir + "/spaces"
	given := s.holdMany(t, 1, space)
	s.replaceVirtlockd(t, 1, config)
	s.state(t, 1, "first", "running")
	if log := s.lockLog(t, 1); strings.Contains(log, "virtlockd-conflict") {
		t.Errorf("node 1 met a conflict:\n%s", log)
	}

	// Node 2 asks once whose the disk is that it does not get, and by then the lock itself has to tell it.
	s.waitNamed(t, 1)
	s.replaceVirtlockd(t, 2, config)
	s.state(t, 2, "second", "running")
	log := s.lockLog(t, 2)
	if n := strings.Count(log, "virtlockd-conflict"); n != 1 || !strings.Contains(log, "owner=second") {
		t.Errorf("node 2 has told of %d conflicts, of which one has to be about the virtual machine second:\n%s", n, log)
	}

	for _, n := range []int{1, 2} {
		s.waitServingFor(t, n, time.Minute+holdOff()) // node 1 has seen node 2 join the lockspace, and recovers from that
	}
	s.step(t, "both are in vmlockd's hands")
	for _, key := range []string{"key0", fmt.Sprint("key", manyLocks-1)} {
		s.wantHeld(t, 2, "-lockspace", space, key)
	}
	given() // by its connection from before
	s.wantFree(t, 2, "-lockspace", space, "-many", "1", "key")
	// While the second one runs nobody on its host gets the disk, also not when the first one has left.
	res, err := s.Node(2).Create(s.ctx, vm("fourth", lab.Disk{Path: disk}))
	if err != nil || res.OK() || !strings.Contains(res.Stderr, "end that virtual machine") || !strings.Contains(res.Stderr, "node 1") {
		t.Fatalf("fourth on node 2: %v, %v", res, err)
	}
	s.createRefused(t, 1, vm("fifth", lab.Disk{Path: shared}), shared)
	s.destroy(t, 2, "second")
	s.refusedNaming(t, 2, vm("fourth", lab.Disk{Path: disk}), disk, 1, "first")
	s.destroy(t, 1, "first")
	s.create(t, 2, vm("fourth", lab.Disk{Path: disk}))
	s.destroy(t, 1, "shares1")
	s.destroy(t, 2, "shares2")
	s.create(t, 1, vm("fifth", lab.Disk{Path: shared}))
}

// TestReplacesVirtlockdLocally: the same with locks on files of the host, which has libvirt's files for locks in a
// directory. What has its locks from virtlockd is stopped and goes on, and ends, at vmlockd.
func TestReplacesVirtlockdLocally(t *testing.T) {
	const space = "/var/lib/libvirt/lockd/files"
	s := start(t, lab.Config{
		Nodes: 1, LockDaemon: lab.Virtlockd, NoCluster: true,
		Files: map[string]string{"/etc/libvirt/qemu-lockd.conf": "auto_disk_leases = 1\nfile_lockspace_dir = \"" + space + "\"\n"},
	})
	// A lock's name is made of the disk's path then (virLockManagerLockDaemonAddResource).
	name := func(path string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(path))) }
	disk, shared := s.disk(t, "web.img", lab.CountingGuest()), s.disk(t, "shared.img", lab.IdleGuest())
	web := vm("web", lab.Disk{Path: disk})
	s.create(t, 1, web)
	for _, who := range []string{"one", "two"} {
		s.create(t, 1, vm(who, lab.Disk{Path: shared, Access: lab.Shareable}))
	}
	given := s.holdMany(t, 1, space)
	s.replaceVirtlockd(t, 1, "backend = \"local\"\n")
	counts(t, s, "web.img")
	for _, who := range []string{"web", "one", "two"} {
		s.state(t, 1, who, "running")
	}
	if log := s.lockLog(t, 1); strings.Contains(log, "virtlockd-conflict") || strings.Contains(log, "lock-lost") {
		t.Errorf("something was lost:\n%s", log)
	}
	// A file that stays locked, and of which nobody knows any more whose it is, would be refused as well.
	if said := s.createRefused(t, 1, vm("other", lab.Disk{Path: disk}), name(disk)); !strings.Contains(said, "by virtual machine web (") {
		t.Errorf("it does not say who has it: %s", said)
	}
	s.createRefused(t, 1, vm("other", lab.Disk{Path: shared}), name(shared))
	s.wantHeld(t, 1, "-lockspace", space, fmt.Sprint("key", manyLocks-1))
	given()
	s.wantFree(t, 1, "-lockspace", space, "-many", "1", "key")

	for _, command := range []string{"suspend", "resume"} {
		s.must(t, command, func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, command, "web") })
	}
	s.createRefused(t, 1, vm("other", lab.Disk{Path: disk}), name(disk))
	s.destroy(t, 1, "web")
	s.create(t, 1, vm("other", lab.Disk{Path: disk}))
	s.destroy(t, 1, "one")
	s.createRefused(t, 1, vm("third", lab.Disk{Path: shared}), name(shared))
}

// manyLocks is how many locks an owner that is no virtual machine has besides, in a lockspace.
const manyLocks = 300

// holdMany has virtlockd grant them on a node. given has them given back, by the connection by which they were granted.
func (s *suite) holdMany(t *testing.T, node int, space string) (given func()) {
	t.Helper()
	holds, err := s.Node(node).Start(s.ctx, "holds", "probe", "-lockspace", space, "-many", fmt.Sprint(manyLocks), "hold", "key")
	if err != nil {
		t.Fatal(err)
	}
	says := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		defer cancel()
		var log []byte
		err := lab.WaitFor(ctx, what, func(ctx context.Context) (ok bool, err error) {
			log, err = holds.Log(ctx)
			return strings.HasSuffix(string(log), what+"\n"), err
		})
		if err != nil {
			t.Fatalf("%v: %s", err, log)
		}
	}
	says("held")
	return func() {
		t.Helper()
		if err := holds.Signal(s.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		says("given back")
	}
}

// replaceVirtlockd has a virtlockd that runs become vmlockd, as docs/install.md says.
func (s *suite) replaceVirtlockd(t *testing.T, node int, config string) {
	t.Helper()
	if err := s.Install("vmlockd", binaries.vmlockd); err != nil {
		t.Fatal(err)
	}
	n := s.Node(node)
	before, err := n.Service(lab.ServiceLock).Status(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e
cat >/etc/vmlockd.toml <<'EOF'
%slog.format = "text"
log.level = "info"
EOF
mv /usr/sbin/virtlockd /usr/sbin/virtlockd.distrib
printf '#!/bin/sh\nexec vmlockd --config /etc/vmlockd.toml\n' >/usr/sbin/virtlockd
chmod 755 /usr/sbin/virtlockd
`, config)
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
