package local

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// system is the system calls of this package, so that tests can make one hang.
type system interface {
	open(path string, create bool) (fd int, err error)
	close(fd int)
	fstat(fd int) (unix.Stat_t, error)
	stat(path string) (unix.Stat_t, error)
	lock(fd int, shared bool) error
	unlock(fd int) error
	lockedBy(fd int, shared bool) int32
	lockMode(fd int) (mode locking.Mode, known bool)
	mkdir(path string) error
	unlink(path string) error
}

type kernel struct{}

// open does not wait for a device to become ready (O_NONBLOCK has no effect on
// regular files and disks), and never makes a terminal ours.
func (kernel) open(path string, create bool) (int, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK
	if create {
		flags |= unix.O_CREAT
	}
	for {
		fd, err := unix.Open(path, flags, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// close may be called once. Its error says nothing about the lock, which is
// gone in any case (close(2)).
func (kernel) close(fd int) { _ = unix.Close(fd) }

func (kernel) fstat(fd int) (st unix.Stat_t, err error) {
	err = unix.Fstat(fd, &st)
	return st, err
}

func (kernel) stat(path string) (st unix.Stat_t, err error) {
	for {
		if err = unix.Stat(path, &st); err != unix.EINTR {
			return st, err
		}
	}
}

func flock(shared bool) unix.Flock_t {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 0, Len: 1}
	if shared {
		l.Type = unix.F_RDLCK
	}
	return l
}

func (kernel) lock(fd int, shared bool) error {
	l := flock(shared)
	for {
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != unix.EINTR {
			return err
		}
	}
}

func (kernel) unlock(fd int) error {
	l := flock(false)
	l.Type = unix.F_UNLCK
	for {
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != unix.EINTR {
			return err
		}
	}
}

// lockedBy is the pid of a process that stands against the lock, or 0 or less
// if the kernel does not know one: open file description locks belong to none.
func (kernel) lockedBy(fd int, shared bool) int32 {
	l := flock(shared)
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l); err != nil || l.Type == unix.F_UNLCK {
		return 0
	}
	return l.Pid
}

// lockMode is how this open file is locked. It is not known if it is not locked, and
// where the kernel leaves the bookkeeping to a file system (FUSE with locks of its own). It asks no file
// system: the kernel lists the locks of an open file in its fdinfo (proc(5), and
// show_fd_locks in fs/locks.c), with READ or WRITE.
func (kernel) lockMode(fd int) (mode locking.Mode, known bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, false
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 5 || f[0] != "lock:" || f[2] != "OFDLCK" {
			continue
		}
		switch f[4] {
		case "WRITE":
			return locking.Exclusive, true
		case "READ":
			mode, known = locking.Shared, true
		}
	}
	return mode, known
}

func (kernel) mkdir(path string) error { return os.MkdirAll(path, 0o700) }

func (kernel) unlink(path string) error { return unix.Unlink(path) }
