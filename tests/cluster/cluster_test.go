package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestLibvirt goes through what virtual machines do with their disks. The
// subtests share one cluster, as booting it takes longer than most of them.
func TestLibvirt(t *testing.T) {
	s := startVMLockd(t, 3)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"SecondStartIsRefused", secondStart},
		{"FreeAfterDestroy", freeAfterDestroy},
		{"FreeAfterOwnShutdown", freeAfterOwnShutdown},
		{"Shareable", shareable},
		{"ReadOnly", readOnly},
		{"LiveMigration", liveMigration},
		{"FailedMigration", failedMigration},
		{"MigrationFailsAtHandOver", failedHandOver},
		{"MigrationAbortedAtHandOver", abortedAtHandOver},
		{"MigrationAbortedTooLate", abortedTooLate},
		{"HotPlug", hotPlug},
		{"Lease", lease},
		{"SuspendAndResume", suspendAndResume},
		{"ResumedByQEMU", resumedByQEMU},
		{"Snapshot", snapshot},
		{"SaveAndRestore", saveAndRestore},
		{"SecondDiskRefused", secondDiskRefused},
		{"ListCluster", listCluster},
		{"ListDuringLoad", listDuringLoad},
		{"DaemonKilled", daemonKilled},
		{"OwnerEndsWhileDaemonIsDown", ownerEndsMeanwhile},
		{"StoppedAndStarted", stoppedAndStarted},
		{"StoppedWithoutLocks", stoppedWithoutLocks},
		{"UpgradeDuringMigration", upgradeDuringMigration},
		{"NewProgramFails", newProgramFails},
		{"PowerCut", powerCut}, // last: it leaves a node without power
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

// doubleStart starts a virtual machine on node 1, and one with the same disk on
// node 2. What becomes of that depends on the lock daemon alone: for stock
// virtlockd and for vmlockd it is this same function that is called, on the same
// test bed. It returns the disk's path and the outcome of the second start.
func doubleStart(t *testing.T, s *suite) (path string, second lab.Result) {
	t.Helper()
	path = s.disk(t, "double.img", lab.CountingGuest())
	s.create(t, 1, vm("first", lab.Disk{Path: path}))
	// On one host both daemons do their job, so they are really asked.
	s.createRefused(t, 1, vm("third", lab.Disk{Path: path}), path)
	second, err := s.Node(2).Create(s.ctx, vm("second", lab.Disk{Path: path}))
	if err != nil {
		t.Fatal(err)
	}
	s.endsWithTest(t, 2, "second")
	s.state(t, 1, "first", "running")
	return path, second
}

func secondStart(t *testing.T, s *suite) {
	path, second := doubleStart(t, s)
	s.refused(t, "start second on node 2", path, func() (lab.Result, error) { return second, nil })
	s.refusedNaming(t, 2, vm("second", lab.Disk{Path: path}), path, 1, "first")
	s.state(t, 2, "second", "")
	counts(t, s, "double.img")
}

// refusedNaming starts a virtual machine, which must be refused, until the refusal says which one
// has the disk for itself, and on which node: one on another host does not wait for longer than
// 300 ms for what the other host, and the lock itself, tell of that.
func (s *suite) refusedNaming(t *testing.T, node int, d lab.Domain, path string, holder int, name string) {
	t.Helper()
	uuid, err := s.Node(holder).MustSucceed(s.ctx, "virsh", "domuuid", name)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := s.Node(holder).ReadFile(s.ctx, "/run/libvirt/qemu/"+name+".pid")
	if err != nil {
		t.Fatal(err)
	}
	parts := []string{
		"virtual machine",
		"uuid " + strings.TrimSpace(uuid.Stdout) + ",",
		"pid " + strings.TrimSpace(string(pid)) + ",",
		"exclusive since ",
		fmt.Sprintf("node %d", holder),
	}
	said := ""
	s.waitFor(t, fmt.Sprintf("a refusal that says %q", parts), func() bool {
		said = s.createRefused(t, node, d, path)
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(said, part) })
	}, func() string { return said })
}

