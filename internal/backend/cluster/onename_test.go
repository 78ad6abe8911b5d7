package cluster_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/identity"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// naming is a way in which files get their names.
type naming struct {
	name string
	rule identity.RuleText // with the zero one there is no rule; "DIR" in its path is the directory
	// byInode says that an inode has its name whether it is held or not, so that what
	// nobody holds is granted. Where the path makes the name, a file is refused too whose
	// path is that of a disk which is held.
	byInode bool
	// shared says that both hosts have the files: what one of them holds, the other does
	// not get. Else each has files of its own. Between hosts nothing but the inode tells
	// that two paths lead to one file, so where the path makes the name one host is looked at.
	shared bool
}

// TestOneNameAtATime renames, links and removes files at random, while two hosts open,
// lock and release them by any of their paths, and daemons are killed. The files are real
// ones and so is what tells them apart; the DLM is simulated. Never do two hold one inode
// against each other, and what is held keeps the name that it was locked by.
func TestOneNameAtATime(t *testing.T) {
	checks := "100"
	if testenv.WithRace { // that the detector sees the code; 'make unit' does all of them without
		checks = "20"
	}
	given := flag.Lookup("rapid.checks").Value.String()
	_ = flag.Set("rapid.checks", checks)
	defer func() { _ = flag.Set("rapid.checks", given) }()
	_ = flag.Set("rapid.nofailfile", "true")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(identity.Options{}).Identify(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []naming{
		// On an overlay, which a container may have below its temporary directory, this is by
		// the place in it.
		{name: "HostsOwn", byInode: !id.ByPath},
		{name: "HostsOwnByRule", rule: identity.RuleText{Path: "DIR/**", Scope: "host"}, byInode: !id.ByPath},
		{name: "Inode", rule: identity.RuleText{Type: id.Type, Scope: "cluster", Name: "site/{inode}"}, byInode: true, shared: true},
		{name: "Path", rule: identity.RuleText{Path: "DIR/**", Scope: "cluster"}},
		{name: "PathInAName", rule: identity.RuleText{Path: "DIR/**", Scope: "cluster", Name: "site/{rest}"}},
		// Of the paths to one file, some match and others do not.
		{name: "SomePaths", rule: identity.RuleText{Path: "DIR/*/d/*", Scope: "cluster", Name: "site/{rest}"}},
	} {
		t.Run(n.name, func(t *testing.T) {
			if n.rule.Path != "" {
				n.rule.Path = dir + n.rule.Path[len("DIR"):]
			}
			var told tally
			fakeclock.Test(t, func(t *testing.T) {
				rapid.Check(bubbled{t}, func(rt *rapid.T) { oneName(rt, n, dir, &told) })
			})
			t.Logf("%+v", told)
			if !t.Failed() && !testenv.WithRace && (told.Granted == 0 || told.Refused == 0 || told.Moved == 0 || told.Restarted == 0) {
				t.Error("so little was shown")
			}
		})
	}
}

// tally is what has happened in all rounds.
type tally struct {
	Granted, Refused int
	Moved            int // paths that were seen to lead to what is held by another path
	Restarted        int // locks that were taken back
}

// grip is a handle that is open, or a lock.
type grip struct {
	locking.Handle
	node int
	path string   // that was asked for
	file *os.File // so that the inode is nobody else's meanwhile, as QEMU does it
	ino  uint64
	id   string // at the time when it was opened
	mode locking.Mode
	held bool
}

// files is a directory and who has its files.
type files struct {
	*hosts
	rt    *rapid.T
	n     naming
	dir   string
	grips []*grip
	told  *tally
}

// names are the places of files, below a directory of each round. s leads to d.
var names = []string{"a", "b", "c", "d/a", "d/b", "e/a", "s/a", "s/b"}

func oneName(rt *rapid.T, n naming, parent string, told *tally) {
	dir, err := os.MkdirTemp(parent, "round")
	if err != nil {
		rt.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"d", "e"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			rt.Fatal(err)
		}
	}
	if err := os.Symlink("d", filepath.Join(dir, "s")); err != nil {
		rt.Fatal(err)
	}
	for _, name := range []string{"a", "b", "d/a"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			rt.Fatal(err)
		}
	}
	var options identity.Options
	if n.rule != (identity.RuleText{}) {
		rule, err := identity.NewRule(n.rule)
		if err != nil {
			rt.Fatal(err)
		}
		options.Rules = []identity.Rule{rule}
	}
	resolver := identity.New(options)
	w := &files{rt: rt, n: n, dir: dir, told: told, hosts: &hosts{t: rt, resolve: func(ctx context.Context, path string) (cluster.Disk, error) {
		// As internal/daemon does it.
		id, err := resolver.Identify(ctx, path)
		return cluster.Disk{Name: id.Name, Here: id.Scope == identity.Host, Local: id.Local, ByPath: id.ByPath}, err
	}}}
	w.boot(2)
	defer w.shut()
	two := func(what string, f func(from, to string) error) func(*rapid.T) {
		return func(*rapid.T) { _ = f(w.place(what+" of"), w.place(what+" to")) }
	}
	rt.Repeat(map[string]func(*rapid.T){
		"make": func(*rapid.T) {
			if f, err := os.OpenFile(w.place("new"), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
				f.Close()
			}
		},
		"rename":   two("rename", os.Rename),
		"link":     two("link", os.Link),
		"symlink":  two("symlink", os.Symlink),
		"exchange": two("exchange", func(a, b string) error { return unix.Renameat2(-1, a, -1, b, unix.RENAME_EXCHANGE) }),
		"exchange directories": func(*rapid.T) {
			_ = unix.Renameat2(-1, filepath.Join(dir, "d"), -1, filepath.Join(dir, "e"), unix.RENAME_EXCHANGE)
		},
		"remove":               func(*rapid.T) { _ = os.Remove(w.place("gone")) },
		"open":                 func(*rapid.T) { w.open() },
		"lock what was opened": func(*rapid.T) { w.lock() },
		"open and lock":        func(*rapid.T) { w.openAndLock() },
		"open and lock more":   func(*rapid.T) { w.openAndLock() }, // twice as often
		"end":                  func(*rapid.T) { w.end() },
		"restart":              func(*rapid.T) { w.restart() },
		"":                     func(*rapid.T) { w.check() },
	})
	for len(w.grips) > 0 {
		w.endOne(0)
	}
	for node := 1; node <= 2; node++ {
		if n := w.host(node).Known(); n != 0 {
			rt.Fatalf("%d things are known on node %d that nobody holds", n, node)
		}
	}
	if names := w.nodes.Names(space); len(names) > 0 {
		rt.Fatalf("locks are left on %v", names)
	}
}

