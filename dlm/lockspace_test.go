package dlm_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const space = "test"

// within runs f in a bubble with a cluster; what f leaves behind fails the test.
func within(t *testing.T, nodes int, f func(t *testing.T, c *dlmtest.Cluster)) {
	t.Helper()
	fakeclock.Test(t, func(t *testing.T) { f(t, dlmtest.NewCluster(nodes)) })
}

func create(t *testing.T, k dlm.Kernel, opts dlm.Options) *dlm.Lockspace {
	t.Helper()
	ls, err := dlm.Create(t.Context(), k, space, opts)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := ls.Close(ctx); err != nil && !errors.Is(err, dlm.ErrUnsettled) {
			t.Error(err)
		}
		if s := ls.Stats(); s.Locks != 0 || s.InFlight != 0 || s.Queued != 0 || s.Unsettled != 0 {
			t.Errorf("after Close: %+v", s)
		}
	})
	return ls
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

// soon is a context that ends after d of the bubble's time.
func soon(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// on has a fault happen to writes of one kind, and notes all writes.
type recorder struct {
	mu  sync.Mutex // guards ops
	ops []string
}

func (r *recorder) fault(op string, f dlmtest.Fault) func(dlmtest.Op) dlmtest.Fault {
	return func(o dlmtest.Op) dlmtest.Fault {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ops = append(r.ops, o.Op)
		if o.Op == op {
			return f
		}
		return dlmtest.Fault{}
	}
}

func (r *recorder) count(op string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.ops {
		if o == op {
			n++
		}
	}
	return n
}

// The write is stuck when the context ends, and is granted afterwards.
func TestGrantAfterContext(t *testing.T) {
	for _, opts := range []dlm.LockOptions{{}, {NoQueue: true}, {NoQueue: true, Persistent: true}, {Persistent: true, LVB: true}} {
		within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
			ls := create(t, c.Node(1), dlm.Options{})
			gate := dlmtest.NewGate()
			c.Node(1).SetFault(new(recorder).fault("lock", dlmtest.Fault{Before: gate}))
			_, err := ls.Lock(soon(t, time.Second), "a", dlm.EX, opts)
			want(t, err, context.DeadlineExceeded)
			<-time.After(time.Second)
			if s := ls.Stats(); s.InFlight != 1 || s.Unsettled != 1 || s.OldestWrite != 2*time.Second || s.OldestUnsettled != time.Second {
				t.Fatalf("%+v: %+v", opts, s)
			}
			gate.Open()
			fakeclock.Wait()
			if s := ls.Stats(); s.Locks != 0 || s.Unsettled != 0 {
				t.Fatalf("%+v: %+v", opts, s)
			}
			if locks := c.Locks(space, "a"); locks != nil {
				t.Fatalf("%+v: left: %+v", opts, locks)
			}
		})
	}
}

// The write has returned, and the result comes after the context has ended.
func TestResultAfterContext(t *testing.T) {
	for _, opts := range []dlm.LockOptions{{}, {NoQueue: true, Persistent: true}, {Persistent: true}} {
		within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
			ls := create(t, c.Node(1), dlm.Options{})
			gate := dlmtest.NewGate()
			c.Node(1).SetFault(new(recorder).fault("lock", dlmtest.Fault{Result: gate}))
			_, err := ls.Lock(soon(t, time.Second), "a", dlm.EX, opts)
			want(t, err, context.DeadlineExceeded)
			if s := ls.Stats(); s.Unsettled != 1 {
				t.Fatalf("%+v: %+v", opts, s)
			}
			gate.Open()
			fakeclock.Wait()
			if s := ls.Stats(); s.Locks != 0 || s.Unsettled != 0 {
				t.Fatalf("%+v: %+v", opts, s)
			}
			if locks := c.Locks(space, "a"); locks != nil {
				t.Fatalf("%+v: left: %+v", opts, locks)
			}
		})
	}
}

// A request that may end by itself must not be released by number meanwhile.
func TestNoReleaseOfARefusal(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{})
		x, err := ls.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{})
		must(t, err)
		gate, rec := dlmtest.NewGate(), new(recorder)
		c.Node(1).SetFault(rec.fault("lock", dlmtest.Fault{Result: gate}))
		_, err = ls.Lock(soon(t, time.Second), "a", dlm.EX, dlm.LockOptions{NoQueue: true})
		want(t, err, context.DeadlineExceeded)
		<-time.After(time.Second)
		gate.Open()
		fakeclock.Wait()
		if s := ls.Stats(); s.Locks != 1 || s.Unsettled != 0 {
			t.Fatalf("%+v", s)
		}
		if n := rec.count("unlock") + rec.count("cancel"); n != 0 {
			t.Fatalf("the refused request was released: %v", rec.ops)
		}
		must(t, x.Unlock(t.Context()))
	})
}

