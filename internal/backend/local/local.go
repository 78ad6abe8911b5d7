// Package local holds locks on files of this host, the way virtlockd does: a
// record lock on byte 0, length 1, of the disk itself or of a file in a
// lockspace's directory. A virtlockd, or a vmlockd, on another client of the
// same NFS server sees these locks and this package sees theirs.
//
// The locks are open file description locks (fcntl(2), F_OFD_SETLK), which
// conflict with virtlockd's but do not vanish when the daemon closes the file
// under another name. A file is one resource under all its names: it is known by
// device and inode, a block or character device by its number.
//
// A file system that hangs delays only those who ask for its files: each system
// call on a file has a goroutine of its own, their number is bounded, and nobody
// waits for one longer than his context allows. What such a call still brings
// about later is undone.
//
// A lock ends with the last descriptor of its open file. With a keeper, a process
// that has a duplicate of each, locks outlive this process: a lock is granted only
// when the keeper has it, or has it in its socket and room for it, it is given up
// explicitly and not by closing, and Restore takes back what an earlier process held.
package local

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// maxCalls bounds the system calls on files under way at once. Each that hangs
// keeps a thread.
const maxCalls = 1024

// keeper has duplicates of descriptors that outlive this process; *holder.Client is one.
type keeper interface {
	// Put returns nil if and only if a duplicate of fd is with the keeper, whatever happens
	// to this process. After an error it has none, or gives it up by itself.
	Put(ctx context.Context, key string, fd int) error
	// Drop makes the keeper close its duplicate a while later. It does not wait, and
	// comes before fd is closed.
	Drop(fd int)
	// Taken gives what the keeper had when this process connected, duplicated: key
	// and descriptor. A key can occur several times.
	Taken() iter.Seq2[string, int]
}

// The points at which a crash test kills the daemon.
var (
	lockBefore   = failpoint.New("local.lock.before")
	lockAfter    = failpoint.New("local.lock.after")
	putAfter     = failpoint.New("local.put.after")
	unlockBefore = failpoint.New("local.unlock.before")
	unlockAfter  = failpoint.New("local.unlock.after")
	// The file of a lock that is taken with AUTOCREATE is made, and removed.
	// mkdir and delete are what clients ask for by themselves.
	mkdirBefore  = failpoint.New("local.mkdir.before")
	mkdirAfter   = failpoint.New("local.mkdir.after")
	deleteBefore = failpoint.New("local.delete.before")
	deleteAfter  = failpoint.New("local.delete.after")
	createBefore = failpoint.New("local.create.before")
	createAfter  = failpoint.New("local.create.after")
	unlinkBefore = failpoint.New("local.unlink.before")
	unlinkAfter  = failpoint.New("local.unlink.after")

	// When locks are taken back: with a descriptor of the earlier process, anew, and
	// given back as nobody's.
	takeBefore   = failpoint.New("local.restore.take.before")
	takeAfter    = failpoint.New("local.restore.take.after")
	relockBefore = failpoint.New("local.restore.relock.before")
	relockAfter  = failpoint.New("local.restore.relock.after")
	dropBefore   = failpoint.New("local.restore.drop.before")
	dropAfter    = failpoint.New("local.restore.drop.after")
)

// Backend locks files. Its methods may be called from many goroutines.
type Backend struct {
	sys    system
	keeper keeper // nil: locks end with this process
	log    *slog.Logger
	slots  chan struct{}
	// same says that this process has locked the earlier descriptors itself, and has
	// had them since: there is nothing to find out about them.
	same bool
	// distrusted says that records of locks may be missing.
	distrusted bool
	// unsettled counts what goes on after an Unlock that was given up, and after a Close.
	unsettled atomic.Int64
	pace      pace
	workers   workers
	spareJobs sync.Pool // of *job

	mu sync.Mutex // guards all below
	// earlier are the descriptors of an earlier process that Restore has not taken,
	// by Handle.ID, in the order in which they were locked.
	earlier map[string][]int
	// doubtful are the IDs for which a Restore got no answer. What an earlier process
	// has of them stays locked.
	doubtful map[string]bool
	// restored are the IDs of which Restore has given out a lock.
	restored map[string]bool
	// hanging counts calls whose callers have gone away, by path. A path that
	// hung once hangs again, and is refused until the first call has returned.
	hanging map[string]hangs
}

// New makes a Backend whose locks end with this process.
func New() *Backend { return NewKept(nil, slog.New(slog.DiscardHandler)) }

// NewKept makes a Backend whose locks outlive this process, by means of k. Before
// it is used otherwise, Restore and DropOthers settle what an earlier process held.
func NewKept(k keeper, log *slog.Logger) *Backend {
	b := &Backend{sys: kernel{}, keeper: k, log: log, slots: make(chan struct{}, maxCalls), hanging: map[string]hangs{},
		earlier: map[string][]int{}, doubtful: map[string]bool{}, restored: map[string]bool{}}
	if k != nil {
		n := 0
		for range k.Taken() {
			n++
		}
		// At once: growing would touch twice the memory.
		b.earlier, b.restored = make(map[string][]int, n), make(map[string]bool, n)
		fds := make([]int, 0, n)
		for id, fd := range k.Taken() {
			if had := b.earlier[id]; had != nil {
				b.earlier[id] = append(had, fd)
				continue
			}
			fds = append(fds, fd)
			b.earlier[id] = fds[len(fds)-1 : len(fds) : len(fds)]
		}
	}
	return b
}

