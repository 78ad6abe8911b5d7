package lab_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/lab"
)

// putImage makes a disk image in the shared directory and returns its path in the nodes.
func putImage(t *testing.T, l *lab.Lab, name string, image []byte) string {
	t.Helper()
	ok(t, os.WriteFile(filepath.Join(l.Shared(), name), image, 0o644))
	return filepath.Join(lab.SharedDir, name)
}

// did fails the test if a command could not be run or has failed.
func did(t *testing.T) func(lab.Result, error) lab.Result {
	return func(res lab.Result, err error) lab.Result {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if !res.OK() {
			t.Fatal(res)
		}
		t.Log(res.Took, strings.TrimSpace(res.Stdout))
		return res
	}
}

// TestLibvirt shows that stock libvirt and QEMU run in the nodes, with libvirt's own lock daemon. That one lets the second node
// start a domain on a disk in use: its record locks do not reach there. This is what vmlockd is for.
func TestLibvirt(t *testing.T) {
	l := lab.ForTest(t, lab.Config{Nodes: 2, NoCluster: true, Libvirt: true, LockDaemon: lab.Virtlockd})
	ctx := within(t, 2*soon)
	one, two := l.Node(1), l.Node(2)
	for _, n := range l.Nodes() {
		ok(t, n.WaitLibvirt(ctx))
	}
	ok2 := did(t)
	disk := putImage(t, l, "counting.img", lab.CountingGuest())
	counter := func(context.Context) uint32 {
		b, err := os.ReadFile(filepath.Join(l.Shared(), "counting.img"))
		ok(t, err)
		return lab.Counter(b)
	}
	a := lab.Domain{Name: "a", ACPI: true, Disks: []lab.Disk{{Path: disk}}}
	ok2(one.Create(ctx, a))
	ok(t, lab.WaitFor(ctx, "the guest to write", func(ctx context.Context) (bool, error) { return counter(ctx) > 10, nil }))

	// The same disk in the same node is refused by virtlockd, not by QEMU.
	b := a
	b.Name = "b"
	res, err := one.Create(ctx, b)
	ok(t, err)
	if res.OK() || !strings.Contains(res.Stderr, "is locked") {
		t.Errorf("second domain on the same disk and node: %v", res)
	}
	// In the other node it is not.
	ok2(two.Create(ctx, b))
	ok2(two.Destroy(ctx, "b"))

	ok2(one.Migrate(ctx, "a", two))
	ok(t, two.WaitDomain(ctx, "a", "running"))
	ok(t, one.WaitDomain(ctx, "a", ""))
	before := counter(ctx)
	ok(t, lab.WaitFor(ctx, "the guest to write in its new place", func(ctx context.Context) (bool, error) { return counter(ctx) > before+5, nil }))

	// Hot-plug by USB, out again without the guest's help.
	stick := lab.Disk{Path: putImage(t, l, "stick.img", lab.IdleGuest()), Bus: "usb", Target: "sda"}
	ok2(two.Attach(ctx, "a", stick))
	ok2(two.Detach(ctx, "a", stick))
	ok(t, lab.WaitFor(ctx, "the disk to be unplugged", func(ctx context.Context) (bool, error) {
		x, err := two.DomainXML(ctx, "a")
		return !strings.Contains(x, "stick.img"), err
	}))
	ok2(two.Destroy(ctx, "a"))

	// A guest that switches itself off.
	off := lab.Domain{Name: "off", ACPI: true, Disks: []lab.Disk{{Path: putImage(t, l, "off.img", lab.PowerOffGuest(0))}}}
	ok2(one.Create(ctx, off))
	ok(t, one.WaitDomain(ctx, "off", ""))
}
