package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// remembering is a kernel that leads from a name to the file that had it when it was
// opened last, as a client of NFS does for a while when another host has removed it.
type remembering struct {
	kernel
	was map[string]int // the name's file
}

func (k *remembering) open(path string, create bool) (int, error) {
	fd, err := k.kernel.open(path, create)
	if err == nil {
		k.was[path] = fd
	}
	return fd, err
}

func (k *remembering) stat(path string) (unix.Stat_t, error) { return k.fstat(k.was[path]) }

// A file without a name is not locked, although the name seems to lead to it: the
// next one would lock another.
func TestLockOfARemovedFile(t *testing.T) {
	ctx := context.Background()
	ref := locking.Ref{Lockspace: t.TempDir(), Name: "lock"}
	path := filepath.Join(ref.Lockspace, ref.Name)
	b := New()
	b.sys = &remembering{was: map[string]int{}}
	h := open(t, b, ref, true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := h.Lock(ctx, locking.Exclusive); !errors.Is(err, locking.ErrStale) {
		t.Errorf("the file was removed, and locking it: %v", err)
	}
	h.Close()
	h = open(t, b, ref, true)
	if err := h.Lock(ctx, locking.Exclusive); err != nil {
		t.Errorf("the new file: %v", err)
	}
	// Nor is the file of somebody else removed with a lock whose own has no name.
	if err := os.Rename(disk(t), path); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("another one's file is gone: %v", err)
	}
}
