package dlm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Host is the DLM of the running Linux kernel.
//
// Its devices are looked for under /dev and /dev/misc. A node there that is not the device sysfs tells of - left over
// from a lockspace that was removed and made again, which has another minor then - is passed over. Without a good one a
// node is made in a private directory, opened and removed again, which needs CAP_MKNOD.
func Host() Kernel { return host{&hostPaths} }

// paths are where a host's things are; tests have others.
type paths struct {
	dev   []string // directories with device nodes
	sys   string   // sysfs
	nodes []string // directories in which a private node may be made
}

var hostPaths = paths{dev: []string{"/dev", "/dev/misc"}, sys: "/sys", nodes: []string{"/dev", "/run", os.TempDir()}}

type host struct{ *paths }

const controlName = "dlm-control"

// Control opens /dev/dlm-control.
func (h host) Control() (Device, error) {
	number, err := h.number(controlName)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(h.sys, "module/dlm")); err != nil {
			return nil, ErrNoModule
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	// The control device does not poll; a write to it may wait in the kernel like any other.
	return h.open(controlName, number, 0)
}

// Minor reads /sys/class/misc/dlm_<lockspace>/dev.
func (h host) Minor(lockspace string) (uint32, error) {
	number, err := h.number("dlm_" + lockspace)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, ErrNoLockspace
	case err != nil:
		return 0, err
	}
	return unix.Minor(number), nil
}

// miscMajor is the major number of all misc devices (MISC_MAJOR, include/uapi/linux/major.h).
const miscMajor = 10

// Lockspace opens the device of a lockspace for reading with Go's poller.
func (h host) Lockspace(lockspace string, minor uint32) (Device, error) {
	return h.open("dlm_"+lockspace, unix.Mkdev(miscMajor, minor), unix.O_NONBLOCK)
}

// number is the device number of a misc device, by sysfs.
func (h host) number(name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(h.sys, "class/misc", name, "dev"))
	if err != nil {
		return 0, err
	}
	major, minor, ok := strings.Cut(strings.TrimSpace(string(text)), ":")
	a, errA := strconv.ParseUint(major, 10, 32)
	b, errB := strconv.ParseUint(minor, 10, 32)
	if !ok || errA != nil || errB != nil {
		return 0, fmt.Errorf("%s/class/misc/%s/dev says %q", h.sys, name, text)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}

// open opens the device with that number under one of its names, or by a node of its own.
func (h host) open(name string, number uint64, flags int) (Device, error) {
	var denied error
	for _, dir := range h.dev {
		f, err := openNumber(filepath.Join(dir, name), number, flags)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, fs.ErrPermission):
			denied = err
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errOtherDevice):
		default:
			return nil, err
		}
	}
	f, err := h.openPrivate(name, number, flags)
	switch {
	case err == nil:
		return f, nil
	case denied != nil:
		return nil, fmt.Errorf("%w: %w", ErrPrivilege, denied)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: %w", ErrPrivilege, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrNoDevice, err)
}

var errOtherDevice = errors.New("another device has this name")

// openNumber opens path if it is the character device with that number.
func openNumber(path string, number uint64, flags int) (Device, error) {
	// O_PATH first: opening is what tells a driver, so an unknown device must not even be opened.
	peek, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(peek)
	var st unix.Stat_t
	if err := unix.Fstat(peek, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != number {
		return nil, fmt.Errorf("%s: %w", path, errOtherDevice)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", peek), unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &hostDevice{os.NewFile(uintptr(fd), path)}, nil
}

// openPrivate opens the device by a node that exists only for that.
func (h host) openPrivate(name string, number uint64, flags int) (Device, error) {
	errs := []error{fmt.Errorf("no node of %s can be made", name)}
	for _, dir := range h.nodes {
		d, err := func() (Device, error) {
			tmp, err := os.MkdirTemp(dir, ".vmlockd-")
			if err != nil {
				return nil, err
			}
			defer os.RemoveAll(tmp)
			path := filepath.Join(tmp, name)
			if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(number)); err != nil {
				return nil, &fs.PathError{Op: "mknod", Path: path, Err: err}
			}
			return openNumber(path, number, flags)
		}()
		if err == nil {
			return d, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// hostDevice is an open device. An os.File is used for its poller (Read waits without a thread) and for its count of
// users (Close waits for writes, and the number of the file cannot be used again under them).
type hostDevice struct{ f *os.File }

// Write is one write system call. os.File.Write cannot be used: it takes the kernel's return value for a count of bytes.
// Nor can RawConn.Write, which lets only one write in at a time.
func (d *hostDevice) Write(request []byte) (n int, err error) {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return 0, os.ErrClosed
	}
	if raw.Control(func(fd uintptr) { n, err = unix.Write(int(fd), request) }) != nil {
		return 0, os.ErrClosed // the only reason; the error itself is a hidden one of package internal/poll
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (d *hostDevice) Read(buf []byte) (int, error) {
	n, err := d.f.Read(buf)
	if err != nil {
		return 0, closedOr(err)
	}
	return n, nil
}

func (d *hostDevice) Close() error { return d.f.Close() }

// Detach duplicates the descriptor and closes the one that Go's poller waits on. Nobody else's program can inherit the
// duplicate.
func (d *hostDevice) Detach() (fd int, err error) {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return -1, os.ErrClosed
	}
	if raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }) != nil {
		return -1, os.ErrClosed
	}
	if err != nil {
		return -1, err
	}
	if err := d.f.Close(); err != nil {
		unix.Close(fd)
		return -1, closedOr(err)
	}
	return fd, nil
}

// Duplicate makes another descriptor of the same open file, close-on-exec.
func (d *hostDevice) Duplicate() (*os.File, error) {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return nil, os.ErrClosed
	}
	fd := -1
	if raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }) != nil {
		return nil, os.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.f.Name()), nil
}

// Attach goes on with a descriptor of the lockspace's device.
func (h host) Attach(lockspace string, minor uint32, fd int) (Device, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(miscMajor, minor)) {
		unix.Close(fd)
		err = unix.EINVAL
	}
	if err == unix.EBADF { // nothing is open, so there is nothing to close
		err = unix.EINVAL
	}
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	return &hostDevice{os.NewFile(uintptr(fd), "dlm_"+lockspace)}, nil
}

// closedOr is err without the file's name: os.ErrClosed or the kernel's number, as the port wants it.
func closedOr(err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrClosed):
		return os.ErrClosed
	case errors.As(err, &errno):
		return errno
	}
	return err
}
