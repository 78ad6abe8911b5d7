package identity

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestCaptureOfATree: a tree of which a part has been captured again is the same part of it, as what is in
// it needs no replacement, and with other numbers in it is one with others, of the same shape.
func TestCaptureOfATree(t *testing.T) {
	for file, paths := range map[string][]string{
		"scsi":    {"/dev/sdb", "/dev/sdb1", "/dev/disk/by-id/x", "/dev/sdf", "/dev/mapper/mpatha", "/dev/mapper/mpatha1"},
		"devices": {"/dev/nvme0n1p2", "/dev/nvme1n1", "/dev/drbd7", "/dev/drbd9", "/dev/rbd0", "/dev/nbd0", "/dev/nbd1", "/dev/nbd2", "/dev/md126", "/dev/md127", "/dev/ubda"},
		"lvm":     {"/dev/vg0/web", "/dev/other/db", "/dev/vg0/web-snap"},
		"mapper":  {"/dev/mapper/luks-here", "/dev/mapper/luks-there", "/dev/mapper/plain", "/dev/mapper/stripe", "/dev/mapper/own"},
		"shared":  {"/mnt/a/web.img", "/srv/vm/web.img", "/srv/v3/web.img", "/mnt/b/web.img", "/mnt/ganesha/web.img", "/ocfs2/web.img", "/gfs2/web.img", "/gfs2b/web.img", "/cephxattr/web.img", "/cifs/Web.img", "/cifs2/Web.img", "/images/link.img"},
	} {
		t.Run(file, func(t *testing.T) {
			w := loadWorld(t, "testdata/"+file+".txtar")
			tree, err := capture(w, paths)
			if err != nil {
				t.Fatal(err)
			}
			again := newWorld(t, file, tree.Files)
			if len(again.want) != len(paths) {
				t.Fatalf("%d paths are captured, and %d were asked for", len(again.want), len(paths))
			}
			names := map[string]string{} // of replacements, by the names that they stand for
			for i, want := range again.want {
				asked, _, _ := strings.Cut(want, " ")
				id, err := newResolver(again, Options{}).Identify(t.Context(), asked)
				if got := line(asked, id, err); got != want {
					t.Errorf("%s was captured as %q, and is %q by what was captured", paths[i], want, got)
				}
				real := identify(t, newResolver(w, Options{}), paths[i])
				if was, ok := names[real.Name]; ok && was != id.Name {
					t.Errorf("%s has the names %q and %q", real.Name, was, id.Name)
				}
				for other, name := range names {
					if name == id.Name && other != real.Name {
						t.Errorf("%q stands for %q and %q", name, other, real.Name)
					}
				}
				names[real.Name] = id.Name
			}
			text := string(txtar.Format(tree))
			for _, secret := range []string{"600140512345678901234567890abcde", "Q3cwEkfJgCd8SUEYyVnrR7vVYlf3XqWx", "0123456789abcdef0123456789abcdef", "6d0f0c36", "0a1b2c3d",
				"53616d73756e", "tenant", "10f2ae8944a", "6b2f00112233aabb", "3bda537251300f7b", "89abcdef01234567", "5a1b2c3d", "store.", "ganesha", "1b7c5a1e", "c93455f2"} {
				if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
					t.Errorf("%s is still there", secret)
				}
			}
		})
	}
}

// TestAWorldThatDoesNotKnow: a tree that was captured has no answer to what nobody asked then.
func TestAWorldThatDoesNotKnow(t *testing.T) {
	tree, err := capture(loadWorld(t, "testdata/lvm.txtar"), []string{"/dev/vg0/web"})
	if err != nil {
		t.Fatal(err)
	}
	for asked, known := range map[string]bool{
		"/sys/devices/virtual/block/dm-0/dm/uuid":    true,
		"/sys/dev/block/253:0/dm/uuid":               true, // through the link
		"/sys/devices/virtual/block/dm-0/dm/another": true, // its directory was listed
		"/sys/devices/virtual/block/dm-0/md/uuid":    true,
		"/sys/dev/block/253:4":                       false,
		"/sys/class/block/dm-0":                      false,
		"/dev/disk/by-id":                            false,
	} {
		w := newWorld(t, "lvm", tree.Files)
		told := &teller{TB: t}
		w.t = told
		w.at(asked)
		if told.said != !known {
			t.Errorf("%s is known: %v", asked, told.said)
		}
	}
}

// teller notes that a test would have failed.
type teller struct {
	testing.TB
	said bool
}

func (t *teller) Errorf(string, ...any) { t.said = true }

// TestNBDAsksOfItsClientOnly: a device that is not connected has no client, and the command line of
// nobody is not the kernel's.
func TestNBDAsksOfItsClientOnly(t *testing.T) {
	w := loadWorld(t, "testdata/devices.txtar")
	if err := os.WriteFile(filepath.Join(w.dir, "proc/cmdline"), []byte("nbd-client\x00192.0.2.1\x00/dev/nbd2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id := identify(t, newResolver(w, Options{}), "/dev/nbd2"); id.Name != "/dev/nbd2" || slices.ContainsFunc(id.Steps, func(s string) bool { return strings.Contains(s, "client") }) {
		t.Errorf("%+v", id)
	}
}
