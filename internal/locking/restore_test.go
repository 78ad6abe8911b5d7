package locking_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// orphanage is a backend that knows which locks outlived the process that took
// them, and gives back no others.
type orphanage struct {
	*locktest.Backend
	mu   sync.Mutex // guards what follows, once the Manager has it
	left []orphan
	err  error // of all that is asked for, while it is set
}

// knows ends err.
func (o *orphanage) knows() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = nil
}

type orphan struct {
	id   string
	mode locking.Mode
}

func (o *orphanage) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]locking.Restored, len(held))
	for i, h := range held {
		at := slices.Index(o.left, orphan{h.ID, h.Mode})
		switch {
		case o.err != nil:
			list[i].Err = o.err
		case at < 0:
			list[i].Err = fmt.Errorf("%w: no such orphan", locking.ErrNotHeld)
		default:
			o.left = slices.Delete(o.left, at, at+1)
			list[i] = keeper{o.Backend}.Restore(ctx, held[i:i+1])[0]
		}
	}
	return list
}

func (*orphanage) Unsettled() int { return 0 }

// restoreFrom starts with entries of a journal and locks that may be others.
func (w *world) restoreFrom(o *orphanage, doubt bool, entries ...locking.Entry) {
	o.Backend = w.b
	w.load(entries)
	w.m.Restore(context.Background(), o, entries, []string{"/restored"}, doubt)
	settle()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.left) > 0 && o.err == nil {
		w.t.Errorf("nobody has taken back %v", o.left)
	}
}

// load numbers entries, in this order, and has the journal know them.
func (w *world) load(entries []locking.Entry) {
	for i := range entries {
		e := &entries[i]
		e.Seq, e.ID, e.Since = uint64(i+1), w.b.Leads(e.Ref), time.Now()
	}
	w.j.Load(entries)
}

const (
	ex = locking.Exclusive
	sh = locking.Shared
)

func (w *world) journalled(want ...locking.EntryState) {
	w.t.Helper()
	var got []locking.EntryState
	for _, e := range w.j.Entries() {
		got = append(got, e.State)
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("the journal has entries in states %v, want %v", got, want)
	}
}

func TestRestoreSettles(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.restoreFrom(&orphanage{left: []orphan{{"id-a", ex}, {"id-b", sh}}}, false,
			entry(1, 0, "a", ex, locking.EntryIntended),  // granted, and nobody was told
			entry(1, 0, "b", sh, locking.EntryReleasing), // not released yet
			entry(1, 0, "c", ex, locking.EntryIntended),  // refused
			entry(1, 0, "c", ex, locking.EntryReleasing), // released
		)
		w.toldIs(locking.ReleasedUntold, locking.ReleasedUntold)
		w.empty()
	})
}

// Whoever was granted a shared lock keeps it, whatever others were about to do.
func TestRestoreOneOfEachState(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p2, p3 := w.ps.Start(2), w.ps.Start(3)
		w.restoreFrom(&orphanage{left: []orphan{{"id-a", sh}, {"id-a", sh}}}, false,
			entry(1, 0, "a", sh, locking.EntryIntended),
			entry(2, p2.StartTime(), "a", sh, locking.EntryGranted),
			entry(3, p3.StartTime(), "a", sh, locking.EntryGranted),
			entry(1, 0, "a", sh, locking.EntryReleasing))
		w.toldIs(locking.TakenBack, locking.TakenBack, locking.ReleasedUntold)
		w.holders(disk("a"), 2, 3)
		p2.Kill()
		settle()
		w.holders(disk("a"), 3)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": sh})
		p3.Kill()
		settle()
		w.empty()
	})
}

