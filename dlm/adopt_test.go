package dlm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// An adoption whose caller has left is kept for the next one: it is somebody's lock.
func TestAdoptionAfterContext(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		p := c.Node(1).NewProcess()
		ls := create(t, p, dlm.Options{})
		opts := dlm.LockOptions{NoQueue: true, Persistent: true}
		for _, name := range []string{"a", "b"} {
			_, err := ls.Lock(t.Context(), name, dlm.EX, opts)
			must(t, err)
		}
		p.Kill()
		ls, err := dlm.Open(t.Context(), c.Node(1), space, dlm.Options{})
		must(t, err)
		t.Cleanup(func() { must(t, ls.Close(context.Background())) })
		gate := dlmtest.NewGate()
		c.Node(1).SetFault(new(recorder).fault("adopt", dlmtest.Fault{Before: gate}))
		for i, a := range ls.AdoptAll(soon(t, time.Second), []dlm.Adoption{{Name: "a", Mode: dlm.EX, Options: opts}, {Name: "b", Mode: dlm.EX, Options: opts}}) {
			if !errors.Is(a.Err, context.DeadlineExceeded) {
				t.Errorf("adoption %d: %+v", i, a)
			}
		}
		_, err = ls.Adopt(soon(t, time.Second), "b", dlm.EX, opts) // waits for its turn
		want(t, err, context.DeadlineExceeded)
		gate.Open()
		fakeclock.Wait()
		for _, name := range []string{"a", "b"} {
			l, err := ls.Adopt(t.Context(), name, dlm.EX, opts)
			must(t, err)
			must(t, l.Unlock(t.Context()))
		}
		_, err = ls.Adopt(t.Context(), "", dlm.EX, opts)
		want(t, err, dlm.ErrInvalid)
	})
}

// The kernel delivers no results about some orphans.
func TestReleaseWithoutResult(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		p := c.Node(1).NewProcess()
		opts := dlm.LockOptions{NoQueue: true, Persistent: true}
		_, err := create(t, p, dlm.Options{}).Lock(t.Context(), "a", dlm.EX, opts)
		must(t, err)
		p.Kill()
		ls, err := dlm.Open(t.Context(), c.Node(1), space, dlm.Options{})
		must(t, err)
		l, err := ls.Adopt(t.Context(), "a", dlm.EX, opts)
		must(t, err)
		late := dlmtest.NewGate()
		c.Node(1).SetFault(new(recorder).fault("unlock", dlmtest.Fault{Result: late}))
		must(t, l.Unlock(soon(t, time.Second)))
		want(t, l.Unlock(t.Context()), dlm.ErrUnlocked)
		c.Node(1).SetFault(nil)
		again, err := ls.Lock(t.Context(), "a", dlm.EX, opts)
		must(t, err)
		late.Open()
		fakeclock.Wait()
		must(t, again.Unlock(t.Context()))
		must(t, ls.Close(t.Context()))
	})
}

func TestPurgeAndContext(t *testing.T) {
	within(t, 1, func(t *testing.T, c *dlmtest.Cluster) {
		ls := create(t, c.Node(1), dlm.Options{InFlight: 1})
		c.Suspend(space)
		want(t, ls.Purge(soon(t, time.Second), 0), context.DeadlineExceeded)
		want(t, ls.Purge(soon(t, time.Second), 0), context.DeadlineExceeded) // did not even begin
		if s := ls.Stats(); s.InFlight != 1 || s.Queued != 0 {
			t.Fatalf("%+v", s)
		}
		c.Resume(space)
		must(t, ls.Purge(t.Context(), 0))
	})
}
