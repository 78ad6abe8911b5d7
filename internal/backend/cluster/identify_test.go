package cluster_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// onDisks is onHosts with paths that lead to disks.
func onDisks(t *testing.T, n int, disks map[string]cluster.Disk, f func(*hosts)) {
	fakeclock.Test(t, func(t *testing.T) {
		hs := &hosts{t: t, disks: map[string]cluster.Disk{}}
		for path, d := range disks {
			hs.disks[path] = d
		}
		hs.boot(n)
		f(hs)
		hs.close()
	})
}

var (
	lv     = cluster.Disk{Name: "lvm:one", Local: "block device 253:0"}
	lvHere = cluster.Disk{Name: "lvm:one", Local: "block device 253:4"} // the same, with another number
	file   = cluster.Disk{Name: "file 8:1 131", Local: "file 8:1 131", Here: true}
	byPath = func(path, local string) cluster.Disk { return cluster.Disk{Name: path, Local: local, ByPath: true} }
)

// wantBusy fails unless the disk cannot be had.
func (hs *hosts) wantBusy(node int, name string, mode locking.Mode) {
	hs.t.Helper()
	h, err := hs.try(node, name, mode)
	if err == nil {
		hs.t.Errorf("%s is granted on node %d, and somebody has it", name, node)
		_ = h.Unlock(context.Background())
		return
	}
	h.Close()
	if !errors.Is(err, locking.ErrBusy) {
		hs.t.Fatalf("%s on node %d: %v", name, node, err)
	}
}

func (hs *hosts) unlock(h locking.Handle) {
	hs.t.Helper()
	if err := h.Unlock(context.Background()); err != nil {
		hs.t.Fatalf("unlock: %v", err)
	}
}

func TestOneDiskHasOneLockUnderAllPaths(t *testing.T) {
	onDisks(t, 2, map[string]cluster.Disk{"1/dev/dm-0": lv, "2/dev/dm-4": lvHere, "/dev/vg/web": lv}, func(hs *hosts) {
		h := hs.hold(1, "/dev/dm-0", locking.Exclusive, vm(1))
		hs.wantBusy(2, "/dev/dm-4", locking.Exclusive)
		hs.wantBusy(2, "/dev/vg/web", locking.Shared)
		hs.unlock(h)
		hs.unlock(hs.hold(2, "/dev/dm-4", locking.Exclusive, vm(2)))
	})
}

func TestPrivateDisksWithOnePathAreTwo(t *testing.T) {
	onDisks(t, 2, map[string]cluster.Disk{"/images/web.img": file, "/images/link.img": file}, func(hs *hosts) {
		one := hs.hold(1, "/images/web.img", locking.Exclusive, vm(1))
		two := hs.hold(2, "/images/web.img", locking.Exclusive, vm(2))
		if one.ID() == two.ID() {
			t.Errorf("two nodes have the one name %s", one.ID())
		}
		// For ever, as other names are: an upgrade must find it. From sha256sum.
		if want := "only-here-575c76aca33a6456c157a5115d31a249bb94df775b6b5fd9baec11"; one.ID() != want {
			t.Errorf("its name is %s, want %s", one.ID(), want)
		}
		again, err := hs.host(1).Open(context.Background(), ref("/images/link.img"), false)
		if err != nil || again.ID() != one.ID() {
			t.Fatalf("another link to it on the same host: %v", err)
		}
		again.Close()
		// It is a lock like others: it survives the daemon.
		hs.kill(1)
		hs.start(1)
		r := hs.host(1).Restore(context.Background(), []locking.Held{{ID: one.ID(), Ref: ref("/images/web.img"), Mode: locking.Exclusive}})[0]
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		hs.unlock(r.Handle)
		hs.unlock(two)
	})
}

func TestAPathThatLeadsElsewhereMovesNoLock(t *testing.T) {
	onDisks(t, 2, map[string]cluster.Disk{"/dev/x": lv, "/dev/vg/web": lv}, func(hs *hosts) {
		h := hs.hold(1, "/dev/x", locking.Exclusive, vm(1))
		hs.leads("/dev/x", cluster.Disk{Name: "lvm:two", Local: "block device 253:0"})
		hs.wantBusy(2, "/dev/vg/web", locking.Exclusive)
		other := hs.hold(2, "/dev/x", locking.Exclusive, vm(2))
		hs.kill(1)
		hs.start(1)
		r := hs.host(1).Restore(context.Background(), []locking.Held{{ID: h.ID(), Ref: ref("/dev/x"), Mode: locking.Exclusive}})[0]
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		hs.wantBusy(2, "/dev/vg/web", locking.Exclusive)
		hs.unlock(r.Handle)
		hs.unlock(hs.hold(2, "/dev/vg/web", locking.Exclusive, vm(2)))
		hs.unlock(other)
	})
}

