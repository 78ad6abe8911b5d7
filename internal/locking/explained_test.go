package locking_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// waitsFor checks that not everything is taken back, and that the error names what is
// waited for and what to do.
func (w *world) waitsFor(words ...string) {
	w.t.Helper()
	e := w.refused(w.m.AllTakenBack(), locking.KindUnavailable)
	for _, word := range words {
		if !strings.Contains(e.Error(), word) {
			w.t.Errorf("%q is not in %q", word, e)
		}
	}
}

// What the journal tells of is not taken back before the Restore is over, nor while
// the backend cannot say what is held.
func TestAllTakenBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.waitsFor("still being taken back")
		p := w.ps.Start(1)
		o := &orphanage{err: errNoQuorum, left: []orphan{{"id-a", ex}, {"id-b", ex}}}
		w.restoreFrom(o, true,
			entry(1, p.StartTime(), "a", ex, locking.EntryGranted),
			entry(1, p.StartTime(), "b", ex, locking.EntryReleasing))
		w.waitsFor("no quorum", "vmlockctl status")
		// The backend adopts the locks at last, and that takes its time.
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-b"))
		o.knows()
		gate.Arrived()
		w.waitsFor("no quorum")
		gate.Open()
		settle()
		if err := w.m.AllTakenBack(); err != nil {
			t.Error(err)
		}
		p.Kill()
		settle()
		w.told()
		w.empty()
	})
}

// Nor is what could not be taken back, which may be held all the same, until it was
// given back.
func TestAllTakenBackButWhatIsLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		o := &orphanage{left: []orphan{{"id-a", ex}, {"id-b", ex}}, err: errIO}
		p := w.ps.Start(1)
		w.restoreFrom(o, true,
			entry(1, p.StartTime(), "a", ex, locking.EntryGranted),
			entry(1, p.StartTime(), "b", ex, locking.EntryGranted))
		w.waitsFor("(uuid 00000000-0000-0000-0000-000000000000, pid 1,", "end these virtual machines")
		p.Kill()
		settle()
		w.waitsFor("pid 1", "vmlockctl release")
		o.knows()
		if _, err := w.m.ForceRelease(context.Background(), disk("a"), nil, false); err != nil {
			t.Error(err)
		}
		w.waitsFor("pid 1")
		if _, err := w.m.ForceRelease(context.Background(), disk("b"), nil, false); err != nil {
			t.Error(err)
		}
		if err := w.m.AllTakenBack(); err != nil {
			t.Error(err)
		}
		w.told()
		w.empty()
	})
}

// A Manager that is closed leaves what waits to the next one, and so it is not taken back.
func TestAllTakenBackAndClosed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		w.restoreFrom(&orphanage{err: errNoQuorum}, true, entry(1, p.StartTime(), "a", ex, locking.EntryGranted))
		if err := w.m.Close(context.Background()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // by the bubble's clock: nobody asks again
		if err := w.m.AllTakenBack(); !errors.Is(err, locking.ErrNotYet) {
			t.Errorf("after Close: %v", err)
		}
		p.Kill()
	})
}
