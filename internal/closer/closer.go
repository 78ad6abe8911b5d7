package closer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Count is memory that the daemon shares with its closer: how many requests the
// kernel may be working on (dlm.Options.UnderWay). It lasts as long as the process.
type Count struct {
	file *os.File // a memfd
	mem  []byte
}

// NewCount makes a Count of zero.
func NewCount() (*Count, error) {
	fd, err := unix.MemfdCreate("vmlockd-requests", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	c := &Count{file: os.NewFile(uintptr(fd), "vmlockd-requests")}
	if err = c.file.Truncate(int64(os.Getpagesize())); err == nil {
		c.mem, err = mapCount(fd, unix.PROT_READ|unix.PROT_WRITE)
	}
	if err != nil {
		c.file.Close()
		return nil, err
	}
	return c, nil
}

func mapCount(fd, prot int) ([]byte, error) {
	mem, err := unix.Mmap(fd, 0, os.Getpagesize(), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return mem, nil
}

func valueOf(mem []byte) *atomic.Int64 { return (*atomic.Int64)(unsafe.Pointer(&mem[0])) }

// Value is the shared number.
func (c *Count) Value() *atomic.Int64 { return valueOf(c.mem) }

// Closer is a running closer of this process.
type Closer struct{ pid int }

// What a closer finds open.
const (
	lockFD = 3 + iota
	deviceFD
	daemonFD
	countFD
	afterLast
)

// Start starts a closer for the device of a lockspace, which it duplicates. dir is
// the daemon's run-time directory.
func Start(dir, lockspace string, device *os.File, c *Count) (*Closer, error) {
	p, err := start("/proc/self/exe", dir, lockspace, device, c)
	if err != nil {
		return nil, fmt.Errorf("start the process that closes the DLM device last: %w", err)
	}
	return p, nil
}

func start(program, dir, lockspace string, device *os.File, c *Count) (*Closer, error) {
	// Shared, since the closer of what this process executed before may not have
	// ended. The lock belongs to the open file, which the closer inherits.
	lock, err := openLock(dir, lockspace)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("flock %s: %w", lock.Name(), err)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	daemon := os.NewFile(uintptr(fd), "this process")
	defer daemon.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// The standard descriptors must not be the daemon's, whose end others wait for.
	// The session of its own keeps away what is sent to the daemon's process group.
	p, err := os.StartProcess(program, []string{"vmlockd-closer", argument, lockspace}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1", "GOGC=25"},
		Files: []*os.File{null, null, null, lock, device, daemon, c.file},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	pid := p.Pid
	return &Closer{pid}, p.Release()
}

func openLock(dir, lockspace string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "closer-"+lockspace+".lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// PID is the closer's process, for Earlier in a program that this process executes.
func (c *Closer) PID() int { return c.pid }

// Earlier is the closer that the program before this one in the same process has
// started. It is a child of this process, so its pid is nobody else's.
func Earlier(pid int) *Closer { return &Closer{pid} }

// End ends the closer while the daemon lives and has no request under way: before
// the daemon leaves the lockspace, or adopts in the process that had the locks.
func (c *Closer) End() {
	if c == nil || c.pid <= 0 {
		return
	}
	if unix.Kill(c.pid, unix.SIGKILL) == nil {
		for {
			if _, err := unix.Wait4(c.pid, nil, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	c.pid = 0
}

// waitInterval is how often Wait looks.
const waitInterval = 10 * time.Millisecond

// Wait returns nil when no closer of an earlier daemon has the lockspace's device
// open any more. Only then are all locks that the daemon had orphans.
func Wait(ctx context.Context, dir, lockspace string) error {
	lock, err := openLock(dir, lockspace)
	if err != nil {
		return err
	}
	defer lock.Close()
	tick := time.NewTicker(waitInterval)
	defer tick.Stop()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("flock %s: %w", lock.Name(), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the kernel has not answered yet what an earlier vmlockd of this host has asked: %w", ctx.Err())
		}
	}
}
