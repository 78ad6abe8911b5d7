package identity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// there is this host as a thread with another mount namespace sees it.
type there struct {
	*thisHost
	root string
}

func (h there) look(path string) (node, error) { return h.thisHost.look(h.root + path) }
func (h there) link(path string) string        { return h.thisHost.link(h.root + path) }

// TestOverlayCopyUp: the first write to a file of an overlay's lower layer gives it
// another inode, if it has several hard links there, and it stays one disk.
func TestOverlayCopyUp(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	prepare := func() error {
		for _, d := range []string{"lower/vm", "upper", "work", "merged", "bound", "bound2"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
				return err
			}
		}
		image := filepath.Join(dir, "lower/vm/web.img")
		if err := os.WriteFile(image, []byte("x"), 0o600); err != nil {
			return err
		}
		for _, name := range []string{"lower/vm/hard.img", "lower/vm/other.img"} {
			if err := os.Link(image, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		merged := filepath.Join(dir, "merged")
		if err := os.Symlink("merged/vm/web.img", filepath.Join(dir, "soft")); err != nil {
			return err
		}
		layers := "index=off,lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
		if err := unix.Mount("overlay", merged, "overlay", 0, layers); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(merged, "own"), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(merged, "own/db.img"), nil, 0o600); err != nil {
			return err
		}
		return errors.Join(
			unix.Mount(filepath.Join(merged, "vm"), filepath.Join(dir, "bound"), "", unix.MS_BIND, ""),
			unix.Mount(filepath.Join(merged, "own"), filepath.Join(dir, "bound2"), "", unix.MS_BIND, ""))
	}
	inPreparedNamespace(t, prepare, func(root string) {
		h := there{&thisHost{from: strings.TrimSuffix(root, "root") + "mountinfo"}, root}
		defer func() { unix.Close(h.fd) }()
		hostRule, err := NewRule(RuleText{Path: dir + "/**", Scope: "host"})
		if err != nil {
			t.Fatal(err)
		}
		plain, ruled := newResolver(h, Options{}), newResolver(h, Options{Rules: []Rule{hostRule}})
		image := filepath.Join(dir, "merged/vm/web.img")
		before := identify(t, plain, image)
		if before.Type != "overlay" || before.Scope != Host || !before.ByPath || before.Doubt || before.Name == "" {
			t.Fatalf("%+v", before)
		}
		same := func() {
			t.Helper()
			for _, path := range []string{image, filepath.Join(dir, "soft"), filepath.Join(dir, "bound/web.img")} {
				for _, r := range []*Resolver{plain, ruled} {
					if id := identify(t, r, path); id.Name != before.Name || id.Scope != Host {
						t.Errorf("%s is %q (%s), and the file was %q", path, id.Name, id.Scope, before.Name)
					}
				}
			}
		}
		same()
		if other := identify(t, plain, filepath.Join(dir, "merged/vm/hard.img")); other.Local != before.Local || !other.ByPath {
			t.Errorf("a hard link, before the first write: %+v", other)
		}
		f, err := os.OpenFile(root+image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if after := identify(t, plain, image); after.Local == before.Local {
			t.Fatalf("the first write has changed no inode, so this is no test: %+v", after)
		}
		same()
		// A directory that is bound elsewhere gets another name, of which the kernel does not
		// tell those who watch its mounts.
		bound := filepath.Join(dir, "bound2/db.img")
		was := identify(t, plain, bound)
		if err := os.Rename(root+dir+"/merged/own", root+dir+"/merged/renamed"); err != nil {
			t.Fatal(err)
		}
		here, there := identify(t, plain, dir+"/merged/renamed/db.img"), identify(t, plain, bound)
		if here.Name != there.Name || here.Name == was.Name || here.Scope != Host {
			t.Errorf("a file of a directory that was renamed is %q, by its bind mount %q, and was %q", here.Name, there.Name, was.Name)
		}
		// Seen from another namespace its place in the overlay is not known.
		if far := identify(t, newResolver(&host, Options{}), root+image); far.Scope != Cluster || !far.Doubt || far.Local == "" {
			t.Errorf("from another namespace: %+v", far)
		}
	}, dir)
}
