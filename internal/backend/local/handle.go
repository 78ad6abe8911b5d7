package local

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// idOf says what a file is, whatever its name: two files that are open have the same
// ID if and only if they are the same.
func idOf(st unix.Stat_t) string {
	var room [48]byte
	return string(appendID(room[:0], &st))
}

func appendID(b []byte, st *unix.Stat_t) []byte {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK, unix.S_IFCHR:
		number := st.Rdev<<1 | uint64(st.Mode&unix.S_IFMT)/unix.S_IFBLK&1
		b = strconv.AppendUint(append(b, "device "...), number, 10)
	default:
		b = strconv.AppendUint(append(b, "file "...), st.Dev, 10)
		b = strconv.AppendUint(append(b, ' '), st.Ino, 10)
	}
	return b
}

// IDOf is the Handle.ID of a lock on an open file.
func IDOf(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("fstat: %w", err)
	}
	return idOf(st), nil
}

// handle is an open file. There is one for each lock, so the small fields are
// together, and everybody gets the same memory for the ID.
type handle struct {
	b    *Backend
	path string
	id   string
	fd   int // set by Open, never changed

	mu     sync.Mutex // guards the two below
	inCall bool       // a system call on fd is under way: closing must wait for it
	closed bool

	// locked is set when the keeper may have a duplicate of fd, so that closing fd
	// does not end its lock. Only the goroutine that has inCall touches it, or the
	// one that closes.
	locked     bool
	autocreate bool
}

func (h *handle) ID() string { return h.id }

func (h *handle) Lock(ctx context.Context, mode locking.Mode) error {
	return h.b.do(ctx, h.path, (*lockTask)(h), mode)
}

// lockTask is a handle whose file is being locked.
type lockTask handle

func (l *lockTask) do(j *job) error {
	h := (*handle)(l)
	return h.onFile(func() error {
		lockBefore.Pass()
		if err := h.b.sys.lock(h.fd, j.mode == locking.Shared); err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return h.busy(j.mode)
			}
			return fmt.Errorf("lock: %w", err)
		}
		lockAfter.Pass()
		err := h.stillThere()
		if err == nil {
			err = h.keep(j.ctx)
		}
		if err != nil {
			_ = h.b.sys.unlock(h.fd) // the close that follows does it in any case
		}
		return err
	})
}

func (l *lockTask) late() { (*handle)(l).Close() }

// stillThere looks whether the name leads to the file. Between open and lock the
// one who held it may have removed the file, and another may have made a new one:
// then this lock keeps nobody out.
func (h *handle) stillThere() error {
	st, err := h.b.sys.stat(h.path)
	if errors.Is(err, unix.ENOENT) || err == nil && !h.isFile(st) {
		return locking.ErrStale
	}
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	return nil
}

// isFile says whether st, of the name, is the file. A client of NFS may answer from what
// it knew of the directory, and lead to a file that another host has removed; that no name
// is left it hears from the server, as it does not trust what it knew of a file from
// before it was locked (do_setlk in fs/nfs/file.c).
func (h *handle) isFile(st unix.Stat_t) bool {
	var room [48]byte
	return string(appendID(room[:0], &st)) == h.id && st.Nlink > 0
}

// keep gives the keeper a duplicate of fd, so that the lock outlives the process.
func (h *handle) keep(ctx context.Context) error {
	if h.b.keeper == nil {
		return nil
	}
	if err := h.b.keeper.Put(ctx, h.id, h.fd); err != nil {
		return fmt.Errorf("keep the lock for the time after this process: %w", err)
	}
	h.locked = true
	putAfter.Pass()
	return nil
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
// there are locks. Unlocking a file of a server that does not answer can hang.
func (h *handle) Unlock(ctx context.Context) error {
	j := h.b.newJob(ctx, h.path, (*unlockTask)(h))
	h.b.start(j)
	return h.b.await(j)
}

// unlockTask is a handle that is being given up.
type unlockTask handle

func (u *unlockTask) do(*job) error {
	h := (*handle)(u)
	unlockBefore.Pass()
	h.removeCreated()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.end()
	return nil
}

// late does nothing: that the lock is gone is what was asked for.
func (u *unlockTask) late() {}

// removeCreated removes the file of a lock that was taken with AUTOCREATE.
// Files made for locks are empty, and libvirt asks for AUTOCREATE only in
// directories of such files; one with content is kept, in case it is a disk.
func (h *handle) removeCreated() {
	if !h.autocreate {
		return
	}
	// Whoever shares the lock, on another host or by another handle of this one,
	// needs the file: without it the next one would lock a new one.
	if h.b.sys.lock(h.fd, false) != nil {
		return
	}
	st, err := h.b.sys.stat(h.path)
	if err == nil && h.isFile(st) && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
		// A file that stays is harmless: the next acquire uses it.
		unlinkBefore.Pass()
		_ = h.b.sys.unlink(h.path)
		unlinkAfter.Pass()
	}
}

// end gives up the lock, if there is one, and fd.
func (h *handle) end() {
	if h.locked {
		// The keeper has the same open file, and closes it a while later: without
		// this the file would look locked until then. If it fails, that close ends
		// the lock.
		_ = h.b.sys.unlock(h.fd)
		unlockAfter.Pass()
		h.b.keeper.Drop(h.fd)
	}
	h.b.sys.close(h.fd)
}

// onFile runs f with fd. If its caller goes away, end undoes after it whatever it
// did: Close, as the job's late, sees to that.
func (h *handle) onFile(f func() error) error {
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
		h.end()
	}
	return err
}

func (h *handle) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	switch {
	case h.inCall: // which ends it
	case h.locked: // by a Lock that was given up and granted: undoing it can hang
		h.b.unsettled.Add(1)
		go func() {
			var a access
			h.b.pace.begin(&a)
			h.end()
			h.b.pace.end(&a)
			h.b.unsettled.Add(-1)
		}()
	default:
		h.end()
	}
}
