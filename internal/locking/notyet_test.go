package locking_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

var errNoQuorum = fmt.Errorf("%w: no quorum", locking.ErrNotYet)

// lastTold is what Options.Later was told last.
func (w *world) lastTold() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.later
}

// The backend cannot say what is held. The Manager serves, lists what the journal
// has, and refuses it with the reason; nothing is called lost. Then it can.
func TestRestoreNotYet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p1, p2 := w.ps.Start(1), w.ps.Start(2)
		o := &orphanage{err: errNoQuorum, left: []orphan{{"id-a", ex}, {"id-b", sh}, {"id-c", ex}}}
		w.restoreFrom(o, false,
			entry(1, p1.StartTime(), "a", ex, locking.EntryGranted),
			entry(1, p1.StartTime(), "b", sh, locking.EntryGranted),
			entry(2, p2.StartTime(), "b", sh, locking.EntryGranted),
			entry(3, 0, "c", ex, locking.EntryIntended))
		w.toldIs()
		if n := w.lastTold(); n != 4 {
			t.Errorf("told of %d entries", n)
		}
		if why := w.m.NotYet(); !errors.Is(why, locking.ErrNotYet) || !strings.Contains(why.Error(), "no quorum") {
			t.Errorf("what waits is told as %v", why)
		}
		w.holders(disk("a"), 1)
		w.holders(disk("b"), 1, 2)
		if c := w.m.Counts(); c.Lost != 0 || c.Exclusive != 1 || c.Shared != 2 {
			t.Errorf("counts %+v", c)
		}
		g, _ := w.vm(4)
		for _, name := range []string{"a", "b", "c"} {
			start := time.Now()
			e := w.refused(g.Acquire(context.Background(), disk(name), sh, false), locking.KindUnavailable)
			if !errors.Is(e, locking.ErrNotYet) || !strings.Contains(e.Error(), "no quorum") || time.Since(start) > 0 {
				t.Errorf("%s: refused after %v: %v", name, time.Since(start), e)
			}
		}
		w.told()
		o.knows()
		time.Sleep(time.Second) // by the bubble's clock: until the backend is asked again
		settle()
		w.toldIs(locking.TakenBack, locking.TakenBack, locking.TakenBack, locking.ReleasedUntold)
		if n := w.lastTold(); n != -4 {
			t.Errorf("told of %d entries at the end", n)
		}
		if why := w.m.NotYet(); why != nil {
			t.Errorf("all is taken back, and %v", why)
		}
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": ex, "id-b": sh})
		w.holders(disk("b"), 1, 2)
		w.acquire(g, disk("b"), sh)
		w.acquire(g, disk("c"), ex)
		w.refused(g.Acquire(context.Background(), disk("a"), ex, false), locking.KindBusy)
		w.told()
		p1.Kill()
		p2.Kill()
		w.release(g, disk("b"))
		w.release(g, disk("c"))
		g.Close()
		settle()
		w.empty()
	})
}

// What is given back, by its owner, its death or an operator, before the backend
// can say whether it is held, is released then and not before, and nobody else
// gets it meanwhile.
func TestRestoreNotYetAndGivenBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p1, p2, p3 := w.ps.Start(1), w.ps.Start(2), w.ps.Start(3)
		o := &orphanage{err: errNoQuorum, left: []orphan{{"id-a", ex}, {"id-b", ex}, {"id-c", sh}}}
		w.restoreFrom(o, false,
			entry(1, p1.StartTime(), "a", ex, locking.EntryGranted),
			entry(2, p2.StartTime(), "b", ex, locking.EntryGranted),
			entry(1, p1.StartTime(), "c", sh, locking.EntryGranted),
			entry(2, p2.StartTime(), "c", sh, locking.EntryGranted),
			entry(3, p3.StartTime(), "c", sh, locking.EntryGranted))
		g := w.register(1)
		e := w.refused(g.Release(context.Background(), disk("a")), locking.KindUnavailable)
		if !errors.Is(e, locking.ErrUnderway) || !strings.Contains(e.Error(), "no quorum") {
			t.Errorf("release: %v", e)
		}
		w.toldIs(locking.Released)
		w.refused(g.Release(context.Background(), disk("a")), locking.KindUnavailable)
		p2.Kill()
		settle()
		w.toldIs(locking.OwnerGone, locking.ReleasedGone, locking.ReleasedGone)
		if _, err := w.m.ForceRelease(context.Background(), disk("c"), func(h locking.Holder) bool { return h.Owner.PID == 3 }, true); !errors.Is(err, locking.ErrUnderway) {
			t.Errorf("by force: %v", err)
		}
		w.toldIs(locking.Forced)
		w.journalled(locking.EntryReleasing, locking.EntryReleasing, locking.EntryGranted, locking.EntryReleasing, locking.EntryReleasing)
		w.refused(g.Acquire(context.Background(), disk("b"), ex, false), locking.KindUnavailable)
		w.toldIs(locking.Refused)
		o.knows()
		time.Sleep(time.Second) // by the bubble's clock: until the backend is asked again
		settle()
		w.toldIs(locking.TakenBack, locking.ReleasedUntold, locking.ReleasedUntold, locking.ReleasedUntold, locking.ReleasedUntold)
		w.journalled(locking.EntryGranted)
		w.b.CheckQuiet(map[string]locking.Mode{"id-c": sh})
		w.holders(disk("c"), 1)
		g.Close()
		p1.Kill()
		settle()
		w.told()
		w.empty()
	})
}

