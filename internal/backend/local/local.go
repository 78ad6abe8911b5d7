// Package local holds locks on files of this host, the way virtlockd does: a
// record lock on byte 0, length 1, of the disk itself or of a file in a
// lockspace's directory. A virtlockd, or a vmlockd, on another client of the
// same NFS server sees these locks and this package sees theirs.
//
// The locks are open file description locks (fcntl(2), F_OFD_SETLK), which
// conflict with virtlockd's but do not vanish when the daemon closes the file
// under another name. A file is one resource under all its names: it is known by
// device and inode, a block or character device by its number.
//
// A file system that hangs delays only those who ask for its files: each system
// call on a file has a goroutine of its own, their number is bounded, and nobody
// waits for one longer than his context allows. What such a call still brings
// about later is undone.
package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// maxCalls bounds the system calls on files under way at once. Each that hangs
// keeps a thread.
const maxCalls = 1024

// Backend locks files. Its methods may be called from many goroutines.
type Backend struct {
	sys   system
	slots chan struct{}

	mu sync.Mutex // guards hanging
	// hanging counts calls whose callers have gone away, by path. A path that
	// hung once hangs again, and is refused until the first call has returned.
	hanging map[string]int
}

// New makes a Backend that holds nothing.
func New() *Backend {
	return &Backend{sys: kernel{}, slots: make(chan struct{}, maxCalls), hanging: map[string]int{}}
}

// call runs f on a goroutine of its own and returns when it has returned or ctx
// has ended. In the second case late runs after f, whenever that is.
func (b *Backend) call(ctx context.Context, path string, f func() error, late func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	stuck := b.hanging[path] > 0
	b.mu.Unlock()
	if stuck {
		return fmt.Errorf("an earlier access to it still hangs in the kernel: is its file system's server reachable? (%w)", unix.EAGAIN)
	}
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%d file accesses hang in the kernel: %w", maxCalls, ctx.Err())
	}
	var (
		mu        sync.Mutex // guards the two below
		finished  bool
		abandoned bool
	)
	done := make(chan error, 1)
	go func() {
		err := f()
		mu.Lock()
		finished = true
		left := abandoned
		mu.Unlock()
		if left {
			late()
			b.mu.Lock()
			if b.hanging[path]--; b.hanging[path] == 0 {
				delete(b.hanging, path)
			}
			b.mu.Unlock()
		}
		<-b.slots
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	mu.Lock()
	if finished {
		mu.Unlock()
		return <-done
	}
	abandoned = true
	b.mu.Lock()
	b.hanging[path]++
	b.mu.Unlock()
	mu.Unlock()
	return ctx.Err()
}

// CreateLockspace makes the directory and its parents if they are missing, mode
// 0700.
func (b *Backend) CreateLockspace(ctx context.Context, path string) error {
	return b.call(ctx, path, func() error {
		err := b.sys.mkdir(path)
		if st, statErr := b.sys.stat(path); statErr == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &locking.Error{Kind: locking.KindInvalid, Ref: locking.Ref{Lockspace: path},
				Err: fmt.Errorf("Lockspace location %s exists, but is not a directory", path)} //lint:ignore ST1005 the words are virtlockd's
		}
		return err
	}, func() {})
}

// CreateResource makes an empty file, mode 0600, if there is none.
func (b *Backend) CreateResource(ctx context.Context, ref locking.Ref) error {
	path, err := pathOf("create resource", ref)
	if err != nil {
		return err
	}
	return b.call(ctx, path, func() error {
		fd, err := b.sys.open(path, true)
		if err == nil {
			b.sys.close(fd)
		}
		return err
	}, func() {})
}

// DeleteResource removes the file.
func (b *Backend) DeleteResource(ctx context.Context, ref locking.Ref) error {
	path, err := pathOf("delete resource", ref)
	if err != nil {
		return err
	}
	return b.call(ctx, path, func() error {
		if err := b.sys.unlink(path); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}, func() {})
}

// Open opens the file and looks what it is.
func (b *Backend) Open(ctx context.Context, ref locking.Ref, autocreate bool) (locking.Handle, error) {
	path, err := pathOf("acquire", ref)
	if err != nil {
		return nil, err
	}
	h := &handle{b: b, path: path, autocreate: autocreate, fd: -1}
	err = b.call(ctx, path, func() error {
		fd, err := b.sys.open(path, autocreate)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		st, err := b.sys.fstat(fd)
		if err != nil {
			b.sys.close(fd)
			return fmt.Errorf("fstat: %w", err)
		}
		h.fd, h.file = fd, fileOf(st)
		return nil
	}, func() {
		if h.fd >= 0 {
			b.sys.close(h.fd)
		}
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// pathOf is the file that stands for a resource: in the default lockspace its
// name is the path.
func pathOf(op string, ref locking.Ref) (string, error) {
	if ref.Lockspace == "" {
		return ref.Name, nil
	}
	for part := range strings.SplitSeq(ref.Name, "/") {
		if part == ".." {
			return "", &locking.Error{Kind: locking.KindInvalid, Op: op, Ref: ref,
				Err: fmt.Errorf("a name with '..' leads out of its lockspace %s", ref.Lockspace)}
		}
	}
	return ref.Lockspace + "/" + ref.Name, nil
}

// programName is what process pid calls itself, for messages.
func programName(pid int32) string {
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "comm"))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
