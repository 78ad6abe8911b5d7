package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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
		{"HotPlug", hotPlug},
		{"Lease", lease},
		{"SuspendAndResume", suspendAndResume},
		{"Snapshot", snapshot},
		{"SaveAndRestore", saveAndRestore},
		{"SecondDiskRefused", secondDiskRefused},
		{"ListCluster", listCluster},
		{"ListDuringLoad", listDuringLoad},
		{"ListWithoutPeer", listWithoutPeer},
		{"DaemonKilled", daemonKilled},
		{"OwnerEndsWhileDaemonIsDown", ownerEndsMeanwhile},
		{"StoppedAndStarted", stoppedAndStarted},
		{"StoppedWithoutLocks", stoppedWithoutLocks},
		{"UpgradeDuringMigration", upgradeDuringMigration},
		{"PowerCut", powerCut}, // last: it leaves a node without power
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

func secondStart(t *testing.T, s *suite) {
	path := s.disk(t, "second.img", lab.CountingGuest())
	s.create(t, 1, vm("first", lab.Disk{Path: path}))
	s.names(t, s.createRefused(t, 2, vm("second", lab.Disk{Path: path}), path), 1, "first")
	s.state(t, 2, "second", "")
	s.createRefused(t, 1, vm("third", lab.Disk{Path: path}), path)
	s.state(t, 1, "first", "running")
	counts(t, s, "second.img")
}

// names requires that a refusal on another host says which virtual machine has
// the disk for itself, and on which node.
func (s *suite) names(t *testing.T, refusal string, node int, name string) {
	t.Helper()
	uuid, err := s.Node(node).MustSucceed(s.ctx, "virsh", "domuuid", name)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := s.Node(node).ReadFile(s.ctx, "/run/libvirt/qemu/"+name+".pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"virtual machine",
		"uuid " + strings.TrimSpace(uuid.Stdout) + ",",
		"pid " + strings.TrimSpace(string(pid)) + ",",
		"exclusive since ",
		fmt.Sprintf("node %d", node),
	} {
		if !strings.Contains(refusal, part) {
			t.Errorf("virsh does not say %q: %s", part, refusal)
		}
	}
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

func liveMigration(t *testing.T, s *suite) {
	path := s.disk(t, "migrate.img", lab.CountingGuest())
	d := vm("mover", lab.Disk{Path: path})
	s.create(t, 1, d)
	s.must(t, "migrate from node 1 to 2", func() (lab.Result, error) { return s.Node(1).Migrate(s.ctx, "mover", s.Node(2)) })
	s.endsWithTest(t, 2, "mover")
	s.state(t, 2, "mover", "running")
	s.state(t, 1, "mover", "")
	counts(t, s, "migrate.img")
	s.createRefused(t, 1, vm("again", lab.Disk{Path: path}), path)
	s.destroy(t, 2, "mover")
	s.wantFree(t, 1, path)
}

// busyGuest writes to its memory faster than a migration at 1 MiB/s copies it.
func busyGuest() []byte {
	img := lab.IdleGuest()
	copy(img, []byte{
		0xfc,             // cld
		0xbb, 0x00, 0x10, // start: mov bx, 0x1000
		0x8e, 0xc3, // next: mov es, bx
		0x31, 0xff, // xor di, di
		0xb9, 0x00, 0x80, // mov cx, 0x8000
		0x42,       // inc dx
		0x89, 0xd0, // mov ax, dx
		0xf3, 0xab, // rep stosw
		0x81, 0xc3, 0x00, 0x10, // add bx, 0x1000
		0x81, 0xfb, 0x00, 0x90, // cmp bx, 0x9000
		0x72, 0xe8, // jb next
		0xeb, 0xe3, // jmp start
	})
	return img
}

func failedMigration(t *testing.T, s *suite) {
	path := s.disk(t, "failed.img", busyGuest())
	s.create(t, 1, vm("stayer", lab.Disk{Path: path}))
	type outcome struct {
		res lab.Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		res, err := s.Node(1).Migrate(s.ctx, "stayer", s.Node(2), "--bandwidth", "1")
		done <- outcome{res, err}
	}()
	// The target's QEMU runs, and has told its lock daemon who it is.
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the migration to copy memory", func(ctx context.Context) (bool, error) {
		select {
		case o := <-done:
			return false, fmt.Errorf("the migration has ended: %v, %v", o.res, o.err)
		default:
		}
		res, err := s.Node(1).Virsh(ctx, "domjobinfo", "stayer")
		return err == nil && strings.Contains(res.Stdout, "Memory remaining"), err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.must(t, "abort the migration", func() (lab.Result, error) { return s.Node(1).Virsh(s.ctx, "domjobabort", "stayer") })
	o := <-done
	if o.err != nil || o.res.OK() {
		t.Fatalf("the aborted migration: %v, %v", o.res, o.err)
	}
	s.step(t, "virsh migrate: %s", strings.TrimSpace(o.res.Stderr))
	s.state(t, 1, "stayer", "running")
	s.state(t, 2, "stayer", "")
	s.createRefused(t, 2, vm("other", lab.Disk{Path: path}), path)
	s.wantHeld(t, 3, path)
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

func powerCut(t *testing.T, s *suite) {
	path := s.disk(t, "power.img", lab.IdleGuest())
	s.create(t, 1, vm("victim", lab.Disk{Path: path}))
	s.createRefused(t, 2, vm("heir", lab.Disk{Path: path}), path)
	cut := time.Now()
	if err := s.Node(1).PowerCut(s.ctx); err != nil {
		t.Fatal(err)
	}
	detection, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	if err := s.Node(2).WaitMembers(detection, 2, 3); err != nil {
		t.Fatal(err)
	}
	s.step(t, "the cluster noticed after %v", time.Since(cut).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	s.waitFree(t, ctx, 2, path)
	s.step(t, "the disk was free after %v", time.Since(cut).Round(time.Millisecond))
	s.create(t, 2, vm("heir", lab.Disk{Path: path}))
	s.waitFor(t, "the lost host to be missing in a list", func() bool {
		l, res := s.ls(t, 3)
		return res.Status == statusIncomplete && l.missing(1) && l.ofVM("heir") == 1
	}, func() string { return "" })
}
