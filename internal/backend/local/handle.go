package local

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// file is what a file is, whatever its name.
type file struct {
	device   bool
	dev, ino uint64 // of a device: its number and 0
}

func fileOf(st unix.Stat_t) file {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK, unix.S_IFCHR:
		return file{device: true, dev: st.Rdev<<1 | uint64(st.Mode&unix.S_IFMT)/unix.S_IFBLK&1}
	}
	return file{dev: st.Dev, ino: st.Ino}
}

// handle is an open file.
type handle struct {
	b          *Backend
	path       string
	autocreate bool
	file       file

	fd int // set by Open, never changed

	mu     sync.Mutex // guards the two below
	inCall bool       // a system call on fd is under way: closing must wait for it
	closed bool
}

func (h *handle) ID() string {
	if h.file.device {
		return fmt.Sprintf("device %d", h.file.dev)
	}
	return fmt.Sprintf("file %d %d", h.file.dev, h.file.ino)
}

func (h *handle) Lock(ctx context.Context, mode locking.Mode) error {
	return h.onFile(ctx, func() error {
		if err := h.b.sys.lock(h.fd, mode == locking.Shared); err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return h.busy(mode)
			}
			return fmt.Errorf("lock: %w", err)
		}
		// Between open and lock the one who held it may have removed the file,
		// and another may have made a new one: then this lock keeps nobody out.
		st, err := h.b.sys.stat(h.path)
		if errors.Is(err, unix.ENOENT) || err == nil && fileOf(st) != h.file {
			return locking.ErrStale
		}
		if err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		return nil
	})
}

// busy says as much as the kernel knows of the one who holds the lock.
func (h *handle) busy(mode locking.Mode) error {
	pid := h.b.sys.lockedBy(h.fd, mode == locking.Shared)
	if pid > 0 {
		return fmt.Errorf("%w (process %d of this host, %s)", locking.ErrBusy, pid, programName(pid))
	}
	return locking.ErrBusy
}

// Unlock is never refused for want of a thread: there can be only as many as
// there are locks. Closing a file of a server that does not answer can hang too.
func (h *handle) Unlock(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		h.removeCreated()
		h.Close() // gives up the lock, as no other descriptor refers to this open file
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// removeCreated removes the file of a lock that was taken with AUTOCREATE.
// Files made for locks are empty, and libvirt asks for AUTOCREATE only in
// directories of such files; one with content is kept, in case it is a disk.
func (h *handle) removeCreated() {
	if !h.autocreate {
		return
	}
	// Others may share the lock, also on other hosts. Without the file's name
	// theirs would keep nobody out, who would make a new file and lock that.
	// virtlockd makes sure in the same way.
	if h.b.sys.lock(h.fd, false) != nil {
		return
	}
	st, err := h.b.sys.stat(h.path)
	if err == nil && fileOf(st) == h.file && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
		// A file that stays is harmless: the next acquire uses it.
		_ = h.b.sys.unlink(h.path)
	}
}

// onFile runs f with fd. If its caller goes away, fd is closed after it, which
// undoes whatever it did.
func (h *handle) onFile(ctx context.Context, f func() error) error {
	return h.b.call(ctx, h.path, func() error {
		h.mu.Lock()
		if h.closed { // the caller went away before this began
			h.mu.Unlock()
			return context.Canceled
		}
		h.inCall = true
		h.mu.Unlock()
		err := f()
		h.mu.Lock()
		h.inCall = false
		closeNow := h.closed
		h.mu.Unlock()
		if closeNow {
			h.b.sys.close(h.fd)
		}
		return err
	}, h.Close)
}

func (h *handle) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	if !h.inCall {
		h.b.sys.close(h.fd)
	}
}
