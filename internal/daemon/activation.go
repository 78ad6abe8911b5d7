package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// The names of sockets that systemd hands over (sd_listen_fds_with_names(3)): by default
// they are those of the units, virtlockd's here. One socket without a name is libvirt's.
const (
	lockSocketName  = "virtlockd.socket"
	adminSocketName = "virtlockd-admin.socket"
)

// activated are the sockets with which this process was started; each may be nil.
type activated struct {
	lock, admin *os.File
}

// takeActivated takes the sockets that are meant for this process, once: the variables
// that tell of them are removed. What it cannot explain is an error: somebody may wait for an
// answer there.
func takeActivated() (a activated, err error) {
	named := os.Getenv("LISTEN_FDNAMES") != ""
	files := activation.Files(true)
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			a = activated{}
		}
	}()
	for i, f := range files {
		name := f.Name()
		place := &a.lock
		switch {
		case name == lockSocketName:
		case name == adminSocketName:
			place = &a.admin
		case len(files) == 1 && (!named || name == "unknown"): // what systemd says of one that it knows no name of
		default:
			return a, fmt.Errorf("systemd hands over a socket with the name %q: write FileDescriptorName=%s or %s in its unit, or do not give it to vmlockd", name, lockSocketName, adminSocketName)
		}
		if *place != nil {
			return a, fmt.Errorf("systemd hands over two sockets with the name %q, and there can be one: remove one ListenStream=", name)
		}
		if err := listens(f); err != nil {
			return a, fmt.Errorf("what systemd hands over with the name %q: %w", name, err)
		}
		*place = files[i]
	}
	return a, nil
}

// listens is nil if it is a unix stream socket that listens.
func listens(f *os.File) error {
	fd := int(f.Fd())
	for _, o := range []struct{ option, want int }{{unix.SO_DOMAIN, unix.AF_UNIX}, {unix.SO_TYPE, unix.SOCK_STREAM}, {unix.SO_ACCEPTCONN, 1}} {
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.option); err != nil || v != o.want {
			return errors.New("it is no unix stream socket that listens: write ListenStream= with an absolute path")
		}
	}
	return nil
}

// socketPath is where a unix socket is bound, empty if to no path.
func socketPath(f *os.File) string {
	at, err := unix.Getsockname(int(f.Fd()))
	if u, ok := at.(*unix.SockaddrUnix); err == nil && ok && filepath.IsAbs(u.Name) {
		return u.Name
	}
	return ""
}

// isAt is nil if the socket that systemd hands over is where the configuration has it.
func isAt(f *os.File, path string) error {
	at := socketPath(f)
	if at != "" && (filepath.Clean(at) == filepath.Clean(path) || sameDir(at, path)) {
		return nil
	}
	return fmt.Errorf("systemd listens for vmlockd on %q, and the configuration says socket = %q: make both the same", at, path)
}

// sameDir is true of one name in two paths of one directory, such as /run and /var/run.
func sameDir(a, b string) bool {
	da, err1 := os.Stat(filepath.Dir(a))
	db, err2 := os.Stat(filepath.Dir(b))
	return err1 == nil && err2 == nil && os.SameFile(da, db) && filepath.Base(a) == filepath.Base(b)
}

// forThisProcess says whether systemd has handed something over to this process.
func forThisProcess() bool {
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	return n > 0 && strings.TrimSpace(os.Getenv("LISTEN_PID")) == strconv.Itoa(os.Getpid())
}
