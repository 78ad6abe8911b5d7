package identity_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// overlays: what stock libvirt locks of images that lie upon one another, and what it
// does not; docs/identity.md says so, and what to do about it. If one of these fails with
// another version of libvirt, that page has to change.
func overlays(t *testing.T, s *suite) {
	base := s.share(t, "base.img", lab.IdleGuest())
	one, two := s.share(t, "one.qcow2", qcow2(base)), s.share(t, "two.qcow2", qcow2(base))
	on := func(name, path, format string) lab.Domain {
		return lab.Domain{Name: name, Disks: []lab.Disk{{Path: path, Format: format}}}
	}
	writer := on("writer", base, "")

	// One base below two overlays on two hosts.
	s.create(t, 1, on("first", one, "qcow2"))
	s.create(t, 2, on("second", two, "qcow2"))
	s.createRefused(t, 2, on("third", one, "qcow2"))
	s.wantLocks(t, 1, "first", one)
	s.wantLocks(t, 2, "second", two)
	s.wantFinding(t, 1, "backing-file-written", false, "")

	// Nothing is asked for the base. So who has it for his own disk gets it, and doctor says so.
	s.create(t, 2, writer)
	s.wantFinding(t, 1, "backing-file-written", true, "virtual machine first, disk vda", base, "writer", "node2")
	s.wantFinding(t, 2, "backing-file-written", true, "virtual machine second, disk vda", base, "writer", "this host")
	commit := func(node int, vm string) func() (lab.Result, error) {
		return func() (lab.Result, error) {
			return s.Node(node).Virsh(s.ctx, "blockcommit", vm, "vda", "--active", "--pivot", "--wait")
		}
	}
	// Who writes into the base later asks for it then.
	s.refusedFor(t, "a commit into an image that is written", base, "writer", commit(1, "first"))
	s.destroy(t, 2, "writer")

	// As the page says: held as shared by anybody, it is safe from all who ask.
	release := s.hold(t, 1, base, "--shared")
	holder := fmt.Sprintf("hold%d", s.holds)
	s.createRefused(t, 2, writer)
	s.refusedFor(t, "a commit into an image that is held", base, holder, commit(2, "second"))
	s.wantLocks(t, 2, "second", two)
	s.hold(t, 2, base, "--shared")() // others may do so too
	release()

	// The lock goes with what is written. Nobody asks whether there are other overlays.
	if res, err := commit(1, "first")(); err != nil || !res.OK() {
		t.Fatalf("commit: %v, %v", res, err)
	}
	s.wantLocks(t, 1, "first", base)
	s.wantFree(t, 2, one)
	s.wantHeld(t, 2, base)
	s.wantFinding(t, 2, "backing-file-written", true, "virtual machine second, disk vda", base, "first", "node1")
	snapshot := lab.SharedDir + "/three.qcow2"
	res, err := s.Node(1).Virsh(s.ctx, "snapshot-create-as", "first", "s1", "--disk-only", "--atomic", "--no-metadata", "--diskspec", "vda,snapshot=external,file="+snapshot)
	if err != nil || !res.OK() {
		t.Fatalf("snapshot: %v, %v", res, err)
	}
	s.wantLocks(t, 1, "first", snapshot)
	s.wantFree(t, 2, base)
	s.wantHeld(t, 2, snapshot)
	s.wantFinding(t, 2, "backing-file-written", false, "")
}

// wantLocks fails unless a virtual machine has just these disks for itself.
func (s *suite) wantLocks(t *testing.T, node int, vm string, paths ...string) {
	t.Helper()
	var got []string
	for _, h := range s.holders(t, node) {
		if h.VM == vm {
			got = append(got, h.Mode+" "+h.Resource)
		}
	}
	var want []string
	for _, p := range paths {
		want = append(want, "exclusive "+p)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s has %q, want %q", vm, got, want)
	}
}

func (s *suite) destroy(t *testing.T, node int, vm string) {
	t.Helper()
	if res, err := s.Node(node).Destroy(s.ctx, vm); err != nil || !res.OK() {
		t.Fatalf("destroy %s on node %d: %v, %v", vm, node, res, err)
	}
}

// wantFinding waits until doctor has findings of a kind on a node, or none. One of them
// is about where, and says all words; its remedy is returned. What other hosts hold may
// come a moment later.
func (s *suite) wantFinding(t *testing.T, node int, id string, want bool, where string, words ...string) (remedy string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	var list []finding
	err := lab.WaitFor(ctx, fmt.Sprintf("doctor on node %d to have %s: %v", node, id, want), func(context.Context) (bool, error) {
		list = slices.DeleteFunc(s.doctor(t, node), func(f finding) bool { return f.ID != id })
		return len(list) > 0 == want, nil
	})
	if err != nil {
		t.Errorf("%v: %+v", err, list)
		return ""
	}
	if !want {
		return ""
	}
	i := slices.IndexFunc(list, func(f finding) bool { return f.Where == where })
	if i < 0 {
		t.Errorf("%s is not found of %s, but %+v", id, where, list)
		return ""
	}
	for _, w := range words {
		if !strings.Contains(list[i].What, w) {
			t.Errorf("%s of %s does not say %q: %s", id, where, w, list[i].What)
		}
	}
	t.Logf("%s: %s | %s", list[i].Where, list[i].What, list[i].Remedy)
	return list[i].Remedy
}