// NewSame is NewKept in a process in which an earlier Backend has worked, with the
// descriptors that it had; its Settled must have been nil at the end. Restore then
// asks no file system.
func NewSame(k keeper, log *slog.Logger) *Backend {
	b := NewKept(k, log)
	b.same = true
	return b
}

// Settled is nil if every descriptor that the keeper has is of a lock that this
// Backend has given out, and nothing that was given up goes on by itself.
func (b *Backend) Settled() error {
	if n := b.Unsettled(); n > 0 {
		return fmt.Errorf("%d file accesses hang in the kernel", n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	unknown := 0
	for _, fds := range b.earlier {
		unknown += len(fds)
	}
	if unknown > 0 {
		return fmt.Errorf("%d files are kept locked, and it is not known for whom", unknown)
	}
	return nil
}

// CreateLockspace makes the directory and its parents if they are missing, mode
// 0700.
func (b *Backend) CreateLockspace(ctx context.Context, path string) error {
	return b.call(ctx, path, func() error {
		mkdirBefore.Pass()
		err := b.sys.mkdir(path)
		mkdirAfter.Pass()
		if st, statErr := b.sys.stat(path); statErr == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &locking.Error{Kind: locking.KindInvalid, Ref: locking.Ref{Lockspace: path},
				//lint:ignore ST1005 the words are virtlockd's
				Err: fmt.Errorf("Lockspace location %s exists, but is not a directory", path)}
		}
		return err
	}, func() {})
}

// CreateResource makes an empty file, mode 0600, if there is none.
func (b *Backend) CreateResource(ctx context.Context, ref locking.Ref) error {
	path, err := pathOf("create resource", ref)
	if err != nil {
		return err
	}
	return b.call(ctx, path, func() error {
		createBefore.Pass()
		fd, err := b.sys.open(path, true)
		createAfter.Pass()
		if err == nil {
			b.sys.close(fd)
		}
		return err
	}, func() {})
}

// maxReplaced bounds how often DeleteResource begins again because the file was
// replaced meanwhile.
const maxReplaced = 16

// DeleteResource removes the file, with its lock: one that somebody has locked, here or on
// another host, must keep its name, as without it the next one would lock a new file.
func (b *Backend) DeleteResource(ctx context.Context, ref locking.Ref) error {
	path, err := pathOf("delete resource", ref)
	if err != nil {
		return err
	}
	return b.call(ctx, path, func() error {
		deleteBefore.Pass()
		defer deleteAfter.Pass()
		err := locking.ErrStale
		for try := 0; try < maxReplaced && err == locking.ErrStale; try++ {
			err = b.deleteFile(path)
		}
		return err
	}, func() {})
}

// deleteFile returns ErrStale, as it is, if the file was replaced before it was locked.
func (b *Backend) deleteFile(path string) error {
	fd, err := b.sys.open(path, false)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer b.sys.close(fd) // which ends the lock
	st, err := b.sys.fstat(fd)
	if err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	h := &handle{b: b, path: path, id: idOf(st), fd: fd}
	if err := b.sys.lock(fd, false); err != nil {
		if isBusy(err) {
			return h.busy(locking.Exclusive)
		}
		return fmt.Errorf("lock: %w", err)
	}
	if err := h.stillThere(); err != nil {
		return err
	}
	if err := b.sys.unlink(path); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// Open opens the file and looks what it is.
func (b *Backend) Open(ctx context.Context, ref locking.Ref, autocreate bool) (locking.Handle, error) {
	path, err := pathOf("acquire", ref)
	if err != nil {
		return nil, err
	}
	h := &handle{b: b, path: path, autocreate: autocreate, fd: -1}
	if err := b.do(ctx, path, (*openTask)(h), 0); err != nil {
		return nil, err
	}
	return h, nil
}

// openTask is a handle whose file is being opened.
type openTask handle

func (o *openTask) do(*job) error {
	b := o.b
	if o.autocreate {
		createBefore.Pass()
	}
	fd, err := b.sys.open(o.path, o.autocreate)
	if o.autocreate {
		createAfter.Pass()
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	st, err := b.sys.fstat(fd)
	if err != nil {
		b.sys.close(fd)
		return fmt.Errorf("fstat: %w", err)
	}
	o.fd, o.id = fd, idOf(st)
	return nil
}

func (o *openTask) late() {
	if o.fd >= 0 {
		o.b.sys.close(o.fd)
	}
}

// pathOf is the file that stands for a resource: in the default lockspace its
// name is the path.
func pathOf(op string, ref locking.Ref) (string, error) {
	if ref.Lockspace == "" {
		return ref.Name, nil
	}
	for part := range strings.SplitSeq(ref.Name, "/") {
		if part == ".." {
			return "", &locking.Error{Kind: locking.KindInvalid, Op: op, Ref: ref,
				Err: fmt.Errorf("a name with '..' leads out of its lockspace %s", ref.Lockspace)}
		}
	}
	return ref.Lockspace + "/" + ref.Name, nil
}

// programName is what process pid calls itself, for messages.
func programName(pid int32) string {
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "comm"))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
