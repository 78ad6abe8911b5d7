package local

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// lap is a keeper whose descriptors the next Backend has too, as after execve.
type lap struct{ *shelf }

func (l lap) Taken() iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, k := range l.kept {
			if !yield(k.key, k.user) {
				return
			}
		}
	}
}

// asked counts what a Backend asks of file systems.
type asked struct {
	system
	n atomic.Int64
}

func (a *asked) fstat(fd int) (unix.Stat_t, error) {
	a.n.Add(1)
	return a.system.fstat(fd)
}

func (a *asked) lock(fd int, shared bool) error {
	a.n.Add(1)
	return a.system.lock(fd, shared)
}

func TestSameProcessAsksNobody(t *testing.T) {
	ctx := context.Background()
	s := &shelf{}
	b := kept(s)
	var list []locking.Held
	var paths []string
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared, locking.Shared} {
		paths = append(paths, disk(t))
		_, h := lockFile(t, b, paths[len(paths)-1], mode)
		list = append(list, h)
	}
	_, second := lockFile(t, b, paths[1], locking.Shared) // another lock on the same file
	list, paths = append(list, second), append(paths, paths[1])
	if err := b.Settled(); err != nil {
		t.Fatal(err)
	}
	for _, distrust := range []bool{false, true} {
		b = NewSame(lap{s}, slog.New(slog.DiscardHandler))
		a := &asked{system: b.sys}
		b.sys = a
		if b.Settled() == nil {
			t.Error("nothing is known yet, and it says that all is settled")
		}
		if distrust {
			b.Distrust()
		}
		results := b.Restore(ctx, list)
		if looked := a.n.Load() > 0; looked != distrust {
			t.Errorf("distrust %v: file systems were asked %d times", distrust, a.n.Load())
		}
		for i, r := range results {
			if r.Err != nil {
				t.Fatalf("%d: %v", i, r.Err)
			}
			if r.Handle.ID() != list[i].ID {
				t.Errorf("%d: %q, not %q", i, r.Handle.ID(), list[i].ID)
			}
		}
		if err := b.Settled(); err != nil {
			t.Error(err)
		}
		if n, err := b.DropOthers(ctx); n != 0 || err != nil {
			t.Errorf("%d others, %v", n, err)
		}
		if !distrust {
			continue
		}
		for i, r := range results {
			if free(t, paths[i]) {
				t.Errorf("%s is free", paths[i])
			}
			if err := r.Handle.Unlock(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, path := range paths {
		if !free(t, path) {
			t.Errorf("%s is still locked", path)
		}
	}
}

// What the journal tells of and the process does not have is asked for as ever, and
// what it has and the journal does not tell of is released.
func TestSameProcessWithOtherLocks(t *testing.T) {
	ctx := context.Background()
	s := &shelf{}
	b := kept(s)
	mine, unknown, gone := disk(t), disk(t), disk(t)
	_, held := lockFile(t, b, mine, locking.Exclusive)
	lockFile(t, b, unknown, locking.Exclusive)
	h, released := lockFile(t, b, gone, locking.Exclusive)
	if err := h.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	thief := open(t, New(), released.Ref, false)
	if err := thief.Lock(ctx, locking.Exclusive); err != nil {
		t.Fatal(err)
	}
	b = NewSame(lap{s}, slog.New(slog.DiscardHandler))
	results := b.Restore(ctx, []locking.Held{held, released})
	if results[0].Err != nil || !errors.Is(results[1].Err, locking.ErrNotHeld) {
		t.Fatalf("%v, %v", results[0].Err, results[1].Err)
	}
	if n, err := b.DropOthers(ctx); n != 1 || err != nil {
		t.Errorf("%d others, %v", n, err)
	}
	if free(t, mine) || !free(t, unknown) || free(t, gone) {
		t.Errorf("free: %v %v %v", free(t, mine), free(t, unknown), free(t, gone))
	}
	if err := results[0].Handle.Unlock(ctx); err != nil {
		t.Error(err)
	}
	if err := thief.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

// An ID tells all files apart, and is what earlier versions have written.
func TestIDOf(t *testing.T) {
	const most = 1<<64 - 1
	for id, st := range map[string]unix.Stat_t{
		"file 1 2": {Mode: unix.S_IFREG, Dev: 1, Ino: 2, Rdev: 3},
		"file 18446744073709551615 18446744073709551615": {Mode: unix.S_IFDIR, Dev: most, Ino: most},
		"device 34": {Mode: unix.S_IFCHR | 0o600, Dev: 1, Ino: 2, Rdev: 17},
		"device 35": {Mode: unix.S_IFBLK | 0o600, Dev: 1, Ino: 2, Rdev: 17},
	} {
		if got := idOf(st); got != id {
			t.Errorf("%q, want %q", got, id)
		}
	}
}
