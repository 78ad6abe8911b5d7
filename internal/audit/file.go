package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/failpoint"
)

// files is what a test replaces.
type files interface {
	write(f *os.File, b []byte) (int, error)
	sync(f *os.File) error
}

type system struct{}

func (system) write(f *os.File, b []byte) (int, error) { return f.Write(b) }
func (system) sync(f *os.File) error                   { return f.Sync() }

// maxOpens bounds how often the file is opened again because it was renamed
// between its opening and the lock on it. Each is a rotation that came just then.
const maxOpens = 100

// The points at which a crash test kills the daemon.
var (
	appendBefore = failpoint.New("audit.append.before")
	appendAfter  = failpoint.New("audit.append.after")
)

// write appends text, which ends with a line feed.
func (l *Log) write(text []byte) error {
	f, err := l.open()
	if err != nil {
		return err
	}
	defer f.Close()
	torn, err := endsTorn(f)
	if err != nil {
		return err
	}
	if torn {
		text = append([]byte{'\n'}, text...)
	}
	appendBefore.Pass()
	defer appendAfter.Pass()
	// With O_APPEND and the lock on the file nobody writes in between.
	if n, err := l.fs.write(f, text); err != nil {
		return err
	} else if n != len(text) {
		return fmt.Errorf("only %d of %d bytes were taken", n, len(text))
	}
	return l.fs.sync(f)
}

// open opens the file that has the path now and locks it, or makes one that
// outlives a crash. The lock goes with the file.
func (l *Log) open() (*os.File, error) {
	for range maxOpens {
		f, err := l.openOnce()
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			f.Close()
			return nil, err
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		now, err := os.Lstat(l.path)
		if err == nil && os.SameFile(mine, now) {
			return f, nil
		}
		f.Close() // rotated meanwhile: a record in it might be compressed away
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, errors.New("the file was renamed again and again while it was opened")
}

// Without O_NOFOLLOW a link could make this overwrite something else; without
// O_NONBLOCK a FIFO would hang.
const flags = os.O_RDWR | os.O_APPEND | syscall.O_NOFOLLOW | syscall.O_NONBLOCK

func (l *Log) openOnce() (*os.File, error) {
	f, err := os.OpenFile(l.path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(l.path, flags|os.O_CREATE, 0o600)
		if err == nil {
			if err := l.syncDir(); err != nil {
				f.Close()
				return nil, err
			}
		}
	}
	return regular(f, err)
}

// regular gives back what was opened if it can be an audit log.
func regular(f *os.File, err error) (*os.File, error) {
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ENXIO) {
		return nil, fmt.Errorf("%w (%w)", ErrPlace, err)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = ErrPlace
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// check opens the file if it exists, and otherwise looks whether it could be made.
func (l *Log) check() error {
	f, err := os.OpenFile(l.path, flags, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		if f, err = regular(f, err); err == nil {
			err = f.Close()
		}
		return err
	}
	dir := filepath.Dir(l.path)
	for {
		st, err := os.Stat(dir)
		if err == nil && !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		dir = filepath.Dir(dir)
	}
	const writable = 2 // W_OK of access(2)
	if err := syscall.Access(dir, writable); err != nil {
		return &fs.PathError{Op: "access", Path: dir, Err: err}
	}
	return nil
}

// syncDir makes the name of a new file outlive a crash.
func (l *Log) syncDir() error {
	d, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	defer d.Close()
	return l.fs.sync(d)
}

// endsTorn says whether the last line has no end.
func endsTorn(f *os.File) (bool, error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return false, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], st.Size()-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

func lockFile(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err == nil {
			return nil
		}
		if err != syscall.EINTR {
			return fmt.Errorf("flock: %w", err)
		}
	}
}

func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
