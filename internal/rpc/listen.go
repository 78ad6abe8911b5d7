package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is what fits in sun_path (unix(7)), in bytes, with the NUL.
const maxSocketPath = 107

// InUseError says that a daemon listens on a socket already.
type InUseError struct {
	Path string
	PID  int32 // of the process that made the socket; 0 if it cannot be told
	Exe  string
}

func (e *InUseError) Error() string {
	who := "another process"
	switch {
	case e.Exe != "":
		who = fmt.Sprintf("%s (process %d)", e.Exe, e.PID)
	case e.PID != 0:
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%s listens on %s already: stop it first, two daemons cannot share the socket", who, e.Path)
}

// Listen makes a unix socket at path that only its owner may connect to (mode
// 0600), and listens with the longest backlog that the system allows
// (net.core.somaxconn).
//
// A socket that is there already is replaced if nobody listens on it any more.
// If somebody does, the error is an *InUseError; if path is no socket, it is
// left alone, and that is an error too. Two daemons that start at the same time
// cannot both succeed: the directory is locked (flock) for a moment.
//
// The file goes away when the listener is closed, unless SetUnlinkOnClose(false)
// was called on it.
func Listen(path string) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path of a unix socket may have %d bytes, and %s has %d", maxSocketPath, path, len(path))
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		// Before bind: the file gets the mode of the socket, so there is no moment
		// in which it has another one.
		if err := raw.Control(func(fd uintptr) { modeErr = syscall.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return modeErr
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// ListenerFromFile makes a listener of a descriptor that another process made,
// systemd or an earlier self. The descriptor is duplicated. The socket's file
// stays when the listener is closed.
func ListenerFromFile(f *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %s: %w", f.Name(), err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("descriptor %s is no unix socket but %s", f.Name(), l.Addr().Network())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	stale, err := isStale(path)
	if err != nil || !stale {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CanListen is nil if Listen would succeed, as far as that can be known without
// trying. Directories that are missing are not counted: a daemon makes them.
func CanListen(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("the path of a unix socket may have %d bytes, and %s has %d", maxSocketPath, path, len(path))
	}
	dir := filepath.Dir(path)
	for {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is no directory", dir)
		}
		break
	}
	const writeAndSearch = 0o3 // W_OK and X_OK of access(2)
	if err := syscall.Access(dir, writeAndSearch); err != nil {
		return fmt.Errorf("no socket can be made in %s: %w", dir, err)
	}
	_, err := isStale(path)
	return err
}

// isStale says whether path is a socket that nobody listens on. It is false if there
// is nothing, and an error if there is anything else.
func isStale(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("%s exists and is no socket: remove it, or choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, 5*time.Second)
	switch {
	case err == nil:
		defer c.Close()
		e := &InUseError{Path: path}
		if p, err := PeerOf(c.(*net.UnixConn)); err == nil {
			e.PID = p.PID
			e.Exe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
		}
		return false, e
	case errors.Is(err, syscall.EAGAIN):
		// Its backlog is full, so it has a listener.
		return false, &InUseError{Path: path}
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("is somebody listening there? %w", err)
	}
}
