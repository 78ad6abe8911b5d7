package locking_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// Each row is a request that is refused, with all the reasons to refuse it that
// come later in virtlockd's order present as well, where they can be.
func TestRefusals(t *testing.T) {
	ctx := context.Background()
	elsewhere := locking.Ref{Lockspace: "/none", Name: "a"}
	type request = func(w *world, me, other *locking.Registration, mine *locktest.Process) error
	rows := []struct {
		name   string
		do     request
		kind   locking.Kind
		text   string // how the message begins
		asked  int64  // calls of the backend
		events []locking.EventKind
	}{
		{"acquire in an unknown lockspace, by an owner that is gone",
			func(w *world, me, _ *locking.Registration, p *locktest.Process) error {
				p.Kill()
				return me.Acquire(ctx, elsewhere, locking.Exclusive, true)
			}, locking.KindNoLockspace, "Lockspace for path /none does not exist", 0,
			[]locking.EventKind{locking.Refused}},
		{"acquire of what is held", func(_ *world, me, _ *locking.Registration, _ *locktest.Process) error {
			return me.Acquire(ctx, disk("b"), locking.Exclusive, true)
		}, locking.KindBusy, "Lockspace resource 'b' is locked by virtual machine vm (uuid 00000000-0000-0000-0000-000000000000, pid 20, exclusive since ", 0,
			[]locking.EventKind{locking.Refused}},
		{"shared acquire of what is held exclusively", func(_ *world, me, _ *locking.Registration, _ *locktest.Process) error {
			return me.Acquire(ctx, disk("b"), locking.Shared, false)
		}, locking.KindBusy, "Lockspace resource 'b' is locked by ", 0, []locking.EventKind{locking.Refused}},
		{"exclusive acquire of what is shared", func(w *world, me, other *locking.Registration, _ *locktest.Process) error {
			w.acquire(other, disk("a"), locking.Shared)
			w.told()
			return me.Acquire(ctx, disk("a"), locking.Exclusive, false)
		}, locking.KindBusy, "Lockspace resource 'a' is locked by ", 2, []locking.EventKind{locking.Refused}},
		{"acquire again by its owner", func(_ *world, _, other *locking.Registration, _ *locktest.Process) error {
			return other.Acquire(ctx, disk("b"), locking.Exclusive, false)
		}, locking.KindBusy, "Lockspace resource 'b' is locked by ", 0, []locking.EventKind{locking.Refused}},
		{"exclusive acquire by the only one who shares it", func(w *world, me, _ *locking.Registration, _ *locktest.Process) error {
			w.acquire(me, disk("a"), locking.Shared)
			w.told()
			return me.Acquire(ctx, disk("a"), locking.Exclusive, false)
		}, locking.KindBusy, "Lockspace resource 'a' is locked by ", 2, []locking.EventKind{locking.Refused}},
		{"acquire of what another host holds", func(w *world, me, _ *locking.Registration, _ *locktest.Process) error {
			w.b.Outside("id-a", locking.Exclusive, true)
			return me.Acquire(ctx, disk("a"), locking.Exclusive, false)
		}, locking.KindBusy, "Lockspace resource 'a' is locked: held by another host or program (another host)", 2,
			[]locking.EventKind{locking.Refused}},
		{"acquire of what is missing", func(_ *world, me, _ *locking.Registration, _ *locktest.Process) error {
			return me.Acquire(ctx, disk("new"), locking.Exclusive, false)
		}, locking.KindSystem, "Unable to acquire 'new': open: file does not exist", 1, []locking.EventKind{locking.Refused}},
		{"acquire that the backend refuses in its own words", func(w *world, me, _ *locking.Registration, _ *locktest.Process) error {
			own := &locking.Error{Kind: locking.KindInvalid, Op: "acquire", Ref: disk("a"), Err: errors.New("a bad name")}
			w.b.Fail(locktest.On(locktest.OpOpen, "a"), fmt.Errorf("wrapped: %w", own), 1)
			return me.Acquire(ctx, disk("a"), locking.Exclusive, false)
		}, locking.KindInvalid, "Unable to acquire 'a': a bad name", 1, []locking.EventKind{locking.Refused}},
		{"release in an unknown lockspace", func(_ *world, me, _ *locking.Registration, _ *locktest.Process) error {
			return me.Release(ctx, elsewhere)
		}, locking.KindNoLockspace, "Lockspace for path /none does not exist", 0, nil},
		{"release of what nobody holds", func(_ *world, me, _ *locking.Registration, _ *locktest.Process) error {
			return me.Release(ctx, disk("a"))
		}, locking.KindNotLocked, "Lockspace resource 'a' is not locked", 0, nil},
		{"release of what another one holds", func(_ *world, me, _ *locking.Registration, _ *locktest.Process) error {
			return me.Release(ctx, disk("b"))
		}, locking.KindNotOwner, "owner 10 does not hold the resource lock", 0, nil},
		{"release under another name than it was acquired under",
			func(w *world, _, other *locking.Registration, _ *locktest.Process) error {
				w.b.Point(disk("alias"), "id-b")
				return other.Release(ctx, disk("alias"))
			}, locking.KindNotLocked, "Lockspace resource 'alias' is not locked", 0, nil},
		{"create resource in an unknown lockspace", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			return w.m.CreateResource(ctx, elsewhere)
		}, locking.KindNoLockspace, "Lockspace for path /none does not exist", 0, nil},
		{"create resource that is held", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			return w.m.CreateResource(ctx, disk("b"))
		}, locking.KindBusy, "Lockspace resource 'b' is locked by ", 0, nil},
		{"create resource that the system refuses", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			w.b.Fail(locktest.On(locktest.OpCreateResource, "x"), fmt.Errorf("open: %w", syscall.EROFS), 1)
			return w.m.CreateResource(ctx, disk("x"))
		}, locking.KindSystem, "Unable to create resource 'x': open: read-only file system", 1, nil},
		{"delete resource in an unknown lockspace", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			return w.m.DeleteResource(ctx, elsewhere)
		}, locking.KindNoLockspace, "Lockspace for path /none does not exist", 0, nil},
		{"delete resource that is held", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			return w.m.DeleteResource(ctx, disk("b"))
		}, locking.KindBusy, "Lockspace resource 'b' is locked by ", 0, nil},
		{"delete resource that is held under another name", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			w.b.Point(disk("alias"), "id-b")
			return w.m.DeleteResource(ctx, disk("alias"))
		}, locking.KindBusy, "Lockspace resource 'alias' is locked by ", 1, nil},
		{"new default lockspace", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			return w.m.NewLockspace(ctx, "")
		}, locking.KindDefaultLockspace, "the default lockspace already exists", 0, nil},
		{"new lockspace that exists", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			return w.m.NewLockspace(ctx, "/ls")
		}, locking.KindLockspaceExists, "Lockspace for path /ls already exists", 0, nil},
		{"new lockspace that the system refuses", func(w *world, _, _ *locking.Registration, _ *locktest.Process) error {
			w.b.Fail(locktest.On(locktest.OpCreateLockspace, "/x"), syscall.ENOTDIR, 1)
			return w.m.NewLockspace(ctx, "/x")
		}, locking.KindSystem, "Unable to create lockspace '/x': not a directory", 1, nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if err := w.m.CreateLockspace(ctx, "/ls"); err != nil {
					t.Fatal(err)
				}
				me, mine := w.vm(10)
				other, _ := w.vm(20)
				w.acquire(other, disk("b"), locking.Exclusive)
				held := w.b.Locked()
				w.told()
				calls := w.b.Calls()
				err := row.do(w, me, other, mine)
				e := w.refused(err, row.kind)
				if !strings.HasPrefix(e.Error(), row.text) {
					t.Errorf("the message is %q, want one that begins with %q", e, row.text)
				}
				if got := w.b.Calls() - calls; got != row.asked {
					t.Errorf("the backend was asked %d times, want %d", got, row.asked)
				}
				w.toldIs(row.events...)
				for id, mode := range held {
					if got, ok := w.b.Locked()[id]; !ok || got != mode {
						t.Errorf("the refusal changed the lock of %s", id)
					}
				}
				w.holders(disk("b"), 20)
			})
		})
	}
}

