package identity

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// as is this host's own file system under another type.
type as struct {
	*thisHost
	fs string
}

func (a as) mounts(again bool) (*mountTable, error) {
	t, err := a.thisHost.mounts(again)
	if err != nil {
		return nil, err
	}
	out := &mountTable{byID: map[uint64]*mount{}}
	for _, m := range t.list {
		c := *m
		c.fs = a.fs
		out.list = append(out.list, &c)
		out.byID[c.id] = &c
	}
	return out, nil
}

func identify(t testing.TB, r *Resolver, path string) Identity {
	t.Helper()
	id, err := r.Identify(context.Background(), path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return id
}

func write(t testing.TB, path string) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPathsOfARealFile(t *testing.T) {
	dir := t.TempDir()
	a := write(t, filepath.Join(dir, "a b.img"))
	other := write(t, filepath.Join(dir, "other.img"))
	for link, err := range map[string]error{
		"soft":     os.Symlink(a, filepath.Join(dir, "soft")),
		"relative": os.Symlink("a b.img", filepath.Join(dir, "relative")),
		"twice":    os.Symlink("soft", filepath.Join(dir, "twice")),
		"hard":     os.Link(a, filepath.Join(dir, "hard")),
		"dir":      os.Symlink(dir, filepath.Join(dir, "dir")),
		"loop":     os.Symlink("loop", filepath.Join(dir, "loop")),
	} {
		if err != nil {
			t.Fatalf("%s: %v", link, err)
		}
	}
	r := newResolver(as{&host, "ext4"}, Options{})
	want := identify(t, r, a)
	if want.Scope != Host || want.Name == "" || want.Name != want.Local {
		t.Fatalf("a file: %+v", want)
	}
	for _, p := range []string{"soft", "relative", "twice", "hard", "dir/a b.img", "dir/dir/../" + filepath.Base(dir) + "/soft", ".//a b.img", "../" + filepath.Base(dir) + "/hard"} {
		if id := identify(t, r, dir+"/"+p); id.Name != want.Name {
			t.Errorf("%s: %q, and the file itself is %q", p, id.Name, want.Name)
		}
	}
	// As another mount namespace sees it.
	if id := identify(t, r, fmt.Sprintf("/proc/%d/root%s", os.Getpid(), a)); id.Name != want.Name {
		t.Errorf("through /proc/PID/root: %q", id.Name)
	}
	if id := identify(t, r, other); id.Name == want.Name {
		t.Error("two files have one name")
	}
	for _, p := range []string{"missing", "a b.img/x", "loop"} {
		if id := identify(t, r, dir+"/"+p); id.Scope != Cluster || !id.Doubt || id.Name != dir+"/"+p {
			t.Errorf("%s: %+v", p, id)
		}
	}
	for _, p := range []string{"/a\x00b", "/" + strings.Repeat("x", 4096)} {
		if id, err := r.Identify(context.Background(), p); err == nil {
			t.Errorf("%.10q is accepted: %+v", p, id)
		}
	}
}

func TestDevicesOfThisHost(t *testing.T) {
	if id := identify(t, New(Options{}), "/dev/null"); id.Scope != Cluster || !id.Doubt || id.Type != TypeCharacter || id.Local != "character device 1:3" {
		t.Errorf("/dev/null: %+v", id)
	}
	table, err := host.mounts(false)
	if err != nil || len(table.list) == 0 {
		t.Fatalf("no mounts: %v", err)
	}
	// Others may mount something meanwhile, but hardly each time.
	for range 10 {
		before := table
		if table, err = host.mounts(false); err != nil || table == before {
			break
		}
	}
	if again, err := host.mounts(false); err != nil || again != table {
		t.Errorf("the table was read again without a change: %v", err)
	}
}

// TestMountsAreSeen: a mount that comes or goes is in the table at once.
func TestMountsAreSeen(t *testing.T) {
	if os.Geteuid() != 0 { // CI is root
		t.Skip("only root may mount")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	outcome := make(chan error, 1)
	go onOwnThread(func() {
		outcome <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			h := &thisHost{from: fmt.Sprintf("/proc/self/task/%d/mountinfo", unix.Gettid())}
			defer func() { unix.Close(h.fd) }()
			for round := range 3 {
				for _, there := range []bool{false, true} {
					if there {
						if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
							return err
						}
					} else if round > 0 {
						if err := unix.Unmount(dir, 0); err != nil {
							return err
						}
					}
					table, err := h.mounts(false)
					if err != nil {
						return err
					}
					if got := table.above(dir+"/x") == dir; got != there {
						return fmt.Errorf("round %d: it is mounted: %v, and in the table: %v", round, there, got)
					}
					if again, err := h.mounts(false); err != nil || again != table {
						return fmt.Errorf("round %d: the table was read again without a change, %w", round, err)
					}
				}
			}
			return unix.Unmount(dir, 0)
		}()
	})
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
}

