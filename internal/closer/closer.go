package closer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
)

// Count is memory that the daemon shares with its closer: what the kernel may be
// working on (dlm.UnderWay). It lasts as long as the process.
type Count struct {
	file *os.File // a memfd
	mem  []byte
	*dlm.UnderWay
}

// NewCount makes a Count of nothing.
func NewCount() (*Count, error) {
	fd, err := unix.MemfdCreate("vmlockd-requests", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	c := &Count{file: os.NewFile(uintptr(fd), "vmlockd-requests")}
	if err = c.file.Truncate(dlm.UnderWaySize); err == nil {
		err = c.open(fd, unix.PROT_READ|unix.PROT_WRITE)
	}
	if err != nil {
		c.file.Close()
		return nil, err
	}
	return c, nil
}

func (c *Count) open(fd, prot int) (err error) {
	if c.mem, err = unix.Mmap(fd, 0, dlm.UnderWaySize, prot, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	c.UnderWay, err = dlm.NewUnderWay(c.mem)
	return err
}

// What a closer finds open.
//
// The lock that Wait waits for is there twice, below and above the device, each
// with an open file of its own. A closer closes the device itself before it ends.
// But when it is killed the kernel closes all of them, in an order that is nobody's
// promise (__fput by task work, in the opposite order of the descriptors on Linux
// 6.1); whichever way it goes, one of the two is closed after the device.
const (
	lockFD = 3 + iota
	deviceFD
	daemonFD
	countFD
	lockAgainFD
	afterLast
)

// environment is the environment of a closer, which has none of the daemon's.
var environment = []string{"GOMAXPROCS=1", "GOGC=25"}

// Start starts a closer for the device of a lockspace, which it duplicates. dir is
// the daemon's run-time directory.
func Start(dir, lockspace string, device *os.File, c *Count) (*Closer, error) {
	beforeStart.Pass()
	p, err := start("/proc/self/exe", dir, lockspace, device, c)
	if err != nil {
		return nil, fmt.Errorf("start the process that closes the DLM device last: %w", err)
	}
	afterStart.Pass()
	return p, nil
}

func start(program, dir, lockspace string, device *os.File, c *Count) (*Closer, error) {
	var locks [2]*os.File
	for i := range locks {
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
		locks[i] = lock
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
		Env:   append(slices.Clone(environment), testEnv()...),
		Files: []*os.File{null, null, null, locks[0], device, daemon, c.file, locks[1]},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	pid := p.Pid
	return follow(pid), p.Release()
}

func openLock(dir, lockspace string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "closer-"+lockspace+".lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
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