func TestResultBeforeWriteReturns(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{})
		for _, op := range []string{"lock", "convert", "unlock"} {
			gate := dlmtest.NewGate()
			c.Node(1).SetFault(new(recorder).fault(op, dlmtest.Fault{After: gate}))
			var l *dlm.Lock
			done := make(chan error, 1)
			go func() {
				var err error
				if l, err = ls.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{}); err == nil {
					if err = l.Convert(t.Context(), dlm.PR, dlm.ConvertOptions{}); err == nil {
						err = l.Unlock(t.Context())
					}
				}
				done <- err
			}()
			fakeclock.Wait()
			if len(done) != 0 {
				t.Fatalf("%s: over before the write returned", op)
			}
			gate.Open()
			must(t, <-done)
		}
	})
}

// A busy resource of ours, so that another's conversion has to wait.
func converting(t *testing.T, c *dlmtest.Cluster) (ls *dlm.Lockspace, x *dlm.Lock, y *dlm.Lock) {
	t.Helper()
	ls = create(t, c.Node(1), dlm.Options{})
	x, err := ls.Lock(t.Context(), "a", dlm.PR, dlm.LockOptions{})
	must(t, err)
	y, err = ls.Lock(t.Context(), "a", dlm.PR, dlm.LockOptions{})
	must(t, err)
	return ls, x, y
}

// After a release has been written the number may be another lock's.
func TestNoCancelAfterRelease(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		_, x, _ := converting(t, c)
		rec := new(recorder)
		gate := dlmtest.NewGate()
		c.Node(1).SetFault(rec.fault("unlock", dlmtest.Fault{Result: gate}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 2)
		go func() { done <- x.Convert(ctx, dlm.EX, dlm.ConvertOptions{}) }()
		fakeclock.Wait()
		go func() { done <- x.Unlock(t.Context()) }()
		fakeclock.Wait()
		cancel() // the conversion has not ended yet
		want(t, <-done, context.Canceled)
		fakeclock.Wait()
		gate.Open()
		must(t, <-done)
		if n := rec.count("cancel"); n != 0 {
			t.Fatalf("%d cancels after the release: %v", n, rec.ops)
		}
	})
}

// The grant was faster than the cancel: the caller was told of a failure, but has the lock, in the new mode.
func TestCancelTooLate(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls, x, y := converting(t, c)
		gate := dlmtest.NewGate()
		c.Node(1).SetFault(new(recorder).fault("convert", dlmtest.Fault{Result: gate}))
		done := make(chan error, 1)
		go func() { done <- x.Convert(soon(t, time.Second), dlm.EX, dlm.ConvertOptions{}) }()
		fakeclock.Wait()
		must(t, y.Unlock(t.Context()))
		want(t, <-done, context.DeadlineExceeded)
		_, err := x.Settle(soon(t, time.Second))
		want(t, err, context.DeadlineExceeded)
		if s := ls.Stats(); s.Unsettled != 1 {
			t.Fatalf("%+v", s)
		}
		next := make(chan error, 1)
		go func() { next <- x.Convert(t.Context(), dlm.PW, dlm.ConvertOptions{}) }() // waits for that
		gate.Open()
		must(t, <-next)
		if m, err := x.Settle(t.Context()); err != nil || m != dlm.PW {
			t.Fatalf("the mode is %v, %v", m, err)
		}
	})
}

func TestBound(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{InFlight: 4})
		held, err := ls.Lock(t.Context(), "held", dlm.EX, dlm.LockOptions{})
		must(t, err)
		left, err := ls.Lock(t.Context(), "left", dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
		must(t, err)
		_ = left
		rec := new(recorder)
		c.Node(1).SetFault(rec.fault("", dlmtest.Fault{}))
		c.Suspend(space)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				_, err := ls.Lock(soon(t, time.Second), fmt.Sprint(i), dlm.EX, dlm.LockOptions{NoQueue: true})
				want(t, err, context.DeadlineExceeded)
			})
		}
		fakeclock.Wait()
		if s := ls.Stats(); s.InFlight != 4 || s.Queued != 6 {
			t.Fatalf("%+v", s)
		}
		released := make(chan error, 1)
		go func() { released <- held.Unlock(t.Context()) }()
		fakeclock.Wait()
		wg.Wait()
		if s := ls.Stats(); s.InFlight != 4 || s.Queued != 1 || s.Unsettled != 4 {
			t.Fatalf("those who gave up still wait: %+v", s)
		}
		_, err = ls.Adopt(t.Context(), "none", dlm.EX, dlm.LockOptions{}) // has a place of its own
		want(t, err, dlm.ErrNoOrphan)
		c.Resume(space)
		must(t, <-released)
		fakeclock.Wait()
		if s := ls.Stats(); s.Locks != 1 || s.Unsettled != 0 || s.InFlight != 0 {
			t.Fatalf("%+v", s)
		}
		if i := slices.Index(rec.ops, "unlock"); i != 5 { // after four locks and the adoption
			t.Errorf("the release was not first in line: %v", rec.ops)
		}
	})
}