// shut leaves nothing behind, also after a failure.
func (w *files) shut() {
	for _, g := range w.grips {
		g.file.Close()
	}
	for _, h := range w.list {
		_ = h.Close(context.Background(), false)
	}
}

func (w *files) place(label string) string {
	return filepath.Join(w.dir, rapid.SampledFrom(names).Draw(w.rt, label))
}

// path is a place, or another path to it.
func (w *files) path() string {
	p := w.place("path")
	switch rapid.IntRange(0, 2).Draw(w.rt, "way") {
	case 1:
		p = w.dir + "/d/../e/../" + p[len(w.dir)+1:]
	case 2:
		p = "/proc/self/root" + p
	}
	return p
}

func (w *files) node() int {
	if !w.n.shared && !w.n.byInode {
		return 1
	}
	return rapid.IntRange(1, 2).Draw(w.rt, "node")
}

// open opens a file of which there is one.
func (w *files) open() *grip {
	g := &grip{node: w.node(), path: w.path()}
	var err error
	if g.file, err = os.Open(g.path); err != nil {
		return nil
	}
	g.ino = inode(w.rt, g.file)
	if g.Handle, err = w.host(g.node).Open(context.Background(), ref(g.path), false); err != nil {
		w.rt.Fatalf("open %s: %v", g.path, err)
	}
	g.id = g.ID()
	w.grips = append(w.grips, g)
	return g
}

func (w *files) openAndLock() {
	if g := w.open(); g != nil {
		w.lockOne(g)
	}
}

func inode(rt *rapid.T, f *os.File) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		rt.Fatal(err)
	}
	return st.Ino
}

// against says that both cannot have their locks.
func (w *files) against(a, b *grip) bool {
	return a.ino == b.ino && (w.n.shared || a.node == b.node) && (a.mode == locking.Exclusive || b.mode == locking.Exclusive)
}

