package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// world is a host whose answers are in a file of testdata: what a real one had, or
// as the kernel's source writes it, with other numbers and names.
//
// The file "look" has a line for each path: PATH, or PATH -> RESOLVED, then "block
// MAJOR:MINOR" or "file DEV INODE MOUNT". "links" are symbolic links in the tree,
// "fsid" is what statfs(2) says, "xattr" a path and the one attribute of it. All others but "want" and "rules" are the tree.
//
// A tree that was captured has "directories" as well, each with all names in it, and what is
// "absent". What it is asked beyond that, it does not know, and the test fails.
type world struct {
	t      testing.TB
	dir    string
	listed map[string][]string // nil for a tree that was written by hand
	absent map[string]bool
	known  map[string]bool // files, directories and links that were captured

	nodes map[string]node
	ids   map[string]uint64
	attrs map[string]string
	table *mountTable
	want  []string
	rules []Rule
}

func (w *world) at(path string) string            { w.check(path); return w.dir + path }
func (w *world) mounts(bool) (*mountTable, error) { return w.table, nil }

func (w *world) look(path string) (node, error) {
	n, ok := w.nodes[path]
	if !ok {
		return node{}, &fs.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	return n, nil
}

func (w *world) link(path string) string {
	if n, ok := w.nodes[path]; ok && n.path != path && w.listed == nil {
		return n.path
	}
	to, _ := os.Readlink(w.dir + path)
	return to
}

func (w *world) fsid(path string) (uint64, error) {
	if id, ok := w.ids[path]; ok {
		return id, nil
	}
	return 0, errors.New("stale file handle")
}

func (w *world) xattr(path, name string) (string, error) {
	if name != "ceph.cluster_fsid" {
		return "", fmt.Errorf("nobody is to ask for %s", name)
	}
	return w.attrs[path], nil
}

func loadWorld(t testing.TB, file string) *world {
	t.Helper()
	tree, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return newWorld(t, file, tree.Files)
}

func newWorld(t testing.TB, file string, files []txtar.File) *world {
	t.Helper()
	// EvalSymlinks is part of what is tested, and the temporary directory may be behind a link.
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, known: map[string]bool{}, absent: map[string]bool{}, nodes: map[string]node{}, ids: map[string]uint64{}, attrs: map[string]string{}, table: &mountTable{byID: map[uint64]*mount{}}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	for _, f := range files {
		lines := strings.FieldsFunc(string(f.Data), func(c rune) bool { return c == '\n' })
		switch f.Name {
		case "look":
			for _, l := range lines {
				must(w.addNode(l))
			}
		case "links":
			for _, l := range lines {
				from, to, _ := strings.Cut(l, " -> ")
				at := filepath.Join(dir, from)
				must(os.MkdirAll(filepath.Dir(at), 0o700))
				must(os.Symlink(to, at))
				w.known["/"+from] = true
			}
		case "fsid":
			for _, l := range lines {
				path, id, _ := strings.Cut(l, " ")
				n, err := strconv.ParseUint(id, 16, 64)
				must(err)
				w.ids[path] = n
			}
		case "xattr":
			for _, l := range lines {
				path, value, _ := strings.Cut(l, " ")
				w.attrs[path] = value
			}
		case "directories":
			w.listed = map[string][]string{}
			for _, l := range lines {
				names := strings.Fields(l)
				at := names[0]
				w.listed["/"+at], w.known["/"+at] = names[1:], true
				must(os.MkdirAll(filepath.Join(dir, at), 0o700))
			}
		case "absent":
			for _, l := range lines {
				w.absent["/"+l] = true
			}
		case "mountinfo":
			w.table, err = parseMounts(f.Data)
			must(err)
		case "rules":
			for _, l := range lines {
				p := strings.Split(l, " ")
				for i := range p {
					p[i] = strings.Trim(p[i], `"`)
				}
				r, err := NewRule(RuleText{Path: p[0], Type: p[1], Scope: p[2], Name: p[3]})
				must(err)
				w.rules = append(w.rules, r)
			}
		case "want":
			w.want = lines
		default:
			data := f.Data
			if strings.HasSuffix(f.Name, ".hex") {
				data = nil
				for _, h := range strings.Fields(string(f.Data)) {
					b, err := strconv.ParseUint(h, 16, 8)
					must(err)
					data = append(data, byte(b))
				}
			}
			w.known["/"+strings.TrimSuffix(f.Name, ".hex")] = true
			at := filepath.Join(dir, strings.TrimSuffix(f.Name, ".hex"))
			must(os.MkdirAll(filepath.Dir(at), 0o700))
			must(os.WriteFile(at, data, 0o600))
		}
	}
	for at, names := range w.listed {
		for _, n := range names {
			if _, err := os.Lstat(filepath.Join(dir, at, n)); err != nil {
				must(os.WriteFile(filepath.Join(dir, at, n), nil, 0o600)) // that it is listed
			}
		}
	}
	return w
}

// check fails if a captured tree does not say what is at a path.
func (w *world) check(asked string) {
	if w.listed == nil {
		return
	}
	names := strings.Split(strings.Trim(filepath.Clean(asked), "/"), "/")
	done := ""
	for i, name := range names {
		at := done + "/" + name
		to, err := os.Readlink(w.dir + at)
		last := i == len(names)-1
		switch {
		case w.absent[at]:
			return
		case err == nil && !last:
			if !filepath.IsAbs(to) {
				to = filepath.Join(done, to)
			}
			w.check(filepath.Join(append([]string{to}, names[i+1:]...)...))
			return
		case w.known[at] && last:
			return
		case w.listed[done] != nil && !slices.Contains(w.listed[done], name):
			return // it is not there
		}
		if _, err := os.Lstat(w.dir + at); err != nil || last {
			w.t.Errorf("a look-up asks for %s, and at %s it was not captured what is there: run make capture", asked, at)
			return
		}
		done = at
	}
}

func (w *world) addNode(line string) error {
	f := strings.Fields(line)
	asked := f[0]
	n := node{path: asked}
	if f[1] == "->" {
		n.path, f = f[2], f[2:]
	}
	var err error
	switch f[1] {
	case "block":
		n.mode = unix.S_IFBLK
		n.rdev, err = parseNumber(f[2])
	case "file":
		n.mode = unix.S_IFREG
		if n.dev, err = parseNumber(f[2]); err == nil {
			n.ino, err = strconv.ParseUint(f[3], 10, 64)
		}
		if err == nil {
			n.mount, err = strconv.ParseUint(f[4], 10, 64)
		}
	default:
		err = fmt.Errorf("%q: neither block nor file", line)
	}
	w.nodes[asked] = n
	return err
}

// line is an identity as "want" has it.
func line(path string, id Identity, err error) string {
	if err != nil {
		return path + " error: " + err.Error()
	}
	typ := id.Type
	if typ == "" {
		typ = "-"
	}
	s := fmt.Sprintf("%s %s %s %s", path, id.Scope, typ, id.Name)
	if id.ByPath {
		s += " by-path"
	}
	if id.Doubt {
		s += " doubt"
	}
	return s
}

// TestTrees runs every tree of testdata. Two paths that are one disk have the same
// name there, also across files: that is in "want", for a reader to see.
func TestTrees(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	load := map[string]func(testing.TB) *world{}
	for _, file := range files {
		load[strings.TrimSuffix(filepath.Base(file), ".txtar")] = func(t testing.TB) *world { return loadWorld(t, file) }
	}
	for _, c := range loadCaptures(t) {
		for node := range c.trees {
			load["captured/"+c.kind+"/"+node] = func(t testing.TB) *world { return c.world(t, node) }
		}
	}
	for _, name := range slices.Sorted(maps.Keys(load)) {
		t.Run(name, func(t *testing.T) {
			w := load[name](t)
			r := newResolver(w, Options{Rules: w.rules})
			var got []string
			if len(w.want) == 0 {
				t.Fatal("nothing is wanted")
			}
			for _, l := range w.want {
				path, _, _ := strings.Cut(l, " ")
				id, err := r.Identify(context.Background(), path)
				got = append(got, strings.ReplaceAll(line(path, id, err), w.dir, ""))
				if err == nil && len(id.Steps) == 0 {
					t.Errorf("%s: no steps say why", path)
				}
				if err != nil && id.Name != "" && !errors.Is(err, ErrContradiction) {
					t.Errorf("%s: a name with the error %v", path, err)
				}
			}
			if d := cmp.Diff(w.want, got); d != "" {
				t.Errorf("wanted -, got +:\n%s", d)
			}
		})
	}
}
