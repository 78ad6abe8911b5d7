package virtlockd

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// A record lock (F_SETLK) belongs to a process, and ends as soon as that closes any descriptor of the file; one of an
// open file (F_OFD_SETLK) stays. Each stands in the other's way, also within one process, unless both are shared
// (fs/locks.c, posix_locks_conflict). So one becomes the other by way of both being shared: at no moment could another
// program lock the file exclusively.

// ErrOvertaken is why an exclusive lock is a shared one now: another program has shared the file in that moment.
var ErrOvertaken = errors.New("another program has locked the file, shared, while its lock passed from virtlockd to this program")

// TakeFile makes the process's lock on fd one of its open file, in that mode. After ErrOvertaken it is shared, after
// any other error it is the process's, as it was.
func TakeFile(fd int, mode locking.Mode) error {
	if err := setLock(fd, unix.F_SETLK, unix.F_RDLCK); err != nil {
		return fmt.Errorf("share virtlockd's lock: %w", err)
	}
	if err := setLock(fd, unix.F_OFD_SETLK, unix.F_RDLCK); err != nil {
		if mode == locking.Exclusive {
			err = errors.Join(err, setLock(fd, unix.F_SETLK, unix.F_WRLCK))
		}
		return fmt.Errorf("lock the open file beside virtlockd's lock: %w", err)
	}
	if err := setLock(fd, unix.F_SETLK, unix.F_UNLCK); err != nil {
		return fmt.Errorf("end virtlockd's lock: %w", err)
	}
	if mode == locking.Shared {
		return nil
	}
	if err := setLock(fd, unix.F_OFD_SETLK, unix.F_WRLCK); err != nil {
		return fmt.Errorf("%w: %w", ErrOvertaken, err)
	}
	return nil
}

func setLock(fd, cmd int, kind int16) error {
	l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: 0, Len: 1}
	for {
		if err := unix.FcntlFlock(uintptr(fd), cmd, &l); err != unix.EINTR {
			return err
		}
	}
}
