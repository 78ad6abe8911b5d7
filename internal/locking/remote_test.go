package locking_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func remote(name, host string, node uint32) locking.RemoteHolder {
	return locking.RemoteHolder{
		Holder: locking.Holder{Owner: locking.Owner{PID: 799, Name: name, UUID: [16]byte{0xbe}}, Since: noon},
		Node:   node, Host: host,
	}
}

func TestRemoteHoldersInText(t *testing.T) {
	const about = "(uuid be000000-0000-0000-0000-000000000000, pid 799, exclusive since 2026-11-23T12:00:00Z)"
	many := func(n int) (list []locking.RemoteHolder) {
		for i := range n {
			list = append(list, remote(fmt.Sprint("vm", i), "", uint32(i+1)))
		}
		return list
	}
	for _, tc := range []struct {
		list []locking.RemoteHolder
		want string
	}{
		{nil, ": held on another host of the cluster"},
		{[]locking.RemoteHolder{remote("web", "kvm1", 1)}, " by virtual machine web " + about + " on host kvm1 (node 1)"},
		{[]locking.RemoteHolder{remote("", "", 1)}, " by a virtual machine " + about + " on node 1"},
		{[]locking.RemoteHolder{remote("", "kvm1", 0)}, " by a virtual machine " + about + " on host kvm1"},
		{[]locking.RemoteHolder{remote("", "", 0)}, " by a virtual machine " + about + " on another host"},
		{many(2), " by virtual machine vm0 " + about + " on node 1, virtual machine vm1 " + about + " on node 2"},
		{[]locking.RemoteHolder{remote("a\n\xff\x1b[2J", "", 1)}, " by virtual machine a???[2J " + about + " on node 1"},
	} {
		e := &locking.Error{Kind: locking.KindBusy, Ref: disk("/x"), Remote: tc.list, Err: errors.New("held on another host of the cluster")}
		if got, want := e.Error(), "Lockspace resource '/x' is locked"+tc.want; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	e := &locking.Error{Kind: locking.KindBusy, Remote: many(7)}
	if text := e.Error(); !strings.HasSuffix(text, " and 3 more") || strings.Contains(text, "vm4") {
		t.Error(text)
	}
	e.Remote = []locking.RemoteHolder{remote(strings.Repeat("x", 70000), strings.Repeat("y", 70000), 1)}
	if n := len(e.Error()); n > 1000 {
		t.Errorf("a name from another host makes the text %d bytes long", n)
	}
}

// finder is a refusal that takes its time to find out who holds the resource.
type finder struct {
	began chan struct{}
	found chan []locking.RemoteHolder // nil: never
}

func (finder) Error() string        { return "held elsewhere" }
func (finder) Is(target error) bool { return target == locking.ErrBusy }

func (f finder) FindHolders(ctx context.Context) []locking.RemoteHolder {
	close(f.began)
	select {
	case list := <-f.found:
		return list
	case <-ctx.Done():
		return nil
	}
}

// Who is to be granted the resource does not wait for what others are still told
// of its last holder.
func TestHoldersAreFoundOutOfTurn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		me, _ := w.vm(10)
		defer me.Close()
		f := finder{began: make(chan struct{}), found: make(chan []locking.RemoteHolder)}
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), f, 1)
		refused := make(chan error, 1)
		go func() { refused <- me.Acquire(t.Context(), disk("a"), locking.Exclusive, false) }()
		<-f.began
		w.journalled()
		w.acquire(me, disk("a"), locking.Exclusive)
		w.release(me, disk("a"))
		f.found <- []locking.RemoteHolder{remote("web", "kvm1", 1)}
		e := w.refused(<-refused, locking.KindBusy)
		if len(e.Remote) != 1 || e.Remote[0].Host != "kvm1" || !strings.Contains(e.Error(), "virtual machine web") {
			t.Errorf("%v: %v", e, e.Remote)
		}
	})
}

// A look-up that does not end makes no other refusal of it.
func TestHoldersAreNotFound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		me, _ := w.vm(10)
		defer me.Close()
		f := finder{began: make(chan struct{})}
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), f, 1)
		start := time.Now()
		e := w.refused(me.Acquire(t.Context(), disk("a"), locking.Exclusive, false), locking.KindBusy)
		if took := time.Since(start); took != requestTimeout || len(e.Remote) > 0 {
			t.Errorf("after %v: %v", took, e)
		}
		if got, want := e.Error(), "Lockspace resource 'a' is locked: held elsewhere"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		fakeclock.Wait()
	})
}

