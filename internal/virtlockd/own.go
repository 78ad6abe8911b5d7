package virtlockd

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A record lock (F_SETLK) belongs to a process, and ends as soon as that closes any descriptor of the file; one of an
// open file (F_OFD_SETLK) stays. Each stands in the other's way, also within one process, unless both are shared
// (fs/locks.c, posix_locks_conflict). So one becomes the other by way of both being shared: at no moment could another
// program lock the file exclusively.

// Share makes the process's lock on fd a shared one, and locks the open file beside it, shared too. After an error
// the lock is the process's, as it was if exclusive says how.
func Share(fd int, exclusive bool) error {
	if err := setLock(fd, unix.F_SETLK, unix.F_RDLCK); err != nil {
		return fmt.Errorf("share virtlockd's lock: %w", err)
	}
	if err := setLock(fd, unix.F_OFD_SETLK, unix.F_RDLCK); err != nil {
		if exclusive {
			err = errors.Join(err, setLock(fd, unix.F_SETLK, unix.F_WRLCK))
		}
		return fmt.Errorf("lock the open file beside virtlockd's lock: %w", err)
	}
	return nil
}

// Unshare takes Share back.
func Unshare(fd int, exclusive bool) error {
	if err := setLock(fd, unix.F_OFD_SETLK, unix.F_UNLCK); err != nil {
		return fmt.Errorf("unlock the open file: %w", err)
	}
	if !exclusive {
		return nil
	}
	if err := setLock(fd, unix.F_SETLK, unix.F_WRLCK); err != nil {
		return fmt.Errorf("%w: %w", ErrOvertaken, err)
	}
	return nil
}

// ErrOvertaken is why an exclusive lock is a shared one now: another program has shared the file when it was one for a moment.
var ErrOvertaken = errors.New("another program has locked the file, shared, while its lock passed from virtlockd to vmlockd")

// Own goes on from Share: the lock is that of the open file alone, and exclusive if it is to be. After ErrOvertaken it is
// shared, and Own can be tried again.
func Own(fd int, exclusive bool) error {
	if err := setLock(fd, unix.F_SETLK, unix.F_UNLCK); err != nil {
		return fmt.Errorf("end virtlockd's lock: %w", err)
	}
	if !exclusive {
		return nil
	}
	if err := setLock(fd, unix.F_OFD_SETLK, unix.F_WRLCK); err != nil {
		return fmt.Errorf("%w: %w", ErrOvertaken, err)
	}
	return nil
}

// GiveBack is the opposite of Share and Own: the lock is the process's again.
func GiveBack(fd int, exclusive bool) error {
	for _, step := range []struct {
		cmd  int
		kind int16
	}{{unix.F_OFD_SETLK, unix.F_RDLCK}, {unix.F_SETLK, unix.F_RDLCK}} {
		if err := setLock(fd, step.cmd, step.kind); err != nil {
			return fmt.Errorf("share the lock: %w", err)
		}
	}
	return Unshare(fd, exclusive)
}

func setLock(fd, cmd int, kind int16) error {
	l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: 0, Len: 1}
	for {
		if err := unix.FcntlFlock(uintptr(fd), cmd, &l); err != unix.EINTR {
			return err
		}
	}
}
