package closer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Closer is a running closer of this process.
type Closer struct {
	pid   int
	pidfd *os.File
	wait  sync.WaitGroup
	ended chan struct{} // closed when it has ended, or was never there
}

// Earlier is the closer that the program before this one in the same process has
// started.
func Earlier(pid int) *Closer { return follow(pid) }

// follow waits for the end of a child of this process. If it is none, as its end
// was noticed before, it has ended.
func follow(pid int) *Closer {
	c := &Closer{pid: pid, ended: make(chan struct{})}
	if err := c.open(); err != nil {
		c.pid = 0
		close(c.ended)
	}
	return c
}

var errNoChild = errors.New("no child of this process")

func (c *Closer) open() error {
	if c.pid <= 0 || unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != nil {
		return errNoChild
	}
	// A child's pid is nobody else's before it was waited for.
	fd, err := unix.PidfdOpen(c.pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	c.pidfd = os.NewFile(uintptr(fd), "pidfd of the closer")
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		c.pidfd.Close()
		return err
	}
	c.wait.Go(func() {
		reaped := false
		// Readable when it has ended (pidfd_open(2)); it returns early only when the
		// file is closed.
		_ = conn.Read(func(uintptr) bool {
			pid, err := unix.Wait4(c.pid, nil, unix.WNOHANG, nil)
			reaped = pid == c.pid || err == unix.ECHILD
			return reaped
		})
		if reaped {
			close(c.ended)
		}
	})
	return nil
}

// Ended is closed when the closer has ended, for whatever reason.
func (c *Closer) Ended() <-chan struct{} { return c.ended }

// forget ends what follow has begun. The closer goes on.
func (c *Closer) forget() {
	if c.pidfd != nil {
		c.pidfd.Close()
	}
	c.wait.Wait()
}

// PID is the closer's process, for Earlier in a program that this process executes;
// 0 if it has ended.
func (c *Closer) PID() int {
	select {
	case <-c.ended:
		return 0
	default:
		return c.pid
	}
}

// End ends the closer while the daemon has no request under way, and waits until it
// has ended or ctx ends. If it is the last that has the device open, closing that
// takes as long as the lockspace is stopped.
func (c *Closer) End(ctx context.Context) error {
	beforeEnd.Pass()
	if pid := c.PID(); pid > 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	select {
	case <-c.ended:
	case <-ctx.Done():
		return fmt.Errorf("process %d, which closes the DLM device, has not ended, as the kernel has not let go of the device: %w", c.pid, ctx.Err())
	}
	c.forget()
	afterEnd.Pass()
	return nil
}

// readyWithin bounds how long Dismiss waits for a closer that has just been started. A
// variable for tests.
var readyWithin = time.Second

// Dismiss tells the closer to do now what it does after the daemon's end: wait for
// the answers, close the device and end. For that it is not waited.
func (c *Closer) Dismiss() {
	tick := time.NewTicker(waitInterval)
	defer tick.Stop()
	late := time.NewTimer(readyWithin)
	defer late.Stop()
	for {
		pid := c.PID()
		if pid == 0 {
			return
		}
		switch s := listens(pid); s {
		case yes:
			_ = unix.Kill(pid, dismissal)
			return
		case never:
			_ = unix.Kill(pid, unix.SIGKILL)
			return
		}
		select {
		case <-tick.C:
		case <-c.ended:
			return
		case <-late.C:
			_ = unix.Kill(pid, dismissal) // whatever it does, the device is closed
			return
		}
	}
}

// dismissal is the signal of Dismiss.
const dismissal = unix.SIGUSR2

type listening int

const (
	notYet listening = iota
	yes
	never // a closer of an earlier version, which ignores the signal
)

// comm is the name that a closer has once it has set up its signals (proc_pid_comm(5)).
const comm = "vmlockd-closer"

// listens says whether a closer takes the signal.
func listens(pid int) listening {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || string(bytes.TrimSpace(name)) != comm {
		return notYet
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return notYet
	}
	for line := range bytes.Lines(status) {
		if mask, ok := bytes.CutPrefix(line, []byte("SigIgn:")); ok {
			bits, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
			if err == nil && bits&(1<<(dismissal-1)) != 0 {
				return never
			}
		}
	}
	return yes
}
