package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pidFile is the file with this process's pid, locked as virtlockd locks its own: a
// record lock on the first byte (virPidFileAcquirePath of libvirt's src/util/virpidfile.c).
// So at most one lock daemon runs with it, be it vmlockd or virtlockd.
//
// The kernel drops the lock when the process closes any descriptor of the file: nothing
// else in this process may open it. The lock survives execve(2) while the descriptor does.
type pidFile struct {
	path string
	file *os.File
}

// pidPatience is how long a start waits for a daemon that is ending.
const pidPatience = 5 * time.Second

// acquirePID makes the pid file, or returns an error that names who has it. It waits up
// to patience for one that is ending; serves tells that it is not.
func acquirePID(path string, patience time.Duration, serves func() error) (*pidFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), dirMode()); err != nil {
		return nil, fmt.Errorf("make the directory of the pid file: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		p, owner, err := tryPID(path)
		if err != nil || p != nil {
			return p, err
		}
		if time.Since(begin) < patience && serves() == nil {
			continue
		}
		return nil, fmt.Errorf("%s has the pid file %s locked: stop it first, or set another pid_file and socket; two lock daemons cannot serve one host", processName(owner), path)
	}
}

// tryPID returns neither a file nor an error if another process, owner, has it locked.
func tryPID(path string) (p *pidFile, owner int, err error) {
	for {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return nil, 0, fmt.Errorf("pid file: %w", err)
		}
		p := &pidFile{path, f}
		owner, err := p.lock()
		if err != nil || owner != 0 {
			f.Close()
			return nil, owner, err
		}
		if !p.current() { // its owner has removed it meanwhile
			f.Close()
			continue
		}
		if err := p.write(); err != nil {
			f.Close()
			return nil, 0, fmt.Errorf("write the pid file %s: %w", path, err)
		}
		return p, 0, nil
	}
}

// lock returns the process that has the lock, -1 if that is not known, 0 if this one has
// it now.
func (p *pidFile) lock() (owner int, err error) {
	first := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	err = p.control(func(fd uintptr) error { return unix.FcntlFlock(fd, unix.F_SETLK, &first) })
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return 0, fmt.Errorf("lock the pid file %s: %w", p.path, err)
	}
	other := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	if p.control(func(fd uintptr) error { return unix.FcntlFlock(fd, unix.F_GETLK, &other) }) != nil || other.Type == unix.F_UNLCK || other.Pid <= 0 {
		return -1, nil
	}
	return int(other.Pid), nil
}

func (p *pidFile) control(f func(fd uintptr) error) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(fd) }); err != nil {
		return err
	}
	return inner
}

// current says whether the file is still the one at its path.
func (p *pidFile) current() bool {
	here, err := p.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(p.path)
	return err == nil && os.SameFile(here, there)
}

func (p *pidFile) write() error {
	if info, err := p.file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, errors.New("it is no regular file"))
	}
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err := p.file.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}

// release removes the file and unlocks it. p may be nil.
func (p *pidFile) release() {
	if p == nil {
		return
	}
	if p.current() {
		os.Remove(p.path)
	}
	p.file.Close()
}

// processName is a process for people.
func processName(pid int) string {
	if pid <= 0 {
		return "another process"
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		return fmt.Sprintf("%s (process %d)", exe, pid)
	}
	return fmt.Sprintf("process %d", pid)
}

// dirMode is that of directories which libvirt's daemons share: everybody may look for
// the system's sockets, and nobody else for those of a user's session.
func dirMode() fs.FileMode {
	if os.Geteuid() == 0 {
		return 0o755
	}
	return 0o700
}

// fd is for who hands it over; -1 if there is none.
func (p *pidFile) fd() int {
	if p == nil {
		return -1
	}
	n := -1
	_ = p.control(func(fd uintptr) error { n = int(fd); return nil })
	return n
}

// adoptPID goes on with what an earlier program in this process has locked.
func adoptPID(fd int, path string) *pidFile {
	syscall.CloseOnExec(fd)
	return &pidFile{path, os.NewFile(uintptr(fd), path)}
}
