package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// TestCapture looks up the paths that VMLOCKD_CAPTURE names, separated by blanks, on the machine it runs on, and writes what
// the kernel has answered to the file VMLOCKD_CAPTURE_TO, anonymised, as a tree of which testdata has more (see world). It
// does nothing without them. 'make capture' runs it in the nodes of the lab.
func TestCapture(t *testing.T) {
	paths, to := strings.Fields(os.Getenv("VMLOCKD_CAPTURE")), os.Getenv("VMLOCKD_CAPTURE_TO")
	if len(paths) == 0 || to == "" {
		return
	}
	tree, err := capture(&host, paths)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, txtar.Format(tree), 0o644); err != nil {
		t.Fatal(err)
	}
	// What was captured and what the product makes of it belong together.
	w := loadWorld(t, to)
	for _, want := range w.want {
		asked, _, _ := strings.Cut(want, " ")
		id, err := newResolver(w, Options{}).Identify(context.Background(), asked)
		if got := line(asked, id, err); got != want {
			t.Errorf("what has been captured is %s\nand by the replacements of its parts it is %s", got, want)
		}
	}
}

// recorder notes what is asked of a host.
type recorder struct {
	kernel
	mu     sync.Mutex // guards what follows
	asked  map[string]bool
	nodes  map[string]node
	follow map[string]string // symbolic links outside /sys, /proc and /dev
	walked map[string]bool
	ids    map[string]uint64
	attrs  map[string]string
	// noXattr are files that have not the attribute which was asked for.
	noXattr map[string]bool
	failed  error
}

func (r *recorder) at(path string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[path] = true
	return r.kernel.at(path)
}

func (r *recorder) look(path string) (node, error) {
	n, err := r.kernel.look(path)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.walked[path] = true
	switch kind := n.mode & unix.S_IFMT; {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil, kind != unix.S_IFBLK && kind != unix.S_IFREG:
		r.failed = errors.Join(r.failed, fmt.Errorf("%s: neither a block device nor a file: mode %o, %v", path, n.mode, err))
	default:
		r.nodes[path] = n
		r.walked[n.path] = true
	}
	return n, err
}

func (r *recorder) link(path string) string {
	to := r.kernel.link(path)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.walked[path] = true
	if to != "" {
		r.follow[path] = to
	}
	return to
}

func (r *recorder) fsid(path string) (uint64, error) {
	id, err := r.kernel.fsid(path)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[path], r.failed = id, errors.Join(r.failed, err)
	if r.noXattr[path] {
		r.failed = errors.Join(r.failed, fmt.Errorf("%s: what statfs(2) says of CephFS cannot be replaced: capture it with Linux 5.11 or newer", path))
	}
	return id, err
}

func (r *recorder) xattr(path, name string) (string, error) {
	value, err := r.kernel.xattr(path, name)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = errors.Join(r.failed, err)
	if r.noXattr[path] = value == ""; value != "" {
		r.attrs[path] = value
	}
	return value, err
}

// tree is what is written: by path, and in the order in which it is to be read.
type tree struct {
	links       map[string]string
	directories map[string][]string
	absent      map[string]bool
	files       map[string][]byte
}