func TestOwnerGoneIsRefusedBeforeTheResource(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		other, _ := w.vm(20)
		w.acquire(other, disk("b"), locking.Exclusive)
		me, p := w.vm(10)
		p.Kill()
		settle()
		calls := w.b.Calls()
		e := w.refused(me.Acquire(context.Background(), disk("b"), locking.Exclusive, false), locking.KindOwnerGone)
		if want := "Lockspace resource 'b' was not locked: its owner, process 10, has ended"; e.Error() != want {
			t.Errorf("the message is %q, want %q", e, want)
		}
		if w.b.Calls() != calls {
			t.Error("the backend was asked for an owner that is gone")
		}
	})
}

func TestRefusalNamesHoldersOldestFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for pid := int32(1); pid <= 6; pid++ {
			g, _ := w.vm(pid)
			w.acquire(g, disk("a"), locking.Shared)
			advance(time.Second)
		}
		me, _ := w.vm(10)
		e := w.refused(me.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindBusy)
		if len(e.Holders) != 6 {
			t.Fatalf("%d holders, want 6", len(e.Holders))
		}
		at := -1
		for pid := 1; pid <= 4; pid++ {
			next := strings.Index(e.Error(), fmt.Sprintf("pid %d, shared since", pid))
			if next <= at {
				t.Fatalf("pid %d is not named in order: %s", pid, e)
			}
			at = next
		}
		if !strings.HasSuffix(e.Error(), " and 2 more on this host") {
			t.Errorf("the rest is not counted: %s", e)
		}
		if e.Unwrap() != nil {
			t.Errorf("a refusal by the rules has a cause: %v", e.Unwrap())
		}
	})
}