// counts waits until the guest of an image is seen to write, which shows that
// these tests are about virtual machines that run.
func counts(t *testing.T, s *suite, image string) {
	t.Helper()
	read := func() uint32 {
		b, err := os.ReadFile(filepath.Join(s.Shared(), image))
		if err != nil {
			t.Fatal(err)
		}
		return lab.Counter(b)
	}
	before := read()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := lab.WaitFor(ctx, "the guest to write", func(context.Context) (bool, error) { return read() > before, nil }); err != nil {
		t.Fatal(err)
	}
}

func freeAfterDestroy(t *testing.T, s *suite) {
	path := s.disk(t, "destroy.img", lab.IdleGuest())
	s.create(t, 1, vm("one", lab.Disk{Path: path}))
	s.destroy(t, 1, "one")
	s.create(t, 2, vm("two", lab.Disk{Path: path}))
	s.wantHeld(t, 1, path)
}

func freeAfterOwnShutdown(t *testing.T, s *suite) {
	path := s.disk(t, "shutdown.img", lab.PowerOffGuest(2))
	d := vm("short", lab.Disk{Path: path})
	d.ACPI = true
	s.create(t, 1, d)
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := s.Node(1).WaitDomain(ctx, "short", ""); err != nil {
		t.Fatal(err)
	}
	s.step(t, "the guest has switched itself off")
	s.create(t, 2, d)
}

func shareable(t *testing.T, s *suite) {
	path := s.disk(t, "shareable.img", lab.IdleGuest())
	shared := lab.Disk{Path: path, Access: lab.Shareable}
	s.create(t, 1, vm("share1", shared))
	s.create(t, 2, vm("share2", shared))
	s.createRefused(t, 3, vm("alone", lab.Disk{Path: path}), path)
	s.destroy(t, 1, "share1")
	s.wantHeld(t, 1, path)
	s.destroy(t, 2, "share2")
	s.create(t, 3, vm("alone", lab.Disk{Path: path}))
	s.createRefused(t, 2, vm("share2", shared), path)
}

func readOnly(t *testing.T, s *suite) {
	path := s.disk(t, "readonly.img", lab.IdleGuest())
	s.create(t, 1, vm("writer", lab.Disk{Path: path}))
	s.create(t, 2, vm("reader", lab.Disk{Path: path, Access: lab.ReadOnly}))
	s.destroy(t, 1, "writer")
	s.wantFree(t, 3, path) // a reader holds nothing
}

func hotPlug(t *testing.T, s *suite) {
	boot1, boot2 := s.disk(t, "plug1.img", lab.IdleGuest()), s.disk(t, "plug2.img", lab.IdleGuest())
	extra := lab.Disk{Path: s.disk(t, "extra.img", lab.IdleGuest()), Bus: "usb"}
	s.create(t, 1, vm("plug1", lab.Disk{Path: boot1}))
	s.create(t, 2, vm("plug2", lab.Disk{Path: boot2}))
	s.must(t, "plug a free disk in on node 1", func() (lab.Result, error) { return s.Node(1).Attach(s.ctx, "plug1", extra) })
	s.refused(t, "plug it in on node 2", extra.Path, func() (lab.Result, error) { return s.Node(2).Attach(s.ctx, "plug2", extra) })
	s.must(t, "unplug it on node 1", func() (lab.Result, error) { return s.Node(1).Detach(s.ctx, "plug1", extra) })
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.waitFree(t, ctx, 3, extra.Path)
	s.must(t, "plug it in on node 2", func() (lab.Result, error) { return s.Node(2).Attach(s.ctx, "plug2", extra) })
	s.wantHeld(t, 1, extra.Path)
	s.state(t, 1, "plug1", "running")
	s.wantHeld(t, 3, boot1) // that one never lost its other disk's lock
}