// sharing is a backend whose locks others elsewhere may share.
type sharing struct {
	locking.Backend
	f finder
}

type sharedHandle struct {
	locking.Handle
	f finder
}

func (b sharing) Open(ctx context.Context, ref locking.Ref, autocreate bool) (locking.Handle, error) {
	h, err := b.Backend.Open(ctx, ref, autocreate)
	return sharedHandle{h, b.f}, err
}

func (h sharedHandle) Sharers() locking.HolderFinder { return h.f }

// Who wants alone what is shared on several hosts is told of all of them, also on
// a host that is one of them, and others do not wait for that.
func TestSharersElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := finder{began: make(chan struct{}), found: make(chan []locking.RemoteHolder)}
		m := locking.New(locking.Options{Backend: sharing{w.b, f}, Processes: w.ps, RequestTimeout: requestTimeout})
		defer m.Close(context.Background())
		register := func(pid int32) *locking.Registration {
			w.ps.Start(pid)
			g, err := m.Register(locking.Owner{PID: pid, Name: "here"})
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		one, two := register(10), register(11)
		for _, err := range []error{
			one.Acquire(t.Context(), disk("a"), locking.Shared, false), one.Acquire(t.Context(), disk("b"), locking.Exclusive, false),
			// An exclusive holder is alone: nobody elsewhere is asked for.
			two.Acquire(t.Context(), disk("b"), locking.Exclusive, false),
		} {
			if err != nil && !strings.HasSuffix(err.Error(), "on this host") {
				t.Error(err)
			}
		}
		refused := make(chan error, 1)
		go func() { refused <- two.Acquire(t.Context(), disk("a"), locking.Exclusive, false) }()
		<-f.began
		if err := two.Acquire(t.Context(), disk("a"), locking.Shared, false); err != nil {
			t.Error(err)
		}
		f.found <- []locking.RemoteHolder{remote("web", "kvm2", 2), remote("db", "kvm3", 3)}
		text := (<-refused).Error()
		for _, want := range []string{"is locked by virtual machine here (", "on this host, and by virtual machine web (", "on host kvm2 (node 2), virtual machine db", "on host kvm3 (node 3)"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in %s", want, text)
			}
		}
		for _, g := range []*locking.Registration{one, two} {
			if err := g.Release(t.Context(), disk("a")); err != nil {
				t.Error(err)
			}
		}
		if err := one.Release(t.Context(), disk("b")); err != nil {
			t.Error(err)
		}
		one.Close()
		two.Close()
	})
}

func TestHandlesAreDescribed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		before := time.Now()
		w.ps.Start(1)
		w.restoreFrom(&orphanage{left: []orphan{{"id-a", ex}}}, false,
			locking.Entry{State: locking.EntryGranted, Ref: disk("a"), Owner: locking.Owner{PID: 1, Name: "old"}, OwnerStart: 1})
		time.Sleep(time.Minute) // by the bubble's clock
		one, _ := w.vm(10)
		two, _ := w.vm(11)
		w.acquire(one, disk("b"), locking.Exclusive)
		w.acquire(one, disk("c"), locking.Shared)
		w.acquire(two, disk("c"), locking.Shared)
		got := w.b.Described()
		for id, want := range map[string]locktest.Description{
			"id-a": {Owner: locking.Owner{PID: 1, Name: "old"}, Since: before},
			"id-b": {Owner: one.Owner(), Since: time.Now()},
			"id-c": {Owner: one.Owner(), Since: time.Now()},
		} {
			if got[id].Owner != want.Owner || !got[id].Since.Equal(want.Since) {
				t.Errorf("%s is described as of %v since %v, want %v since %v", id, got[id].Owner, got[id].Since, want.Owner, want.Since)
			}
		}
		for _, g := range []*locking.Registration{one, two} {
			w.release(g, disk("c"))
		}
		w.release(one, disk("b"))
		one.Close()
		two.Close()
	})
}