func TestBusyIsTriedAgain(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{})
		l, err := ls.Lock(t.Context(), "a", dlm.PR, dlm.LockOptions{})
		must(t, err)
		busy := 3
		c.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if busy--; busy >= 0 {
				return dlmtest.Fault{Err: syscall.EBUSY}
			}
			return dlmtest.Fault{}
		})
		must(t, l.Convert(t.Context(), dlm.EX, dlm.ConvertOptions{}))
		busy = 1 << 30
		want(t, l.Convert(soon(t, time.Minute), dlm.PR, dlm.ConvertOptions{}), context.DeadlineExceeded)
		if s := ls.Stats(); s.Unsettled != 0 {
			t.Fatalf("nothing is under way: %+v", s)
		}
		done := make(chan error, 1)
		go func() { done <- l.Convert(t.Context(), dlm.PR, dlm.ConvertOptions{}) }()
		fakeclock.Wait()
		const force = 0x20000 // DLM_LKF_FORCEUNLOCK
		c.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if op.Flags&force == 0 {
				return dlmtest.Fault{Err: syscall.EBUSY}
			}
			return dlmtest.Fault{}
		})
		must(t, l.Unlock(t.Context()))
		want(t, <-done, dlm.ErrUnlocked)
	})
}

func TestReleaseFails(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{})
		l, err := ls.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{})
		must(t, err)
		fails := 1
		gate := dlmtest.NewGate()
		c.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if fails--; fails >= 0 {
				return dlmtest.Fault{Err: syscall.ENOMEM, Before: gate}
			}
			return dlmtest.Fault{}
		})
		// Nobody waits for it: tried again until it is done.
		want(t, l.Unlock(soon(t, time.Second)), context.DeadlineExceeded)
		gate.Open()
		<-time.After(time.Second)
		if s := ls.Stats(); s.Locks != 0 {
			t.Fatalf("%+v", s)
		}
		// Somebody waits: told, and still held.
		l, err = ls.Lock(t.Context(), "a", dlm.EX, dlm.LockOptions{})
		must(t, err)
		fails = 1
		want(t, l.Unlock(t.Context()), syscall.ENOMEM)
		must(t, l.Convert(t.Context(), dlm.EX, dlm.ConvertOptions{}))
		must(t, l.Unlock(t.Context()))
	})
}

func TestRequestFails(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{})
		c.Node(1).SetFault(new(recorder).fault("lock", dlmtest.Fault{Err: syscall.ENOMEM}))
		_, err := ls.Lock(t.Context(), "a\x00", dlm.EX, dlm.LockOptions{})
		want(t, err, syscall.ENOMEM)
		var op *dlm.OpError
		if !errors.As(err, &op) || op.Op != "lock" || op.Lockspace != space || op.Resource != "a\x00" {
			t.Fatalf("%#v", err)
		}
		if text := `dlm: lock lockspace "test" resource 6100: cannot allocate memory`; err.Error() != text {
			t.Errorf("the error says %s, want %s", err, text)
		}
		if s := ls.Stats(); s.Locks != 0 {
			t.Fatalf("%+v", s)
		}
		for name, l := range map[string]int{"": 0, "long": dlm.MaxResourceName + 1} {
			_, err := ls.Lock(t.Context(), string(make([]byte, l)), dlm.EX, dlm.LockOptions{})
			if !errors.Is(err, dlm.ErrInvalid) {
				t.Errorf("name %q: %v", name, err)
			}
		}
		_, err = ls.Lock(t.Context(), "a", 6, dlm.LockOptions{})
		want(t, err, dlm.ErrInvalid)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = ls.Lock(ctx, "a", dlm.EX, dlm.LockOptions{})
		want(t, err, context.Canceled)
	})
}
