package identity

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLocal: what two paths of this host have in common if they lead to one thing, by
// which one is found whose name is made of its path.
func TestLocal(t *testing.T) {
	for _, tc := range []struct{ file, path, want string }{
		{"devices", "/dev/nvme0n1", "block device 259:0"},
		{"devices", "/dev/nvme0n1p2", "block device 259:2"},
		{"devices", "/dev/ubda", "block device 98:0"},
		{"devices", "/tmp/mknod", "block device 98:0"},
		{"devices", "/dev/nowhere", "block device 200:1"},
		{"devices", "/srv/a.img", "file 8:1 131"},
		{"devices", "/dev/loop0", "file 8:1 131"}, // whatever part of it
		{"devices", "/dev/loop0p1", "file 8:1 131 partition 1"},
		{"devices", "/dev/loop1", "file 0:45 77"},
		{"devices", "/srv/shared/b.img", "file 0:45 77"},
		{"devices", "/dev/loop3", "block device 259:0"},
		{"shared", "/virtiofs/web.img", "file 0:66 7"},
		{"shared", "/bound/web.img", "file 0:66 7"},
		{"files", "/elsewhere/g.img", "file 0:99 5"},
		{"files", "/not/there.img", ""},
	} {
		r := newResolver(loadWorld(t, "testdata/"+tc.file+".txtar"), Options{})
		if id := identify(t, r, tc.path); id.Local != tc.want {
			t.Errorf("%s: %s is %q, want %q", tc.file, tc.path, id.Local, tc.want)
		}
	}
}

// late is a host whose table of mounts is read too early to have what has just been
// mounted.
type late struct {
	*world
	again int
}

func (l *late) mounts(again bool) (*mountTable, error) {
	if again {
		l.again++
		return l.table, nil
	}
	return &mountTable{byID: map[uint64]*mount{}}, nil
}

func TestAMountThatIsNew(t *testing.T) {
	h := &late{world: loadWorld(t, "testdata/shared.txtar")}
	if id := identify(t, newResolver(h, Options{}), "/mnt/a/web.img"); id.Type != "nfs4" || id.Doubt || h.again != 1 {
		t.Errorf("%+v, and the table was read again %d times", id, h.again)
	}
}

// forbidden is a host that lets nobody look at anything, as a server of NFS does to
// root (root_squash).
type forbidden struct{ *world }

func (forbidden) look(string) (node, error) { return node{}, unix.EACCES }

func TestWhatMayNotBeLookedAt(t *testing.T) {
	h := forbidden{loadWorld(t, "testdata/shared.txtar")}
	for _, path := range []string{"/mnt/a/web.img", "/images/dir/web.img"} { // a link to it
		id, err := newResolver(h, Options{}).Identify(context.Background(), path)
		if err != nil || id.Scope != Cluster || !id.Doubt || !id.ByPath || id.Name != "/mnt/a/web.img" || id.Path != id.Name || id.Type != "nfs4" {
			t.Errorf("%s: %+v, %v", path, id, err)
		}
	}
	for _, tc := range []struct {
		rule   RuleText
		scope  Scope
		name   string
		byPath bool
	}{
		{RuleText{Path: "/mnt/a/**", Scope: "cluster", Name: "vm/{rest}"}, Cluster, "rule:vm/web.img", true},
		{RuleText{Type: "nfs4", Scope: "cluster"}, Cluster, "/mnt/a/web.img", true},
		{RuleText{Type: "nfs4", Scope: "host"}, Host, "/mnt/a/web.img", true},
	} {
		rule, err := NewRule(tc.rule)
		if err != nil {
			t.Fatal(err)
		}
		id, err := newResolver(h, Options{Rules: []Rule{rule}}).Identify(context.Background(), "/images/dir/web.img")
		if err != nil || id.Scope != tc.scope || id.Name != tc.name || id.ByPath != tc.byPath || id.Doubt {
			t.Errorf("%+v: %+v, %v", tc.rule, id, err)
		}
	}
	// Its inode cannot be seen.
	rule, err := NewRule(RuleText{Type: "nfs4", Scope: "cluster", Name: "vm/{inode}"})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := newResolver(h, Options{Rules: []Rule{rule}}).Identify(context.Background(), "/mnt/a/web.img"); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "may not look") {
		t.Errorf("by an inode that nobody has seen: %+v, %v", id, err)
	}
}

// TestNoDeviceIsOpened: udev's links for DRBD lead to devices where others have a
// directory. A FIFO is one that nobody gets out of.
func TestNoDeviceIsOpened(t *testing.T) {
	w := loadWorld(t, "testdata/devices.txtar")
	fifo := filepath.Join(w.dir, "dev/fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../fifo", filepath.Join(w.dir, "dev/drbd/by-res/another")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	id, err := newResolver(w, Options{}).Identify(ctx, "/dev/drbd7")
	if err != nil {
		if f, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil { // lets the look-up go on, which waits for a writer
			defer f.Close()
		}
		t.Fatal(err)
	}
	if id.Name != "drbd:web/0" {
		t.Errorf("%+v", id)
	}
}