func TestRestoreWithDoubt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		at := p.StartTime()
		w.restoreFrom(&orphanage{left: []orphan{{"id-a", ex}, {"id-b", ex}, {"id-c", sh}, {"id-c", sh}}}, true,
			entry(1, at, "a", ex, locking.EntryIntended),
			entry(1, at, "b", ex, locking.EntryReleasing),
			entry(1, at, "c", sh, locking.EntryIntended),
			entry(1, at, "c", sh, locking.EntryGranted))
		w.toldIs(locking.TakenBack, locking.TakenBack, locking.TakenBack, locking.TakenBack)
		w.journalled(locking.EntryGranted, locking.EntryGranted, locking.EntryGranted, locking.EntryGranted)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": ex, "id-b": ex, "id-c": sh})
		g, _ := w.vm(2)
		for _, name := range []string{"a", "b", "c"} {
			w.refused(g.Acquire(context.Background(), disk(name), ex, false), locking.KindBusy)
		}
		p.Kill()
		settle()
		g.Close()
		w.empty()
	})
}

// A lock that is held in one mode was not lost in the other.
func TestRestoreTwoModesInDoubt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p1, p2 := w.ps.Start(1), w.ps.Start(2)
		w.restoreFrom(&orphanage{left: []orphan{{"id-a", sh}}}, true,
			entry(1, p1.StartTime(), "a", ex, locking.EntryGranted),
			entry(2, p2.StartTime(), "a", sh, locking.EntryIntended))
		w.toldIs(locking.TakenBack)
		w.holders(disk("a"), 2)
		w.journalled(locking.EntryGranted)
		p1.Kill()
		p2.Kill()
		settle()
		w.empty()
	})
}

func TestRestoreLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q := w.ps.Start(1), w.ps.Start(2)
		w.restoreFrom(&orphanage{}, false,
			entry(1, p.StartTime(), "a", ex, locking.EntryGranted),
			entry(2, q.StartTime(), "b", sh, locking.EntryGranted))
		w.toldIs(locking.Lost, locking.Lost)
		g, r := w.vm(3)
		for _, name := range []string{"a", "b"} {
			w.refused(g.Acquire(context.Background(), disk(name), sh, false), locking.KindUnavailable)
		}
		p.Kill()
		settle()
		w.acquire(g, disk("a"), ex)
		two := w.register(2)
		w.release(two, disk("b"))
		two.Close()
		w.acquire(g, disk("b"), ex)
		g.Close()
		r.Kill()
		q.Kill()
		settle()
		w.empty()
	})
}

// What could not be taken back may be held all the same: when its owner is gone
// it is released, and not only forgotten.
func TestRestoreFailsForAWhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		o := &orphanage{left: []orphan{{"id-a", ex}, {"id-b", ex}}, err: errIO}
		p := w.ps.Start(1)
		w.restoreFrom(o, false,
			entry(1, p.StartTime(), "a", ex, locking.EntryGranted),
			entry(1, p.StartTime(), "b", ex, locking.EntryReleasing))
		w.toldIs(locking.Lost, locking.ReleaseFailed)
		p.Kill()
		settle()
		w.toldIs(locking.OwnerGone, locking.ReleaseFailed)
		g, q := w.vm(2)
		for _, name := range []string{"a", "b"} {
			w.refused(g.Acquire(context.Background(), disk(name), ex, false), locking.KindUnavailable)
		}
		o.err = nil
		for _, name := range []string{"a", "b"} {
			w.acquire(g, disk(name), ex)
		}
		if len(o.left) > 0 {
			t.Errorf("nobody has released %v", o.left)
		}
		g.Close()
		q.Kill()
		settle()
		w.empty()
	})
}

// What a handle notes is in the journal with each of its locks, and with the backend after
// a restart.
func TestNotesComeBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for pid, name := range []string{"a", "b", "b"} {
			g, _ := w.vm(int32(pid + 1))
			w.acquire(g, disk(name), []locking.Mode{ex, sh, sh}[pid])
		}
		entries := w.j.Entries()
		if len(entries) != 3 {
			t.Fatalf("the journal has %+v", entries)
		}
		for _, e := range entries {
			if e.Note != "note of "+e.ID {
				t.Errorf("of %s it is noted %q", e.ID, e.Note)
			}
		}
		entries[2].State = locking.EntryReleasing
		r := &reads{}
		m := locking.New(locking.Options{Backend: w.b, Processes: w.ps})
		m.Restore(context.Background(), r, entries, nil, false)
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if len(r.held) != 3 {
			t.Fatalf("the backend was asked for %+v", r.held)
		}
		for _, h := range r.held {
			if h.Note != "note of "+h.ID {
				t.Errorf("with %s comes the note %q", h.ID, h.Note)
			}
		}
	})
}