func TestAPathAsANameIsThatOfTheThingWhileItIsHeld(t *testing.T) {
	onDisks(t, 1, map[string]cluster.Disk{"/srv/a": byPath("/srv/a", "file 0:45 7"), "/srv/b": byPath("/srv/b", "file 0:45 8")}, func(hs *hosts) {
		h := hs.hold(1, "/srv/a", locking.Exclusive, vm(1))
		// Renamed, and another one under its name.
		hs.leads("/srv/c", byPath("/srv/c", "file 0:45 7"))
		hs.leads("/srv/a", byPath("/srv/a", "file 0:45 9"))
		id := func(path string) string {
			o, err := hs.host(1).Open(context.Background(), ref(path), false)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			disk, err := hs.identify(1, path)
			if err != nil {
				t.Fatal(err)
			}
			if told, err := hs.host(1).DiskResource(context.Background(), disk); err != nil || told != o.ID() {
				t.Errorf("of %s it is told that %s is locked (%v), and a lock is on %s", path, told, err, o.ID())
			}
			return o.ID()
		}
		if id("/srv/c") != h.ID() {
			t.Error("the file has another name since it was renamed, and is held")
		}
		if id("/srv/b") == h.ID() {
			t.Error("another file has its name")
		}
		hs.unlock(h)
		if id("/srv/c") != cluster.ResourceName(ref("/srv/c")) {
			t.Error("nobody holds it any more, and it has the old name")
		}
		if n := hs.host(1).Known(); n != 0 {
			t.Errorf("%d things are known that nobody holds", n)
		}
	})
}

// In whatever order those end that stand for one thing, the others keep its name.
func TestTheThingIsKnownUntilTheLastEnds(t *testing.T) {
	onDisks(t, 1, map[string]cluster.Disk{"/srv/a": byPath("/srv/a", "file 0:45 7"), "/srv/b": byPath("/srv/b", "file 0:45 7")}, func(hs *hosts) {
		open := func(path string) locking.Handle {
			h, err := hs.host(1).Open(context.Background(), ref(path), false)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		for _, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			list := []locking.Handle{open("/srv/a"), open("/srv/b"), open("/srv/a")}
			for i, n := range order {
				list[n].Close()
				o := open("/srv/b")
				if same := o.ID() == list[0].ID(); same != (i < 2) {
					t.Errorf("order %v: after %d have ended the other path has the same name: %v", order, i+1, same)
				}
				o.Close()
			}
			if n := hs.host(1).Known(); n != 0 {
				t.Errorf("order %v: %d things are known that nobody holds", order, n)
			}
		}
	})
}

func TestADeviceNumberThatIsAnothersByNow(t *testing.T) {
	onDisks(t, 1, map[string]cluster.Disk{"/dev/a": lv}, func(hs *hosts) {
		h := hs.hold(1, "/dev/a", locking.Exclusive, vm(1))
		hs.leads("/dev/b", cluster.Disk{Name: "lvm:two", Local: lv.Local})
		other := hs.hold(1, "/dev/b", locking.Exclusive, vm(2))
		if other.ID() == h.ID() {
			t.Error("two volumes have one name because one has the other's old number")
		}
		hs.unlock(h)
		hs.unlock(other)
	})
}

// After a restart nobody gets what is held under another path, however long it takes
// to find out what the held path leads to.
func TestNothingIsOpenedBeforeWhatIsHeldIsKnown(t *testing.T) {
	onDisks(t, 1, map[string]cluster.Disk{"/srv/a": byPath("/srv/a", "file 0:45 7"), "/srv/link": byPath("/srv/link", "file 0:45 7")}, func(hs *hosts) {
		old := hs.hold(1, "/srv/a", locking.Exclusive, vm(1)).ID()
		hs.kill(1)
		slow := make(chan struct{})
		hs.mu.Lock()
		hs.slow = map[string]chan struct{}{"/srv/a": slow}
		hs.mu.Unlock()
		hs.start(1)
		r := hs.host(1).Restore(context.Background(), []locking.Held{{ID: old, Ref: ref("/srv/a"), Mode: locking.Exclusive}})[0]
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := hs.host(1).Open(ctx, ref("/srv/link"), false); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "from before vmlockd's restart") {
			t.Errorf("a path that may lead to a held disk: %v", err)
		}
		close(slow)
		o, err := hs.host(1).Open(context.Background(), ref("/srv/link"), false)
		if err != nil || o.ID() != old {
			t.Fatalf("the other path to what is held: %v, %v", o, err)
		}
		o.Close()
		hs.unlock(r.Handle)
	})
}

