package dlm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// StateFile is the kernel's word about a lockspace's recovery: what /sys/kernel/dlm/<lockspace>/recover_status says,
// made anew for each read from offset 0. An *os.File is one.
type StateFile interface {
	io.ReaderAt
	io.Closer
}

// StateKernel is what a Kernel may be besides. Host and the simulation in package dlmtest are.
type StateKernel interface {
	Kernel
	// RecoverStatus opens the recover_status of a lockspace. The error is ErrNoLockspace if there is none on this node.
	// A read of a lockspace that has gone meanwhile fails with syscall.ENODEV.
	RecoverStatus(lockspace string) (StateFile, error)
}

// ErrNoState: this Kernel cannot tell whether a lockspace runs.
var ErrNoState = errors.New("the state of lockspaces cannot be read here")

// RecoverStatus says how far the recovery of a lockspace has come on this node (DLM_RS_* in fs/dlm/dlm_internal.h): 0
// from the moment it is stopped on. The node with the lowest number waits for all others after each step, and notes
// that in a bit of its own; it is the only one to have those.
type RecoverStatus uint32

// The steps of a recovery.
const (
	RecoverNodes    RecoverStatus = 1 << iota // the members are known
	RecoverNodesAll                           // (on the lowest node: to all)
	RecoverDir                                // the directory of resources is rebuilt
	RecoverDirAll
	RecoverLocks // locks of lost nodes are gone, those of lost masters moved
	RecoverLocksAll
	RecoverDone // nothing is left to do here
	RecoverDoneAll
)

// Running reports whether requests are taken. On other nodes than the lowest it is true from the moment this node is
// done, a little before the slowest one is; then a request still waits in the kernel for it. (Whether the lockspace runs
// is a flag that Linux 6.1 shows nowhere.)
func (s RecoverStatus) Running() bool {
	if s&RecoverNodesAll != 0 {
		return s&RecoverDoneAll != 0
	}
	return s&RecoverDone != 0
}

// Stopped reports whether the recovery has not begun: the lockspace was stopped, and dlm_controld has not let it start
// again, or is gone.
func (s RecoverStatus) Stopped() bool { return s == 0 }

// RecoverKernel is what a Kernel may be besides. Host and the simulation in package dlmtest are.
type RecoverKernel interface {
	Kernel
	// RecoverNode is the number of the node that the recovery of a lockspace has asked last. The error is ErrNoLockspace if
	// there is no such lockspace on this node.
	RecoverNode(lockspace string) (uint32, error)
}

// RecoverNode is the number of the node whose answer the recovery of a lockspace waits for, while its RecoverStatus is that
// of one that has begun and is not over: it asks one node after the other, and each again until it has come as far
// (recover_nodeid in sysfs, ls_recover_nodeid in fs/dlm). At other times the number says nothing. It is 0 if none was
// asked yet. The error is ErrNoLockspace if this node has no such lockspace, ErrNoState if k is no RecoverKernel.
func RecoverNode(k Kernel, lockspace string) (uint32, error) {
	const op = "recover node"
	if err := checkLockspace(lockspace); err != nil {
		return 0, fault(op, lockspace, "", err)
	}
	rk, ok := k.(RecoverKernel)
	if !ok {
		return 0, fault(op, lockspace, "", ErrNoState)
	}
	id, err := rk.RecoverNode(lockspace)
	if err != nil {
		return 0, fault(op, lockspace, "", oneOf(err, ErrNoLockspace))
	}
	return id, nil
}

// State tells whether a lockspace of this node runs, by a file that stays open: a look costs one short read that waits
// for nothing (30 us in a User-Mode Linux, about one on hardware). A request that is made while a lockspace is stopped
// keeps a thread in the kernel that cannot even be killed, so look before. Its methods may be called from any goroutine.
type State struct {
	lockspace string

	mu   sync.RWMutex // guards file; held for reading during a read
	file StateFile    // nil after Close
}

// OpenState opens the state of a lockspace this node is a member of, or is just entering. The error is an *OpError
// around ErrNoLockspace if it is not, ErrNoState if k is no StateKernel.
func OpenState(k Kernel, lockspace string) (*State, error) {
	const op = "state"
	if err := checkLockspace(lockspace); err != nil {
		return nil, fault(op, lockspace, "", err)
	}
	sk, ok := k.(StateKernel)
	if !ok {
		return nil, fault(op, lockspace, "", ErrNoState)
	}
	f, err := sk.RecoverStatus(lockspace)
	if err != nil {
		return nil, fault(op, lockspace, "", oneOf(err, ErrNoLockspace))
	}
	return &State{lockspace: lockspace, file: f}, nil
}

// Status reads how far recovery has come. The error is an *OpError around ErrClosed, around ErrNoLockspace if this node
// has left the lockspace (a new State is needed when it has entered it again), or around the kernel's error.
func (s *State) Status() (RecoverStatus, error) {
	const op = "state"
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.file == nil {
		return 0, fault(op, s.lockspace, "", ErrClosed)
	}
	var buf [32]byte
	n, err := s.file.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		if errors.Is(err, syscall.ENODEV) {
			err = ErrNoLockspace
		}
		return 0, fault(op, s.lockspace, "", err)
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(buf[:n])), 16, 32)
	if err != nil {
		return 0, fault(op, s.lockspace, "", fmt.Errorf("recover_status says %q", buf[:n]))
	}
	return RecoverStatus(v), nil
}

// Running reports whether requests are taken; see RecoverStatus.Running, and Status for the errors.
func (s *State) Running() (bool, error) {
	st, err := s.Status()
	return st.Running(), err
}

// Close closes the file.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return fault("state", s.lockspace, "", ErrClosed)
	}
	f := s.file
	s.file = nil
	return f.Close()
}

// RecoverStatus opens /sys/kernel/dlm/<lockspace>/recover_status.
func (h host) RecoverStatus(lockspace string) (StateFile, error) {
	f, err := os.Open(filepath.Join(h.sys, "kernel/dlm", lockspace, "recover_status"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoLockspace
	}
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &stateFile{f, raw}, nil
}

// stateFile is a file of sysfs, which a single read has all of. That of an os.File reads until there is nothing more,
// which takes two.
type stateFile struct {
	*os.File
	raw syscall.RawConn
}

func (f *stateFile) ReadAt(p []byte, off int64) (n int, err error) {
	readErr := f.raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Pread(int(fd), p, off); err != unix.EINTR {
				return true
			}
		}
	})
	if err = cmp.Or(readErr, err); err != nil {
		return 0, &fs.PathError{Op: "read", Path: f.Name(), Err: err}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// RecoverNode reads /sys/kernel/dlm/<lockspace>/recover_nodeid.
func (h host) RecoverNode(lockspace string) (uint32, error) {
	text, err := os.ReadFile(filepath.Join(h.sys, "kernel/dlm", lockspace, "recover_nodeid"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return 0, ErrNoLockspace
	}
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("recover_nodeid says %q", text)
	}
	return uint32(id), nil
}
