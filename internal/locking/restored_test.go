package locking_test

import (
	"context"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// keeper is a backend whose locks outlived the process that took them.
type keeper struct{ *locktest.Backend }

func (k keeper) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	var list []locking.Restored
	for _, h := range held {
		handle, err := k.Open(ctx, h.Ref, false)
		if err == nil {
			err = handle.Lock(ctx, h.Mode)
		}
		list = append(list, locking.Restored{Handle: handle, Err: err})
	}
	return list
}

func (keeper) Unsettled() int                          { return 0 }
func (keeper) DropOthers(context.Context) (int, error) { return 0, nil }

// restore starts with what an earlier process had journalled.
func (w *world) restore(entries ...locking.Entry) {
	w.load(entries)
	w.m.Restore(context.Background(), keeper{w.b}, entries, nil, false)
	settle()
}

func entry(pid int32, started uint64, name string, mode locking.Mode, s locking.EntryState) locking.Entry {
	return locking.Entry{State: s, Ref: disk(name), Mode: mode,
		Owner: locking.Owner{PID: pid, ID: 1, Name: "vm"}, OwnerStart: started}
}

// A lock in the name of a pid that nobody had does not hide the process that
// had this pid later, from the sessions that speak for it.
func TestRestoredOwnersOfOnePID(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.ps.Start(1)
		w.restore(
			entry(1, 0, "a", locking.Exclusive, locking.EntryGranted),
			entry(1, p.StartTime(), "b", locking.Exclusive, locking.EntryGranted),
			entry(1, p.StartTime(), "c", locking.Exclusive, locking.EntryGranted))
		g := w.register(1)
		w.release(g, disk("b"))
		if n := w.ps.Watched(); n != 1 {
			t.Errorf("one process is watched %d times", n)
		}
		p.Kill()
		settle()
		w.holders(disk("c"))
		w.holders(disk("a"), 1)
		w.release(g, disk("a"))
		g.Close()
		settle()
		w.empty()
	})
}

// Whose process is another one now is gone, whatever the new one does.
func TestRestoredOwnerIsGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		old := w.ps.Start(1)
		started := old.StartTime()
		old.Kill()
		w.ps.Start(1)
		w.restore(
			entry(1, started, "a", locking.Exclusive, locking.EntryGranted),
			entry(2, 77, "b", locking.Shared, locking.EntryGranted),
			entry(3, 0, "c", locking.Exclusive, locking.EntryReleasing))
		w.holders(disk("a"))
		w.holders(disk("b"))
		w.holders(disk("c"))
		w.empty()
	})
}

// A release that the backend refused did not happen, for the next process too.
func TestFailedReleaseIsKeptInTheJournal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.b.Fail(locktest.On(locktest.OpUnlock, "id-a"), errIO, 1)
		w.refused(g.Release(context.Background(), disk("a")), locking.KindSystem)
		list := w.j.Entries()
		if len(list) != 1 || list[0].State != locking.EntryGranted || list[0].ID != "id-a" {
			t.Errorf("the journal has %+v", list)
		}
	})
}