// What is noted of a lock tells after a restart what it stands for: its path is not
// looked at, which may hang, or lead elsewhere by now.
func TestWhatIsNotedNeedNotBeFoundOut(t *testing.T) {
	one, two := byPath("/srv/a", "file 0:45 7"), lv
	onDisks(t, 1, map[string]cluster.Disk{"/srv/a": one, "/srv/link": one, "/dev/x": two, "/dev/y": two}, func(hs *hosts) {
		var held []locking.Held
		for i, path := range []string{"/srv/a", "/dev/x"} {
			h := hs.hold(1, path, locking.Exclusive, vm(i+1))
			note := h.(locking.Noter).Note()
			if want := []string{"by path: file 0:45 7", "block device 253:0"}[i]; note != want {
				t.Errorf("of %s it is noted %q, want %q", path, note, want)
			}
			held = append(held, locking.Held{ID: h.ID(), Ref: ref(path), Mode: locking.Exclusive, Note: note})
		}
		hs.kill(1)
		hs.mu.Lock()
		hs.slow = map[string]chan struct{}{"/srv/a": make(chan struct{})} // for ever
		hs.mu.Unlock()
		hs.leads("/dev/x", cluster.Disk{Name: "lvm:other", Local: "block device 253:9"})
		hs.start(1)
		list := hs.host(1).Restore(context.Background(), held)
		for i, path := range []string{"/srv/link", "/dev/y"} {
			if list[i].Err != nil {
				t.Fatal(list[i].Err)
			}
			o, err := hs.host(1).Open(context.Background(), ref(path), false)
			if err != nil || o.ID() != held[i].ID {
				t.Fatalf("%s, another path to what is held: %v, %v", path, o, err)
			}
			o.Close()
			if again := list[i].Handle.(locking.Noter).Note(); again != held[i].Note {
				t.Errorf("for the next restart it is noted %q, want %q", again, held[i].Note)
			}
		}
		for _, r := range list {
			hs.unlock(r.Handle)
		}
		if n := hs.host(1).Known(); n != 0 {
			t.Errorf("%d things are known that nobody holds", n)
		}
	})
}

// What could not be taken back is found under its name by every path, until it is known
// whether it is held.
func TestWhatIsLostIsFoundByEveryPath(t *testing.T) {
	for _, isHeld := range []bool{true, false} {
		onDisks(t, 1, map[string]cluster.Disk{"/srv/a": byPath("/srv/a", "file 0:45 7"), "/srv/link": byPath("/srv/link", "file 0:45 7")}, func(hs *hosts) {
			h := hs.hold(1, "/srv/a", locking.Exclusive, vm(1))
			held := []locking.Held{{ID: h.ID(), Ref: ref("/srv/a"), Mode: locking.Exclusive, Note: h.(locking.Noter).Note(), Told: true}}
			if !isHeld {
				hs.unlock(h)
			}
			hs.kill(1)
			hs.host(1).setFault(func(op dlmtest.Op) (f dlmtest.Fault) {
				if op.Op == "adopt" {
					f.Err = syscall.EIO
				}
				return f
			})
			hs.start(1)
			id := func() string {
				o, err := hs.host(1).Open(context.Background(), ref("/srv/link"), false)
				if err != nil {
					t.Fatal(err)
				}
				defer o.Close()
				return o.ID()
			}
			for range 2 {
				if r := hs.host(1).Restore(context.Background(), held)[0]; !errors.Is(r.Err, syscall.EIO) {
					t.Fatalf("it could be asked for: %v", r.Err)
				}
				if id() != held[0].ID {
					t.Error("another path to what may be held has another name")
				}
			}
			hs.host(1).setFault(nil)
			r := hs.host(1).Restore(context.Background(), held)[0]
			if isHeld != (r.Err == nil) || !isHeld && !errors.Is(r.Err, locking.ErrNotHeld) {
				t.Fatal(r.Err)
			}
			// What is lost is taken anew, to keep others out.
			if r.Handle == nil {
				t.Fatal("nothing keeps others out")
			}
			if id() != held[0].ID {
				t.Error("another path to what is held has another name")
			}
			hs.unlock(r.Handle)
			if id() == held[0].ID {
				t.Error("nobody holds it any more, and it has the old name")
			}
			if n := hs.host(1).Known(); n != 0 {
				t.Errorf("%d things are known that nobody holds", n)
			}
		})
	}
}