func capture(h kernel, paths []string) (*txtar.Archive, error) {
	r := &recorder{kernel: h, asked: map[string]bool{}, nodes: map[string]node{}, follow: map[string]string{}, walked: map[string]bool{}, ids: map[string]uint64{}, attrs: map[string]string{}, noXattr: map[string]bool{}}
	a := newAnonymiser()
	var want []string
	for _, p := range paths {
		id, err := newResolver(r, Options{}).Identify(context.Background(), p)
		if err := errors.Join(err, r.failed); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		want = append(want, a.want(p, id))
	}
	t := &tree{links: map[string]string{}, directories: map[string][]string{}, absent: map[string]bool{}, files: map[string][]byte{}}
	for _, p := range slices.Sorted(maps.Keys(r.asked)) {
		if err := t.add(h, p); err != nil {
			return nil, err
		}
	}
	for p, to := range r.follow {
		t.links[p] = to
	}
	mounts, err := r.mountinfo(a)
	if err != nil {
		return nil, err
	}
	out := &txtar.Archive{}
	section := func(name string, lines []string) {
		if len(lines) > 0 {
			out.Files = append(out.Files, txtar.File{Name: name, Data: []byte(strings.Join(lines, "\n") + "\n")})
		}
	}
	section("look", r.lookLines(a))
	section("links", sorted(t.links, func(p, to string) string {
		if strings.HasPrefix(p, "/sys/") {
			return a.path(p)[1:] + " -> " + a.kernels(to)
		}
		return a.path(p)[1:] + " -> " + a.path(to)
	}))
	section("fsid", sorted(r.ids, func(p string, id uint64) string { return a.path(p) + " " + a.hex(fmt.Sprintf("%016x", id)) }))
	section("xattr", sorted(r.attrs, func(p, value string) string { return a.path(p) + " " + a.text(value) }))
	section("directories", sorted(t.directories, func(p string, names []string) string {
		var list []string
		for _, n := range names {
			list = append(list, path.Base(a.path(path.Join(p, n))))
		}
		return strings.Join(append([]string{a.path(p)[1:]}, list...), " ")
	}))
	section("absent", sorted(t.absent, func(p string, _ bool) string { return a.path(p)[1:] }))
	section("mountinfo", mounts)
	for _, p := range slices.Sorted(maps.Keys(t.files)) {
		name, data := a.path(p)[1:], a.content(p, t.files[p])
		if len(data) > 0 && (data[len(data)-1] != '\n' || !utf8.Valid(data) || bytes.ContainsAny(data, "\x00\r")) || strings.HasPrefix(string(data), "-- ") {
			name, data = name+".hex", hexLines(data)
		}
		out.Files = append(out.Files, txtar.File{Name: name, Data: data})
	}
	section("want", want)
	if left := a.left(siteText(out)); len(left) > 0 {
		return nil, fmt.Errorf("these values are still in what was to be anonymised: %q", left)
	}
	return out, errors.Join(a.errs...)
}