// A lease is not of a disk, and nothing of it exists on any disk.
func lease(t *testing.T, s *suite) {
	boot := func(name string) lab.Disk {
		return lab.Disk{Path: s.disk(t, name+".img", lab.IdleGuest())}
	}
	leased := func(name, key string) lab.Domain {
		d := vm(name, boot(name))
		d.Leases = []lab.Lease{{Lockspace: "cluster", Key: key, Path: "/no/such/directory"}}
		return d
	}
	s.create(t, 1, leased("lease1", "role-a"))
	s.createRefused(t, 2, leased("lease2", "role-a"), "role-a")
	s.create(t, 2, leased("lease3", "role-b"))
	s.destroy(t, 1, "lease1")
	s.create(t, 3, leased("lease4", "role-a"))
}

// libvirt gives the locks back while a virtual machine is suspended, and wants
// them again before it goes on.
func suspendAndResume(t *testing.T, s *suite) {
	path := s.disk(t, "suspend.img", lab.IdleGuest())
	s.create(t, 1, vm("sleeper", lab.Disk{Path: path}))
	s.must(t, "suspend", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "suspend", "sleeper") })
	s.must(t, "resume", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "resume", "sleeper") })
	s.createRefused(t, 2, vm("taker", lab.Disk{Path: path}), path)

	s.must(t, "suspend", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "suspend", "sleeper") })
	s.create(t, 2, vm("taker", lab.Disk{Path: path}))
	s.refused(t, "resume while the disk is used on node 2", path, func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "resume", "sleeper") })
	s.state(t, 1, "sleeper", "paused")
	s.destroy(t, 2, "taker")
	s.must(t, "resume", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "resume", "sleeper") })
	s.wantHeld(t, 2, path)
}

func snapshot(t *testing.T, s *suite) {
	path := s.disk(t, "snapshot.img", lab.IdleGuest())
	overlay := lab.SharedDir + "/snapshot.overlay"
	s.create(t, 1, vm("snap", lab.Disk{Path: path}))
	s.must(t, "take a snapshot", func() (lab.Result, error) {
		return s.Node(1).Virsh(s.ctx, "snapshot-create-as", "snap", "s1", "--disk-only", "--atomic", "--no-metadata",
			"--diskspec", "vda,snapshot=external,file="+overlay)
	})
	s.state(t, 1, "snap", "running")
	s.wantHeld(t, 2, overlay) // the disk that is written now
	s.createRefused(t, 2, vm("thief", lab.Disk{Path: overlay, Format: "qcow2"}), overlay)
	s.destroy(t, 1, "snap")
	s.wantFree(t, 2, overlay)
	s.wantFree(t, 2, path)
}

func saveAndRestore(t *testing.T, s *suite) {
	path := s.disk(t, "save.img", lab.IdleGuest())
	state := lab.SharedDir + "/save.state"
	s.create(t, 1, vm("saved", lab.Disk{Path: path}))
	s.must(t, "save", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "save", "saved", state) })
	s.create(t, 2, vm("taker", lab.Disk{Path: path}))
	s.refused(t, "restore while the disk is used on node 2", path, func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "restore", state) })
	s.destroy(t, 2, "taker")
	s.must(t, "restore", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "restore", state) })
	s.state(t, 1, "saved", "running")
	s.createRefused(t, 2, vm("taker", lab.Disk{Path: path}), path)
}

func secondDiskRefused(t *testing.T, s *suite) {
	held, first := s.disk(t, "held.img", lab.IdleGuest()), s.disk(t, "firstdisk.img", lab.IdleGuest())
	s.create(t, 1, vm("holder", lab.Disk{Path: held}))
	s.createRefused(t, 2, vm("twodisks", lab.Disk{Path: first}, lab.Disk{Path: held}), held)
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.waitFree(t, ctx, 3, first)
	s.wantHeld(t, 3, held)
}