// reads notes what is asked for, and has none of it.
type reads struct{ held []locking.Held }

func (r *reads) Restore(_ context.Context, held []locking.Held) []locking.Restored {
	r.held = append(r.held, held...)
	list := make([]locking.Restored, len(held))
	for i := range list {
		list[i].Err = locking.ErrNotHeld
	}
	return list
}

func (*reads) Unsettled() int { return 0 }

func TestRestoreLockspaces(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.restoreFrom(&orphanage{}, false)
		w.refused(w.m.NewLockspace(context.Background(), "/restored"), locking.KindLockspaceExists)
		w.refused(w.m.CreateResource(context.Background(), locking.Ref{Lockspace: "/other", Name: "a"}), locking.KindNoLockspace)
		w.empty()
	})
}

// An owner who could not be looked at keeps its locks until it is known what
// became of it.
func TestRestoreUnseenOwner(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(w *world, p *locktest.Process)
		held bool // afterwards, until the process ends
	}{
		{"it is looked for again", func(*world, *locktest.Process) { advance(2 * time.Second) }, true},
		{"it registers", func(w *world, _ *locktest.Process) { w.register(1).Close() }, true},
		{"it releases one", func(w *world, _ *locktest.Process) {
			g := w.register(1)
			w.release(g, disk("b"))
			g.Close()
		}, true},
		{"it has ended", func(_ *world, p *locktest.Process) { p.Kill(); advance(2 * time.Second) }, false},
		{"it has ended and somebody registers", func(w *world, p *locktest.Process) { p.Kill(); w.register(1).Close(); settle() }, false},
		{"its pid is used again", func(w *world, p *locktest.Process) { p.Kill(); w.ps.Start(1); advance(2 * time.Second) }, false},
		{"its pid is used again and registers", func(w *world, p *locktest.Process) {
			p.Kill()
			g, _ := w.vm(1)
			settle()
			g.Close()
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				p := w.ps.Start(1)
				w.ps.FailOpen(syscall.EMFILE)
				w.restoreFrom(&orphanage{left: []orphan{{"id-a", ex}, {"id-b", sh}}}, false,
					entry(1, p.StartTime(), "a", ex, locking.EntryGranted),
					entry(1, p.StartTime(), "b", sh, locking.EntryGranted))
				w.toldIs(locking.OwnerUnverified, locking.TakenBack, locking.TakenBack)
				advance(10 * time.Second)
				w.holders(disk("a"), 1)
				w.holders(disk("b"), 1)
				w.ps.FailOpen(nil)
				tc.do(w, p)
				w.check()
				if !tc.held {
					w.holders(disk("a"))
				} else {
					w.holders(disk("a"), 1)
					if n := w.ps.Watched(); n != 1 {
						t.Errorf("one process is watched %d times", n)
					}
					p.Kill()
					settle()
				}
				advance(2 * time.Second) // nobody looks any more
				w.empty()
			})
		})
	}
}