func TestErrorKeepsTheErrno(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), fmt.Errorf("lock: %w", syscall.ENOLCK), 1)
		g, _ := w.vm(1)
		err := g.Acquire(context.Background(), disk("a"), locking.Exclusive, false)
		w.refused(err, locking.KindSystem)
		if !errors.Is(err, syscall.ENOLCK) {
			t.Errorf("%v does not wrap ENOLCK", err)
		}
	})
}

func TestLockspaces(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		if err := w.m.CreateLockspace(ctx, ""); err != nil {
			t.Errorf("create of the default lockspace: %v", err)
		}
		if err := w.m.NewLockspace(ctx, "/ls"); err != nil {
			t.Fatal(err)
		}
		calls := w.b.Calls()
		if err := w.m.CreateLockspace(ctx, "/ls"); err != nil {
			t.Errorf("create again: %v", err)
		}
		if w.b.Calls() != calls {
			t.Error("the backend was asked for a lockspace that exists")
		}
		g, _ := w.vm(1)
		ref := locking.Ref{Lockspace: "/ls", Name: "x"}
		if err := g.Acquire(ctx, ref, locking.Exclusive, true); err != nil {
			t.Fatalf("acquire in a new lockspace: %v", err)
		}
		w.holders(ref, 1)

		// What failed does not exist.
		w.b.Fail(locktest.On(locktest.OpCreateLockspace, "/bad"), errIO, 1)
		w.refused(w.m.CreateLockspace(ctx, "/bad"), locking.KindSystem)
		w.refused(g.Acquire(ctx, locking.Ref{Lockspace: "/bad", Name: "x"}, locking.Exclusive, true), locking.KindNoLockspace)

		w.m.AddLockspaces(locking.MaxLockspaces)
		calls = w.b.Calls()
		w.refused(w.m.CreateLockspace(ctx, "/one/more"), locking.KindInvalid)
		if w.b.Calls() != calls {
			t.Error("the backend was asked for a lockspace too many")
		}
	})
}

func TestNewLockspaceByTwoAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		gate := w.b.Block(locktest.On(locktest.OpCreateLockspace, "/ls"))
		one := start(func() error { return w.m.NewLockspace(context.Background(), "/ls") })
		two := start(func() error { return w.m.NewLockspace(context.Background(), "/ls") })
		gate.Arrived()
		gate.Arrived()
		gate.Open()
		a, b := <-one, <-two
		if a == nil {
			a, b = b, a
		}
		if b != nil {
			t.Fatalf("neither made it: %v, %v", a, b)
		}
		w.refused(a, locking.KindLockspaceExists)
	})
}

func TestAfterClose(t *testing.T) {
	ctx := context.Background()
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		if err := w.m.Close(ctx); err != nil {
			t.Fatal(err)
		}
		calls := w.b.Calls()
		_, err := w.m.Register(locking.Owner{PID: 1})
		w.refused(err, locking.KindUnavailable)
		_, err = w.m.Register(locking.Owner{PID: 2})
		w.refused(err, locking.KindUnavailable)
		w.refused(g.Acquire(ctx, disk("b"), locking.Exclusive, false), locking.KindUnavailable)
		w.refused(g.Release(ctx, disk("a")), locking.KindUnavailable)
		w.refused(w.m.CreateLockspace(ctx, "/x"), locking.KindUnavailable)
		w.refused(w.m.NewLockspace(ctx, "/x"), locking.KindUnavailable)
		w.refused(w.m.CreateResource(ctx, disk("x")), locking.KindUnavailable)
		w.refused(w.m.DeleteResource(ctx, disk("x")), locking.KindUnavailable)
		w.told()
		g.Disconnected()
		g.Close()
		settle()
		w.toldIs()
		if w.b.Calls() != calls {
			t.Error("the backend was asked after Close")
		}
		w.holders(disk("a"), 1)
	})
}

func TestUUID(t *testing.T) {
	u := [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 1, 2, 3, 4, 5, 6, 0xff}
	if got, want := locking.FormatUUID(u), "01234567-89ab-cdef-0001-0203040506ff"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