// siteText is what may have something in it that is not the kernel's own, whose names may be words that
// somebody has used as well.
func siteText(tree *txtar.Archive) string {
	var b strings.Builder
	for _, f := range tree.Files {
		for line := range strings.Lines(string(f.Data)) {
			if (f.Name != "directories" && f.Name != "links" && f.Name != "absent") || !strings.HasPrefix(line, "sys/devices/") && !strings.HasPrefix(line, "sys/dev/") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func sorted[V any](m map[string]V, line func(string, V) string) (lines []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, line(k, m[k]))
	}
	return lines
}

func hexLines(data []byte) []byte {
	var b bytes.Buffer
	for part := range slices.Chunk(data, 16) {
		fmt.Fprintf(&b, "% x\n", part)
	}
	return b.Bytes()
}

// add notes what is at a path: each link on the way, and then the content of a file or the names in a directory, or that
// there is nothing: of a device in sysfs by all names of what it has.
func (t *tree) add(h kernel, p string) error {
	names := strings.Split(strings.Trim(path.Clean(p), "/"), "/")
	done := ""
	for i, name := range names {
		last := i == len(names)-1
		at := done + "/" + name
		st, err := os.Lstat(h.at(at))
		switch device := strings.HasPrefix(done, "/sys/devices/"); {
		case errors.Is(err, fs.ErrNotExist) && device:
			return t.list(h, done)
		case errors.Is(err, fs.ErrNotExist):
			t.absent[at] = true
			return nil
		case err != nil:
			return err
		case device && st.Mode().IsRegular():
			if err := t.list(h, done); err != nil {
				return err
			}
		}
		switch kind := st.Mode().Type(); {
		case kind == fs.ModeSymlink:
			to, err := os.Readlink(h.at(at))
			if err != nil {
				return err
			}
			t.links[at] = to
			if !path.IsAbs(to) {
				to = path.Join(done, to)
			}
			return t.add(h, path.Join(append([]string{to}, names[i+1:]...)...))
		case !last:
			done = at
		case kind == fs.ModeDir:
			return t.list(h, at)
		case kind.IsRegular():
			// One that cannot be read, as some drivers' attributes, says as much as an empty one.
			t.files[at], _ = os.ReadFile(h.at(at))
		default:
			t.files[at] = nil // a device, of which only the name counts
		}
	}
	return nil
}

func (t *tree) list(h kernel, dir string) error {
	if t.directories[dir] != nil {
		return nil
	}
	entries, err := os.ReadDir(h.at(dir))
	if err != nil {
		return err
	}
	t.directories[dir] = []string{}
	for _, e := range entries {
		t.directories[dir] = append(t.directories[dir], e.Name())
	}
	return nil
}

func (r *recorder) lookLines(a *anonymiser) []string {
	return sorted(r.nodes, func(p string, n node) string {
		s := a.path(p)
		if n.path != p {
			s += " -> " + a.path(n.path)
		}
		if n.mode&unix.S_IFMT == unix.S_IFBLK {
			return s + " block " + n.rdev.String()
		}
		return fmt.Sprintf("%s file %s %d %d", s, n.dev, n.ino, n.mount)
	})
}

// mountinfo are the lines of mounts that somebody has come past, and of others of the same file systems, without what
// the product does not read: the mount's parent, options of its own, and who shares it.
func (r *recorder) mountinfo(a *anonymiser) (out []string, err error) {
	table, err := r.kernel.mounts(true)
	if err != nil {
		return nil, err
	}
	matters := map[*mount]bool{}
	for p := range r.walked {
		matters[table.over(p)] = true
	}
	for _, n := range r.nodes {
		for _, m := range table.list {
			matters[m] = matters[m] || n.mode&unix.S_IFMT == unix.S_IFREG && m.dev == n.dev
		}
	}
	for _, m := range table.list {
		if matters[m] {
			out = append(out, fmt.Sprintf("%d 0 %s %s %s rw - %s %s %s", m.id, m.dev, escape(a.path(m.root)), escape(a.path(m.point)), m.fs, escape(a.text(m.source)), escape(a.options(m.options))))
		}
	}
	return out, nil
}

var escape = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace

// plainOption are those of file systems whose values tell nothing of anybody.
var plainOption = map[string]bool{"vers": true, "proto": true, "sec": true, "lookupcache": true, "local_lock": true, "cache": true, "iocharset": true,
	"errors": true, "data": true, "rw": true, "ro": true, "mode": true, "redirect_dir": true, "index": true, "xino": true, "metacopy": true, "cluster_stack": true}

// options are all of them, as which of them counts is the product's to know. Of a user's name or a password
// nothing is left, not even the length.
func (a *anonymiser) options(s string) string {
	var out []string
	for o := range strings.SplitSeq(s, ",") {
		key, value, given := strings.Cut(o, "=")
		switch {
		case strings.HasPrefix(o, "/"):
			o = a.text(o) // hostfs
		case key == "username" || key == "domain" || strings.HasPrefix(key, "pass") || strings.Contains(key, "secret") || strings.Contains(key, "cred"):
			continue
		case given && !plainOption[key]:
			o = key + "=" + a.text(value)
		}
		out = append(out, o)
	}
	return strings.Join(out, ",")
}

// want is a line for world.want.
func (a *anonymiser) want(p string, id Identity) string {
	id.Name = a.name(id.Name)
	return line(a.path(p), id, nil)
}

// name is that of a disk.
func (a *anonymiser) name(s string) string {
	if f := strings.SplitN(s, " ", 3); len(f) == 3 && f[0] == "overlay" {
		return f[0] + " " + f[1] + " " + a.path(f[2])
	}
	return a.text(s)
}