// Whoever is told may ask.
func TestRestoreTellsWithNothingLocked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var m *locking.Manager
		n := 0
		m = locking.New(locking.Options{Backend: w.b, Processes: w.ps, Observe: func(locking.Event) { n += len(m.Holders()) }})
		w.ps.FailOpen(syscall.EMFILE)
		e := entry(1, 1, "a", ex, locking.EntryGranted)
		e.Seq, e.ID = 1, "id-a"
		m.Restore(context.Background(), keeper{w.b}, []locking.Entry{e}, nil, false)
		if n != 2 {
			t.Errorf("%d holders were counted during two events", n)
		}
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A lock is held since it was granted, not since it was asked for.
func TestHeldSinceTheGrant(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		gate := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		done := start(func() error { return g.Acquire(context.Background(), disk("a"), sh, false) })
		gate.Arrived()
		other := start(func() error { return g.Acquire(context.Background(), disk("a"), sh, false) })
		advance(3 * time.Second)
		granted := time.Now()
		gate.Open()
		for _, c := range []<-chan error{done, other} {
			if err := <-c; err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range w.m.Holders() {
			if h.Since.Before(granted) {
				t.Errorf("held since %v, and granted at %v", h.Since, granted)
			}
		}
		g.Close()
		p.Kill()
		settle()
		w.empty()
	})
}

// blind is a backend that cannot tell modes apart, and has one lock of each ID.
type blind struct {
	*locktest.Backend
	mode locking.Mode // of all
}

func (b blind) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	list := make([]locking.Restored, len(held))
	for i, h := range held {
		if i > 0 && held[i-1].ID == h.ID {
			list[i].Err = locking.ErrNotHeld
			continue
		}
		h.Mode = b.mode
		list[i] = keeper{b.Backend}.Restore(ctx, []locking.Held{h})[0]
		list[i].Either, list[i].Mode = true, b.mode
	}
	return list
}

func (blind) Unsettled() int { return 0 }

// A lock that may be that of either record is held for both until both are gone.
func TestRestoreEitherMode(t *testing.T) {
	for _, first := range []locking.Mode{ex, sh} {
		for _, mode := range []locking.Mode{ex, sh} {
			inWorld(t, func(t *testing.T, w *world) {
				p1, p2 := w.ps.Start(1), w.ps.Start(2)
				entries := []locking.Entry{entry(1, p1.StartTime(), "a", first, locking.EntryGranted), entry(2, p2.StartTime(), "a", ex+sh-first, locking.EntryGranted)}
				w.load(entries)
				w.m.Restore(context.Background(), blind{w.b, mode}, entries, nil, true)
				settle()
				w.toldIs(locking.TakenBack, locking.TakenBack)
				w.holders(disk("a"), 1, 2)
				w.journalled(locking.EntryGranted, locking.EntryGranted)
				w.b.CheckQuiet(map[string]locking.Mode{"id-a": mode})
				g, p3 := w.vm(3)
				w.refused(g.Acquire(context.Background(), disk("a"), ex, false), locking.KindBusy)
				p1.Kill()
				settle()
				w.holders(disk("a"), 2)
				w.b.CheckQuiet(map[string]locking.Mode{"id-a": mode})
				p2.Kill()
				settle()
				w.acquire(g, disk("a"), ex)
				p3.Kill()
				g.Close()
				settle()
				w.told()
				w.empty()
			})
		}
	}
}

// What could not be taken back in doubt, and then could, is not given back as a second
// lock of its resource: it is the only one.
func TestRestoreLostInDoubt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		o := &orphanage{left: []orphan{{"id-a", ex}}}
		entries := []locking.Entry{entry(1, p.StartTime(), "a", ex, locking.EntryReleasing)}
		w.load(entries)
		o.Backend = w.b
		w.m.Restore(context.Background(), &failsOnce{orphanage: o}, entries, nil, true)
		settle()
		w.toldIs(locking.Lost)
		if len(o.left) != 1 {
			t.Error("the lock was given back while its owner lives")
		}
		p.Kill()
		settle()
		if len(o.left) != 0 {
			t.Error("the lock was not given back when its owner was gone")
		}
		w.told()
		w.empty()
	})
}

// failsOnce does not get an answer the first time.
type failsOnce struct {
	*orphanage
	asked bool
}

func (f *failsOnce) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	if !f.asked {
		f.asked = true
		return []locking.Restored{{Err: errIO}}
	}
	return f.orphanage.Restore(ctx, held)
}
