package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// tree is a System in memory.
type tree struct {
	files    map[string]*node
	hostname string
}

type node struct {
	data string
	link string // where a symbolic link points to
	dir  bool
	info FileInfo
	err  error // of every access
}

// load reads a tree from a txtar file. A name is a path without its first slash,
// then words: "-> TARGET" makes a link, a number in octal is the mode, tmpfs says
// that it is in memory. A name that ends with a slash is a directory. In
// proc/PID/cmdline each line is an argument.
func load(t *testing.T, file string) *tree {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tr := &tree{files: map[string]*node{}, hostname: "host1"}
	for _, f := range a.Files {
		name, words, _ := strings.Cut(f.Name, " ")
		n := &node{data: string(f.Data), dir: strings.HasSuffix(name, "/"), info: FileInfo{Mode: 0o644}}
		if to, ok := strings.CutPrefix(words, "-> "); ok {
			n.link, words = to, ""
		}
		if n.dir {
			n.info.Mode = 0o755
		}
		for _, w := range strings.Fields(words) {
			if w == "tmpfs" {
				n.info.Tmpfs = true
				continue
			}
			mode, err := strconv.ParseUint(w, 8, 12)
			if err != nil {
				t.Fatalf("%s: %q", file, f.Name)
			}
			n.info.Mode = fs.FileMode(mode)
		}
		if strings.HasSuffix(name, "/cmdline") {
			n.data = strings.ReplaceAll(n.data, "\n", "\x00")
		}
		tr.files["/"+strings.TrimSuffix(name, "/")] = n
	}
	return tr
}

func (tr *tree) get(op, p string) (*node, error) {
	n, ok := tr.files[p]
	if !ok {
		for name := range tr.files {
			if strings.HasPrefix(name, p+"/") {
				return &node{dir: true, info: FileInfo{Mode: fs.ModeDir | 0o755}}, nil
			}
		}
		return nil, &fs.PathError{Op: op, Path: p, Err: fs.ErrNotExist}
	}
	if n.err != nil {
		return nil, &fs.PathError{Op: op, Path: p, Err: n.err}
	}
	return n, nil
}

func (tr *tree) follow(op, p string) (*node, error) {
	for range 8 {
		n, err := tr.get(op, p)
		if err != nil || n.link == "" {
			return n, err
		}
		if p = n.link; !path.IsAbs(p) {
			return nil, &fs.PathError{Op: op, Path: p, Err: fs.ErrNotExist}
		}
	}
	return nil, errors.New("too many links")
}

func (tr *tree) ReadFile(p string, most int) ([]byte, error) {
	n, err := tr.follow("open", p)
	switch {
	case err != nil:
		return nil, err
	case n.dir:
		return nil, errors.New(p + " is no file")
	case len(n.data) > most:
		return nil, fmt.Errorf("%s has more than %d bytes", p, most)
	}
	return []byte(n.data), nil
}

func (tr *tree) Readlink(p string) (string, error) {
	n, err := tr.get("readlink", p)
	if err == nil && n.link == "" {
		err = &fs.PathError{Op: "readlink", Path: p, Err: fs.ErrInvalid}
	}
	if err != nil {
		return "", err
	}
	return n.link, nil
}

func (tr *tree) Stat(p string) (FileInfo, error) {
	n, err := tr.follow("stat", p)
	if err != nil {
		return FileInfo{}, err
	}
	return n.info, nil
}

func (tr *tree) List(dir string, most int) ([]string, error) {
	if _, err := tr.get("open", dir); err != nil {
		return nil, err
	}
	set := map[string]bool{}
	for name := range tr.files {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			set[first] = true
		}
	}
	if len(set) > most {
		return nil, fmt.Errorf("%s has more than %d entries", dir, most)
	}
	var names []string
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}

func (tr *tree) Hostname() (string, error) { return tr.hostname, nil }

func (tr *tree) Connect(_ context.Context, p string) error {
	_, err := tr.get("connect", p)
	return err
}

// The next change a tree. They panic if there is nothing to change, so that a test
// of a fault does not go on without one.

func (tr *tree) write(p, text string) {
	tr.files[p] = &node{data: text, info: FileInfo{Mode: 0o644}}
}

func (tr *tree) link(p, to string) { tr.files[p] = &node{link: to} }

func (tr *tree) remove(p string) {
	n := len(tr.files)
	for name := range tr.files {
		if name == p || strings.HasPrefix(name, p+"/") {
			delete(tr.files, name)
		}
	}
	if len(tr.files) == n {
		panic("nothing to remove at " + p)
	}
}

func (tr *tree) replace(p, old, new string) {
	n := tr.files[p]
	if n == nil || !strings.Contains(n.data, old) {
		panic(fmt.Sprintf("%s has no %q", p, old))
	}
	n.data = strings.Replace(n.data, old, new, 1)
}

func (tr *tree) at(p string) *node {
	n := tr.files[p]
	if n == nil {
		panic("there is no " + p)
	}
	return n
}
