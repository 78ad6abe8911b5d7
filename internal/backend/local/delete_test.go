package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// A file that another host or program has locked keeps its name.
func TestDeleteWhatIsLocked(t *testing.T) {
	ctx := context.Background()
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		path := disk(t)
		ref := locking.Ref{Name: path}
		h, _ := lockFile(t, New(), path, mode)
		if err := New().DeleteResource(ctx, ref); !errors.Is(err, locking.ErrBusy) {
			t.Errorf("%v: %v", mode, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%v: the file is gone: %v", mode, err)
		}
		if free(t, path) {
			t.Errorf("%v: the lock is gone", mode)
		}
		if err := h.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		for range 2 { // that there is nothing to delete is no error
			if err := New().DeleteResource(ctx, ref); err != nil {
				t.Errorf("%v, not locked any more: %v", mode, err)
			}
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v: it is still there: %v", mode, err)
		}
	}
}

// replacing is a kernel in which another host replaces the file before it is locked, a
// number of times, and has locked the new one.
type replacing struct {
	kernel
	t     *testing.T
	path  string
	times atomic.Int64
	other locking.Handle
}

func (k *replacing) lock(fd int, shared bool) error {
	if k.times.Add(-1) >= 0 {
		if err := os.Rename(disk(k.t), k.path); err != nil {
			k.t.Error(err)
		}
		if k.times.Load() == 0 {
			k.other, _ = lockFile(k.t, New(), k.path, locking.Exclusive)
		}
	}
	return k.kernel.lock(fd, shared)
}

// What has taken the place of the file is another one's.
func TestDeleteWhatIsReplaced(t *testing.T) {
	for times, want := range map[int64]error{2: locking.ErrBusy, 1000: locking.ErrStale} {
		b, path := New(), disk(t)
		k := &replacing{t: t, path: path}
		k.times.Store(times)
		b.sys = k
		if err := b.DeleteResource(t.Context(), locking.Ref{Name: path}); !errors.Is(err, want) {
			t.Errorf("replaced %d times: %v", times, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("replaced %d times: the new file is gone: %v", times, err)
		}
		if k.other != nil {
			if err := k.other.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// leaking counts what a kernel has open.
type leaking struct {
	kernel
	n atomic.Int64
}

func (k *leaking) open(path string, create bool) (int, error) {
	fd, err := k.kernel.open(path, create)
	if err == nil {
		k.n.Add(1)
	}
	return fd, err
}

func (k *leaking) close(fd int) {
	k.n.Add(-1)
	k.kernel.close(fd)
}

// noLocks is a file system without locks.
type noLocks struct{ leaking }

func (*noLocks) lock(int, bool) error { return unix.ENOLCK }

// Without the lock nothing is removed, and nothing stays open.
func TestDeleteWithoutLocks(t *testing.T) {
	b, path := New(), disk(t)
	k := &noLocks{}
	b.sys = k
	if err := b.DeleteResource(t.Context(), locking.Ref{Name: path}); !errors.Is(err, unix.ENOLCK) {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil || k.n.Load() != 0 {
		t.Errorf("the file: %v, and %d are open", err, k.n.Load())
	}
}
