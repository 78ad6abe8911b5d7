package identity

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// thisHost is the kernel that this process runs on.
type thisHost struct {
	mu    sync.Mutex // guards what follows
	file  *os.File   // mountinfo; nil before it is needed
	table *mountTable
}

func (*thisHost) tree() string { return "" }

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

// maxMountinfo bounds, in bytes, what is read of mountinfo.
const maxMountinfo = 256 << 20

// mounts reads mountinfo again only after a change, of which poll(2) tells
// (proc_pid_mounts(5)).
func (h *thisHost) mounts() (*mountTable, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil {
		f, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			return nil, err
		}
		h.file = f
	}
	if h.table != nil {
		p := []unix.PollFd{{Fd: int32(h.file.Fd()), Events: unix.POLLPRI}}
		if n, err := unix.Poll(p, 0); err == nil && n == 0 {
			return h.table, nil
		}
	}
	// A change during the read is told of by the next poll.
	h.table = nil
	if _, err := h.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(h.file, maxMountinfo))
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