func (w *files) lock() {
	var idle []*grip
	for _, g := range w.grips {
		if !g.held {
			idle = append(idle, g)
		}
	}
	if len(idle) > 0 {
		w.lockOne(rapid.SampledFrom(idle).Draw(w.rt, "handle"))
	}
}

// lockOne asks for the lock of what was opened, by now or some time ago.
func (w *files) lockOne(g *grip) {
	g.mode = rapid.SampledFrom([]locking.Mode{locking.Exclusive, locking.Exclusive, locking.Shared}).Draw(w.rt, "mode")
	var against *grip
	for _, o := range w.grips {
		if o.held && w.against(g, o) {
			against = o
		}
	}
	err := g.Lock(context.Background(), g.mode)
	switch {
	case err == nil && against != nil:
		w.rt.Fatalf("%s on node %d and %s on node %d are inode %d, and locked as %s and %s at once", against.path, against.node, g.path, g.node, g.ino, against.id, g.ID())
	case err == nil:
		g.held = true
		w.told.Granted++
	case !errors.Is(err, locking.ErrBusy):
		w.rt.Fatalf("lock %s: %v", g.path, err)
	case against == nil && w.n.byInode:
		w.rt.Fatalf("%s on node %d is inode %d, which nobody holds, and refused: %v", g.path, g.node, g.ino, err)
	default:
		w.told.Refused++
	}
}

func (w *files) end() {
	if len(w.grips) > 0 {
		w.endOne(rapid.IntRange(0, len(w.grips)-1).Draw(w.rt, "which"))
	}
}

func (w *files) endOne(i int) {
	g := w.grips[i]
	w.grips = append(w.grips[:i:i], w.grips[i+1:]...)
	g.file.Close()
	if !g.held {
		g.Close()
		return
	}
	if err := g.Unlock(context.Background()); err != nil {
		w.rt.Fatalf("release %s: %v", g.path, err)
	}
}

// restart kills a daemon. What it held is taken back by what was noted of it; what was
// only open is not known any more.
func (w *files) restart() {
	node := w.node()
	var held []locking.Held
	var kept, others []*grip
	for _, g := range w.grips {
		switch {
		case g.node != node:
			others = append(others, g)
		case g.held:
			kept = append(kept, g)
			held = append(held, locking.Held{ID: g.id, Ref: ref(g.path), Mode: g.mode, Note: g.Handle.(locking.Noter).Note(), Told: true})
		default:
			g.file.Close()
		}
	}
	w.kill(node)
	w.start(node)
	for i, r := range w.host(node).Restore(context.Background(), held) {
		if r.Err != nil {
			w.rt.Fatalf("take %s back: %v", kept[i].path, r.Err)
		}
		kept[i].Handle = r.Handle
		w.told.Restarted++
	}
	w.grips = append(others, kept...)
}

// check looks whether what is held is so by the name that it had, and whether all
// paths to it have that name now, as far as one host can tell.
func (w *files) check() {
	locks := map[string]int{}
	for i, g := range w.grips {
		if now := g.ID(); now != g.id {
			w.rt.Fatalf("%s was opened as %s, and is %s now", g.path, g.id, now)
		}
		if !g.held {
			continue
		}
		locks[g.id]++
		for _, o := range w.grips[:i] {
			if o.held && w.against(g, o) {
				w.rt.Fatalf("two hold inode %d", g.ino)
			}
		}
	}
	for id, n := range locks {
		if kernel := w.nodes.Locks(space, id); len(kernel) != n {
			w.rt.Fatalf("%d locks are held as %s, and the kernel has %v", n, id, kernel)
		}
	}
	for _, name := range names {
		path := filepath.Join(w.dir, name)
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		ino := inode(w.rt, f)
		f.Close()
		for _, g := range w.grips {
			if !g.held || g.ino != ino {
				continue
			}
			disk, err := w.resolve(context.Background(), path)
			if err != nil {
				w.rt.Fatal(err)
			}
			name, err := w.host(g.node).DiskResource(context.Background(), disk)
			if err != nil || name != g.id {
				w.rt.Fatalf("inode %d is held as %s on node %d, and would be locked as %s now by the path %s (%v)", ino, g.id, g.node, name, path, err)
			}
			if path != g.path {
				w.told.Moved++
			}
		}
	}
}
