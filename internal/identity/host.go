package identity

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// thisHost is the kernel that this process runs on.
type thisHost struct {
	from string // "" means /proc/self/mountinfo

	mu sync.Mutex // guards what follows
	// fd is mountinfo, from its first use on. It is no os.File: the runtime would poll it
	// too, and the kernel tells of a change once for each open file.
	fd    int
	open  bool
	table *mountTable
}

func (*thisHost) at(path string) string { return path }

func (*thisHost) look(path string) (node, error) {
	// O_PATH opens nothing: no driver hears of it, no FIFO waits, no lease is broken.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return node{}, err
	}
	defer unix.Close(fd)
	own := "/proc/self/fd/" + strconv.Itoa(fd)
	n := node{}
	if n.path, err = os.Readlink(own); err != nil {
		return node{}, err
	}
	var st unix.Statx_t
	const want = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_MNT_ID
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT, want, &st); err != nil {
		return node{}, fmt.Errorf("statx: %w", err)
	}
	n.mode, n.ino = uint32(st.Mode), st.Ino
	n.dev, n.rdev = number{st.Dev_major, st.Dev_minor}, number{st.Rdev_major, st.Rdev_minor}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		n.mount = st.Mnt_id
	} else {
		n.mount = mountOfFD(fd) // before Linux 5.8
	}
	return n, nil
}

func (*thisHost) link(path string) string {
	for size := 256; ; size *= 4 {
		to := make([]byte, size)
		n, err := ignoringEINTR(func() (int, error) { return unix.Readlink(path, to) })
		if err != nil || n <= 0 {
			return ""
		}
		if n < size || size > maxPath {
			return string(to[:n])
		}
	}
}

// mountOfFD is the number of the mount that a file was opened on; 0 if it is not
// told (proc_pid_fdinfo(5)).
func mountOfFD(fd int) uint64 {
	text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0
	}
	_, after, ok := bytes.Cut(text, []byte("mnt_id:"))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(after, []byte("\n"))
	id, _ := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
	return id
}

func (*thisHost) fsid(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	return uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32, nil
}

// maxXattr bounds an attribute's value, in bytes. The one that is asked for is a UUID.
const maxXattr = 64

func (*thisHost) xattr(path, name string) (string, error) {
	var value [maxXattr]byte
	n, err := unix.Getxattr(path, name, value[:])
	switch {
	case err == unix.ENODATA, err == unix.EOPNOTSUPP:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("getxattr %s: %w", name, err)
	}
	return strings.Trim(string(value[:n]), " \t\n\x00"), nil
}

// maxMountinfo bounds, in bytes, what is read of mountinfo.
const maxMountinfo = 256 << 20

// mounts reads mountinfo again only after a change, of which poll(2) tells
// (proc_pid_mounts(5)), or if it is asked to.
func (h *thisHost) mounts(again bool) (*mountTable, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open {
		from := h.from
		if from == "" {
			from = "/proc/self/mountinfo"
		}
		fd, err := ignoringEINTR(func() (int, error) { return unix.Open(from, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", from, err)
		}
		h.fd, h.open = fd, true
	}
	p := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLPRI}}
	// Asked also when it is to be read anyway: what has changed until now is told then.
	n, err := ignoringEINTR(func() (int, error) { return unix.Poll(p, 0) })
	if h.table != nil && !again && err == nil && n == 0 {
		return h.table, nil
	}
	h.table = nil
	if _, err := unix.Seek(h.fd, 0, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := readAll(h.fd, maxMountinfo)
	if err != nil {
		return nil, err
	}
	t, err := parseMounts(text)
	if err != nil {
		return nil, err
	}
	h.table = t
	return t, nil
}

// readAll reads to the end, if that is not more than most bytes away.
func readAll(fd, most int) ([]byte, error) {
	text := make([]byte, 0, 16<<10)
	for {
		if len(text) == cap(text) {
			text = append(make([]byte, 0, 4*cap(text)), text...)
		}
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return text, nil
		}
		if text = text[:len(text)+n]; len(text) > most {
			return nil, fmt.Errorf("mountinfo has more than %d bytes", most)
		}
	}
}