func TestOneNameAtATime(t *testing.T) {
	if testenv.WithRace { // that the detector sees the code; 'make unit' does all of them without
		given := flag.Lookup("rapid.checks").Value.String()
		_ = flag.Set("rapid.checks", "10")
		defer func() { _ = flag.Set("rapid.checks", given) }()
	}
	for _, fs := range []string{"ext4", "fuse.glusterfs", "beegfs"} {
		t.Run(fs, func(t *testing.T) {
			r := newResolver(as{&host, fs}, Options{})
			rapid.Check(t, func(t *rapid.T) { oneNameAtATime(t, r, false) })
		})
	}
	// Where the path is the name, the file is known by Local.
	for _, fs := range []string{"hostfs", "overlay"} {
		r := newResolver(as{&host, fs}, Options{})
		rapid.Check(t, func(t *rapid.T) { oneNameAtATime(t, r, true) })
	}
}

// oneNameAtATime renames and links files at random. After each step all paths of
// an inode have one name, which is that of no other, and the one that it had before.
func oneNameAtATime(t *rapid.T, r *Resolver, byLocal bool) {
	dir, err := os.MkdirTemp("", "identity")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	names := []string{"a", "b", "c", "d/a", "d/b", "e/a"}
	for _, d := range []string{"d", "e"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := func(label string) string { return filepath.Join(dir, rapid.SampledFrom(names).Draw(t, label)) }
	held := map[string]*os.File{} // by name of the identity: an open file keeps its inode
	defer func() {
		for _, f := range held {
			f.Close()
		}
	}()
	check := func() {
		heldAs := map[uint64]string{}
		for key, f := range held {
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			heldAs[st.Ino] = key
		}
		byInode := map[uint64]string{}
		byName := map[string]uint64{}
		for _, n := range names {
			p := filepath.Join(dir, n)
			var st unix.Stat_t
			if unix.Stat(p, &st) != nil {
				continue
			}
			id, err := r.Identify(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			name := id.Name
			if byLocal {
				name = id.Local
			}
			if had, ok := byInode[st.Ino]; ok && had != name {
				t.Fatalf("inode %d has the names %q and %q", st.Ino, had, name)
			}
			if ino, ok := byName[name]; ok && ino != st.Ino {
				t.Fatalf("%q is the name of the inodes %d and %d", name, ino, st.Ino)
			}
			byInode[st.Ino], byName[name] = name, st.Ino
			if had, ok := heldAs[st.Ino]; ok && had != name {
				t.Fatalf("inode %d is held as %q, and has the name %q now", st.Ino, had, name)
			}
			if f := held[name]; f != nil {
				var was unix.Stat_t
				if err := unix.Fstat(int(f.Fd()), &was); err != nil || was.Ino != st.Ino {
					t.Fatalf("%q is held, and another inode has that name now (%v)", name, err)
				}
			}
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"make": func(*rapid.T) {
			f, err := os.OpenFile(path("new"), os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				return
			}
			id, err := r.Identify(context.Background(), f.Name())
			name := id.Name
			if byLocal {
				name = id.Local
			}
			if err != nil || held[name] != nil {
				f.Close()
				return
			}
			held[name] = f
		},
		"rename":   func(*rapid.T) { _ = os.Rename(path("from"), path("to")) },
		"link":     func(*rapid.T) { _ = os.Link(path("from"), path("to")) },
		"symlink":  func(*rapid.T) { _ = os.Symlink(path("from"), path("to")) },
		"remove":   func(*rapid.T) { _ = os.Remove(path("gone")) },
		"exchange": func(*rapid.T) { _ = unix.Renameat2(-1, path("one"), -1, path("two"), unix.RENAME_EXCHANGE) },
		"": func(*rapid.T) {
			check()
		},
	})
}

func TestPickDesignator(t *testing.T) {
	page := func(ds ...[]byte) []byte {
		all := slices.Concat(ds...)
		return append([]byte{0, 0x83, byte(len(all) >> 8), byte(len(all))}, all...)
	}
	d := func(kind byte, value string) []byte { return append([]byte{1, kind, 0, byte(len(value))}, value...) }
	for _, tc := range []struct {
		name string
		page []byte
		want string
	}{
		{"empty", nil, ""},
		{"another page", append([]byte{0, 0x80, 0, 4}, "abcd"...), ""},
		{"the name string first", page(d(3, "\x60aaaaaaaaaaaaaaa"), d(8, "eui.0011223344556677\x00\x00")), "eui.0011223344556677"},
		{"NAA before EUI", page(d(2, "12345678"), d(3, "\x50aaaaaaa")), "naa.5061616161616161"},
		{"of the target port", page(d(0x13, "\x60aaaaaaaaaaaaaaa"), d(1, " VENDOR x ")), "t10. VENDOR x "},
		{"what cannot be printed", page(d(1, "A\tb\x01\\\"\x00")), `t10.A\tb\001\"\0`},
		{"the later one of two", page(d(3, "\x50aaaaaaa"), d(3, "\x50bbbbbbb")), "naa.5062626262626262"},
		{"NAA of this site after what its vendor says", page(d(1, "VENDOR x"), d(3, "\x30aaaaaaa")), "naa.3061616161616161"},
		{"what its vendor says after NAA of this site", page(d(3, "\x30aaaaaaa"), d(1, "VENDOR x")), "t10.VENDOR x"},
		{"but not if that is shorter", page(d(3, "\x30aaaaaaa"), d(1, "VENDOR")), "naa.3061616161616161"},
		{"a short name string after a long text", page(d(1, "VENDOR and a long number"), d(8, "eui.0011223344556677")), "t10.VENDOR and a long number"},
		{"NAA of a length that there is not", page(d(1, "VENDOR x"), d(3, "\x50aaaaaaaa")), "t10.VENDOR x"},
		{"longer than the page", page([]byte{1, 3, 0, 200, 0x60}), ""},
		{"longer than is there", append([]byte{0, 0x83, 0xff, 0xff}, d(2, "12345678")...), "eui.3132333435363738"},
		{"nothing in it", page(d(3, "")), ""},
	} {
		if got := pickDesignator(tc.page); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func FuzzPickDesignator(f *testing.F) {
	f.Add([]byte{0, 0x83, 0, 12, 1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7})
	f.Fuzz(func(t *testing.T, page []byte) {
		var got string
		testenv.Bounded(t, 20, len(page), func() { got = pickDesignator(page) })
		if len(got) > 4+2*255 && len(got) > 4+3*255 {
			t.Errorf("%d bytes of a designator of at most 255", len(got))
		}
	})
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("30 1 8:1 / /a\\040b rw shared:1 - ext4 /dev/sda1 rw,x=y\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var table *mountTable
		var err error
		testenv.Bounded(t, 1000, len(text), func() { table, err = parseMounts(text) })
		if err != nil {
			return
		}
		if len(table.list) > strings.Count(string(text), "\n")+1 {
			t.Fatalf("%d mounts in %d lines", len(table.list), strings.Count(string(text), "\n"))
		}
		for _, m := range table.list {
			table.above(m.point)
			table.first(m, m.point)
		}
	})
}

func TestParseMount(t *testing.T) {
	m, err := parseMount(`36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 shared:7 - nfs4 h:/a\040b rw,addr=192.0.2.1,serverino`)
	if err != nil || m.point != `/mnt 2\x` || m.source != "h:/a b" || m.root != "/mnt1" || m.dev != (number{98, 0}) {
		t.Fatalf("%+v, %v", m, err)
	}
	if v, ok := m.option("addr"); !ok || v != "192.0.2.1" {
		t.Errorf("addr is %q, %v", v, ok)
	}
	if in, ok := m.inside(`/mnt 2\x/y`); !ok || in != "/mnt1/y" {
		t.Errorf("inside: %q, %v", in, ok)
	}
	for _, l := range []string{"", "a", "36 35 98:0 / /", "36 35 98 / / rw - x y", "x 35 98:0 / / rw - x y"} {
		if m, err := parseMount(l); err == nil {
			t.Errorf("%q: %+v", l, m)
		}
	}
}
