package identity

import (
	"bytes"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id      uint64
	dev     number
	root    string // what of the file system is mounted
	point   string
	fs      string
	source  string
	options string // of the file system, not of the mount
}

// option is a value of options, and whether it is there.
func (m *mount) option(name string) (value string, ok bool) {
	for o := range strings.SplitSeq(m.options, ",") {
		k, v, _ := strings.Cut(o, "=")
		if k == name {
			return v, true
		}
	}
	return "", false
}

// mountTable is a mount namespace, in the order in which the kernel lists it.
// It is never changed.
type mountTable struct {
	byID map[uint64]*mount
	list []*mount
}

// maxMounts bounds what is read. The kernel's own bound is 100,000 by default
// (sysctl fs.mount-max).
const maxMounts = 1 << 20

func parseMounts(text []byte) (*mountTable, error) {
	t := &mountTable{byID: map[uint64]*mount{}}
	for line := range bytes.Lines(text) {
		if len(t.list) == maxMounts {
			return nil, fmt.Errorf("there are more than %d mounts", maxMounts)
		}
		m, err := parseMount(strings.TrimSuffix(string(line), "\n"))
		if err != nil {
			return nil, fmt.Errorf("line %d of mountinfo: %w", len(t.list)+1, err)
		}
		t.list = append(t.list, m)
		t.byID[m.id] = m
	}
	return t, nil
}

func parseMount(line string) (*mount, error) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Split(before, " "), strings.Split(after, " ")
	if !ok || len(f) < 6 || len(g) < 2 {
		return nil, fmt.Errorf("%q is not as proc_pid_mountinfo(5) says", line)
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return nil, err
	}
	dev, err := parseNumber(f[2])
	if err != nil {
		return nil, err
	}
	m := &mount{id: id, dev: dev, root: unescape(f[3]), point: unescape(f[4]), fs: unescape(g[0]), source: unescape(g[1])}
	if len(g) > 2 {
		m.options = unescape(g[2])
	}
	return m, nil
}

func parseNumber(text string) (number, error) {
	major, minor, _ := strings.Cut(text, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return number{}, fmt.Errorf("device number %q: %w", text, err)
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return number{}, fmt.Errorf("device number %q: %w", text, err)
	}
	return number{uint32(a), uint32(b)}, nil
}

// unescape reads what the kernel writes for blanks and backslashes: \ and three
// octal digits (mangle_path in fs/seq_file.c).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// above is the mount point that a path is below, by its text alone.
func (t *mountTable) above(p string) string {
	if m := t.over(p); m != nil {
		return m.point
	}
	return "/"
}

// over is the mount there, the last of those at one point; nil if there is none.
func (t *mountTable) over(p string) (best *mount) {
	for _, m := range t.list {
		if (best == nil || len(m.point) >= len(best.point)) && below(m.point, p) {
			best = m
		}
	}
	return best
}

// below says whether p is dir or in it.
func below(dir, p string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir) && p[len(dir)] == '/'
}

// inside is the path in the file system that m is a mount of.
func (m *mount) inside(p string) (string, bool) {
	if !below(m.point, p) {
		return "", false
	}
	return path.Join(m.root, strings.TrimPrefix(p, m.point)), true
}

// first is p as the first mount of the same file system has it: bind mounts of one
// have one path then.
func (t *mountTable) first(m *mount, p string) string {
	in, ok := m.inside(p)
	if !ok {
		return p
	}
	for _, o := range t.list {
		if o.dev == m.dev && o.fs == m.fs && below(o.root, in) {
			if o == m {
				return p
			}
			return path.Join(o.point, strings.TrimPrefix(in, o.root))
		}
	}
	return p
}