// What turns out not to be held is lost only then.
func TestRestoreNotYetAndLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		o := &orphanage{err: errNoQuorum}
		w.restoreFrom(o, false, entry(1, p.StartTime(), "a", ex, locking.EntryGranted))
		w.toldIs()
		o.knows()
		time.Sleep(time.Second) // by the bubble's clock: until the backend is asked again
		settle()
		w.toldIs(locking.Lost)
		if c := w.m.Counts(); c.Lost != 1 {
			t.Errorf("counts %+v", c)
		}
		p.Kill()
		settle()
		w.told()
		w.empty()
	})
}

// With doubt an entry that was being acquired may be in use; of two modes one is held.
func TestRestoreNotYetWithDoubt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		o := &orphanage{err: errNoQuorum, left: []orphan{{"id-a", ex}, {"id-b", sh}}}
		w.restoreFrom(o, true,
			entry(1, p.StartTime(), "a", ex, locking.EntryIntended),
			entry(1, p.StartTime(), "b", ex, locking.EntryReleasing),
			entry(1, p.StartTime(), "b", sh, locking.EntryGranted))
		o.knows()
		time.Sleep(time.Second) // by the bubble's clock: until the backend is asked again
		settle()
		w.toldIs(locking.TakenBack, locking.TakenBack)
		if c := w.m.Counts(); c.Lost != 0 || c.Exclusive != 1 || c.Shared != 1 {
			t.Errorf("counts %+v", c)
		}
		w.journalled(locking.EntryGranted, locking.EntryGranted)
		p.Kill()
		settle()
		w.told()
		w.empty()
	})
}

// A Manager that is closed before that leaves all of it to the next one.
func TestRestoreNotYetAndClosed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		o := &orphanage{err: errNoQuorum}
		w.restoreFrom(o, false, entry(1, p.StartTime(), "a", ex, locking.EntryGranted), entry(2, 0, "b", ex, locking.EntryIntended))
		if err := w.m.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.journalled(locking.EntryGranted, locking.EntryIntended)
		w.holders(disk("a"), 1)
		p.Kill()
	})
}

// While the backend is unsettled about one request, refusals of which it is certain
// leave nothing in the journal.
func TestNotAskedIsForgotten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		w.m.Restore(context.Background(), unsettled{w.b}, nil, nil, false)
		g := w.register(1)
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), fmt.Errorf("stopped: %w", locking.ErrNotAsked), 100)
		for range 100 {
			w.refused(g.Acquire(context.Background(), disk("a"), ex, false), locking.KindSystem)
		}
		w.journalled()
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), errIO, 1)
		w.refused(g.Acquire(context.Background(), disk("a"), ex, false), locking.KindSystem)
		w.journalled(locking.EntryIntended)
		g.Close()
		p.Kill()
		settle()
		w.told()
	})
}

// unsettled is a backend with a request that never has an outcome.
type unsettled struct{ *locktest.Backend }

func (unsettled) Restore(context.Context, []locking.Held) []locking.Restored { return nil }
func (unsettled) Unsettled() int                                             { return 1 }