// What the kernel has lost and another host has got is not taken from it.
func TestWhatIsLostIsTakenAnewOnlyIfItIsFree(t *testing.T) {
	onDisks(t, 2, map[string]cluster.Disk{"/srv/a": byPath("/srv/a", "file 0:45 7")}, func(hs *hosts) {
		for _, free := range []bool{false, true} {
			h := hs.hold(2, "/srv/a", locking.Exclusive, vm(2))
			held := []locking.Held{{ID: h.ID(), Ref: ref("/srv/a"), Mode: locking.Shared, Told: true}}
			if free {
				hs.unlock(h)
			}
			r := hs.host(1).Restore(context.Background(), held)[0]
			if !errors.Is(r.Err, locking.ErrNotHeld) || free != (r.Handle != nil) {
				t.Fatalf("free %v: %v, %v", free, r.Handle, r.Err)
			}
			if free {
				hs.unlock(r.Handle)
			} else {
				hs.unlock(h)
			}
			// Nobody counts on it.
			held[0].Told = false
			if r := hs.host(1).Restore(context.Background(), held)[0]; r.Handle != nil {
				t.Error("taken for nobody")
			}
		}
	})
}

// What a daemon that knew paths only has locked stays locked after the upgrade, on
// its own host and on others.
func TestLocksFromBeforeAnUpgrade(t *testing.T) {
	onDisks(t, 2, map[string]cluster.Disk{}, func(hs *hosts) {
		for _, tc := range []struct {
			held, asked locking.Mode
			busy        bool
		}{
			{locking.Exclusive, locking.Exclusive, true},
			{locking.Exclusive, locking.Shared, true},
			{locking.Shared, locking.Exclusive, true},
			{locking.Shared, locking.Shared, false},
		} {
			hs.leads("/dev/x", cluster.Disk{Name: "/dev/x"}) // as if it knew no better
			h := hs.hold(1, "/dev/x", tc.held, vm(1))
			old := h.ID()
			if old != cluster.ResourceName(ref("/dev/x")) {
				t.Fatalf("the name of an earlier daemon is %s", old)
			}
			hs.kill(1)
			hs.leads("/dev/x", lv)
			hs.leads("/dev/y", lv)
			hs.start(1)
			r := hs.host(1).Restore(context.Background(), []locking.Held{{ID: old, Ref: ref("/dev/x"), Mode: tc.held}})[0]
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			fakeclock.Wait()
			if tc.busy {
				hs.wantBusy(2, "/dev/x", tc.asked)
			} else {
				hs.unlock(hs.hold(2, "/dev/x", tc.asked, vm(2)))
			}
			o, err := hs.host(1).Open(context.Background(), ref("/dev/y"), false)
			if err != nil || o.ID() != old {
				t.Errorf("another path to it on its own host: %v, %v", o, err)
			}
			o.Close()
			hs.unlock(r.Handle)
			hs.unlock(hs.hold(2, "/dev/x", locking.Exclusive, vm(3)))
			if held := hs.nodes.Locks(space, old); len(held) != 0 {
				t.Errorf("%d locks have the old name", len(held))
			}
		}
	})
}

func TestWithoutAnIdentityNothingIsGranted(t *testing.T) {
	onDisks(t, 1, map[string]cluster.Disk{}, func(hs *hosts) {
		_, err := hs.host(1).Open(context.Background(), ref("/mnt/dead/web.img"), false)
		var e *locking.Error
		if !errors.As(err, &e) || e.Kind != locking.KindUnavailable || !strings.Contains(err.Error(), "its server does not answer") {
			t.Errorf("a path that cannot be looked at: %v", err)
		}
		// A lockspace's own names are nobody's paths.
		h, err := hs.host(1).Open(context.Background(), locking.Ref{Lockspace: "/dir", Name: "/mnt/dead/web.img"}, false)
		if err != nil || h.ID() != cluster.ResourceName(locking.Ref{Lockspace: "/dir", Name: "/mnt/dead/web.img"}) {
			t.Errorf("in a lockspace: %v", err)
		}
	})
}

func TestWithoutAnAnswerFromTheDLM(t *testing.T) {
	onDisks(t, 2, map[string]cluster.Disk{"/dev/x": lv}, func(hs *hosts) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		h, err := hs.host(1).Open(context.Background(), ref("/dev/x"), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Lock(ctx, locking.Exclusive); err == nil {
			t.Error("granted after its time")
		}
		h.Close()
		fakeclock.Wait()
		hs.unlock(hs.hold(2, "/dev/x", locking.Exclusive, vm(2)))
		for _, name := range []string{cluster.ResourceName(ref("/dev/x")), cluster.ResourceName(ref("lvm:one"))} {
			if held := hs.nodes.Locks(space, name); len(held) != 0 {
				t.Errorf("%d locks are left of %s", len(held), name)
			}
		}
	})
}
