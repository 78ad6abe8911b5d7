package dlm_test

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// Close undoes what is under way, first of all persistent requests, which would outlive it.
func TestCloseSettles(t *testing.T) {
	within(t, 2, func(t *testing.T, c *dlmtest.Cluster) {
		a, b := create(t, c.Node(1), dlm.Options{}), create(t, c.Node(2), dlm.Options{})
		x, err := a.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{})
		must(t, err)
		y, err := b.Lock(t.Context(), "b", dlm.PR, dlm.LockOptions{NoQueue: true, Persistent: true})
		must(t, err)
		_, err = a.Lock(t.Context(), "b", dlm.PR, dlm.LockOptions{})
		must(t, err)
		gate := dlmtest.NewGate()
		c.Node(2).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if op.Name == "late" {
				return dlmtest.Fault{Result: gate}
			}
			return dlmtest.Fault{}
		})
		var wg sync.WaitGroup
		for _, f := range []func() error{
			func() error { _, err := b.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{}); return err },
			func() error { return y.Convert(t.Context(), dlm.EX, dlm.ConvertOptions{}) },
			func() error {
				_, err := b.Lock(t.Context(), "late", dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
				return err
			},
		} {
			wg.Go(func() { want(t, f(), dlm.ErrClosed) })
		}
		fakeclock.Wait()
		closed := make(chan error, 1)
		go func() { closed <- b.Close(t.Context()) }()
		wg.Wait() // callers are free at once
		fakeclock.Wait()
		if len(closed) != 0 {
			t.Fatal("Close did not wait for a request without an outcome")
		}
		gate.Open()
		must(t, <-closed)
		if locks := c.Locks(space, "late"); locks != nil {
			t.Fatalf("left: %+v", locks)
		}
		if locks := c.Locks(space, "b"); len(locks) != 2 || !locks[0].Orphan && !locks[1].Orphan {
			t.Fatalf("the persistent lock is not an orphan: %+v", locks)
		}
		if m := x.Mode(); m != dlm.EX {
			t.Fatal(m)
		}
		want(t, y.Unlock(t.Context()), dlm.ErrClosed)
		_, err = y.Settle(t.Context())
		want(t, err, dlm.ErrClosed)
		want(t, b.Purge(t.Context(), 0), dlm.ErrClosed)
		_, err = b.Adopt(t.Context(), "b", dlm.PR, dlm.LockOptions{})
		want(t, err, dlm.ErrClosed)
	})
}

func TestCloseLeavesUnsettled(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{InFlight: 1})
		held, err := ls.Lock(t.Context(), "held", dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
		must(t, err)
		c.Suspend(space)
		_, err = ls.Lock(soon(t, time.Second), "doubt", dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
		want(t, err, context.DeadlineExceeded)
		released := make(chan error, 1)
		go func() { released <- held.Unlock(t.Context()) }()
		fakeclock.Wait()

		ctx := soon(t, time.Second)
		want(t, ls.Close(ctx), context.DeadlineExceeded)
		want(t, ls.Close(ctx), context.DeadlineExceeded)
		want(t, ls.Leave(ctx, true), context.DeadlineExceeded)
		fakeclock.Wait() // the device is being closed
		c.Resume(space)
		want(t, ls.Close(t.Context()), dlm.ErrUnsettled)
		want(t, <-released, dlm.ErrClosed) // it had not begun
		// Both may be orphans, and are: the package could not do more, and has said so.
		ls, err = dlm.Open(t.Context(), c.Node(1), space, dlm.Options{})
		must(t, err)
		for _, name := range []string{"held", "doubt"} {
			l, err := ls.Adopt(t.Context(), name, dlm.EX, dlm.LockOptions{})
			must(t, err)
			must(t, l.Unlock(t.Context()))
		}
		must(t, ls.Leave(t.Context(), false))
	})
}

// The device fails: everything ends, and only Close is left.
func TestBroken(t *testing.T) {
	within(t, 2, func(t *testing.T, c *dlmtest.Cluster) {
		a, b := create(t, c.Node(1), dlm.Options{}), create(t, c.Node(2), dlm.Options{})
		x, err := a.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{Notify: true})
		must(t, err)
		y, err := b.Lock(t.Context(), "b", dlm.EX, dlm.LockOptions{Notify: true})
		must(t, err)
		done := make(chan error, 1)
		go func() { _, err := b.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{}); done <- err }()
		fakeclock.Wait()
		c.Node(2).PowerOff()
		want(t, <-done, dlm.ErrBroken)
		_, err = b.Lock(t.Context(), "c", dlm.EX, dlm.LockOptions{})
		want(t, err, dlm.ErrBroken)
		want(t, err, syscall.ESHUTDOWN)
		if _, ok := <-y.Blocking(); ok {
			t.Fatal("the lock has not ended")
		}
		must(t, b.Close(t.Context()))
		c.Recover()
		must(t, x.Unlock(t.Context()))
		_, err = a.Lock(t.Context(), "b", dlm.EX, dlm.LockOptions{NoQueue: true})
		must(t, err)
	})
}

func TestCreate(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		n := c.Node(1)
		for errno, sentinel := range map[syscall.Errno]error{syscall.EUNATCH: dlm.ErrNoDaemon, syscall.ENOTCONN: dlm.ErrNoDaemon, syscall.EPERM: dlm.ErrPrivilege, syscall.ENOMEM: syscall.ENOMEM} {
			n.SetFault(new(recorder).fault("create", dlmtest.Fault{Err: errno}))
			_, err := dlm.Create(t.Context(), n, space, dlm.Options{})
			want(t, err, sentinel)
			want(t, err, errno)
		}
		for _, name := range []string{"", "a/b", "..", "a b", "\x01", string(make([]byte, dlm.MaxLockspaceName+1))} {
			_, err := dlm.Create(t.Context(), n, name, dlm.Options{})
			want(t, err, dlm.ErrInvalid)
			_, err = dlm.Open(t.Context(), n, name, dlm.Options{})
			want(t, err, dlm.ErrInvalid)
			want(t, dlm.Remove(t.Context(), n, name, false), dlm.ErrInvalid)
		}

		// However often it is tried while the kernel is busy with it, the kernel is asked once.
		gate, rec := dlmtest.NewGate(), new(recorder)
		n.SetFault(rec.fault("create", dlmtest.Fault{Before: gate}))
		for range 3 {
			_, err := dlm.Create(soon(t, time.Second), n, space, dlm.Options{})
			want(t, err, context.DeadlineExceeded)
		}
		gate.Open()
		fakeclock.Wait()
		if n := rec.count("create"); n != 1 {
			t.Fatalf("%d creations", n)
		}
		ls := create(t, n, dlm.Options{})
		if ls.Name() != space {
			t.Fatal(ls.Name())
		}
		n.SetFault(new(recorder).fault("remove", dlmtest.Fault{Err: syscall.EBUSY}))
		want(t, ls.Leave(t.Context(), false), dlm.ErrLockspaceUse)
		want(t, dlm.Remove(soon(t, time.Millisecond), n, space, false), context.DeadlineExceeded)
	})
}
