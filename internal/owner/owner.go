// Package owner watches the processes that own locks and ends them when that is
// the only safe thing left.
//
// A Process is found by its pid once, through a pidfd, and stays that process
// even if its pid is used again. It may be used from many goroutines. Nothing
// here keeps a thread waiting: the pidfds are in the Go runtime's poller.
package owner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// TermGrace is how long a process has between SIGTERM and SIGKILL. virtlockd
// gives the same (measured on 9.0).
const TermGrace = 1600 * time.Millisecond

// Processes finds processes of this host. The zero value is ready for use.
type Processes struct{}

// Open finds the process that has this pid now. It returns
// locking.ErrNoProcess if there is none, and otherwise what pidfd_open(2) says:
// EMFILE and ENFILE when descriptors have run out.
func (Processes) Open(pid int32) (locking.Process, error) {
	p, err := open(pid)
	if err != nil {
		return nil, err // and not p, which would be a Process that is not nil
	}
	return p, nil
}

func open(pid int32) (*Process, error) {
	fd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		// EINVAL: the pid is a thread's, not a process's.
		return nil, locking.ErrNoProcess
	case err != nil:
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &Process{pid: pid, file: f, gone: make(chan struct{})}
	// Read with the pidfd open: the pid cannot become another process's meanwhile
	// unless this one has ended, which the pidfd then says.
	p.start, err = startTime(pid)
	if err != nil {
		f.Close()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, locking.ErrNoProcess
		}
		return nil, err
	}
	// A pidfd becomes readable when the process has ended, also while it is a
	// zombie (pidfd_open(2)). Read returns early only when the file is closed.
	p.wait.Go(func() {
		ended := false
		_ = conn.Read(func(fd uintptr) bool {
			ended = hasEnded(int(fd))
			return ended
		})
		if ended {
			close(p.gone)
		}
	})
	return p, nil
}

func hasEnded(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
	}
}

// Process is one process of this host.
type Process struct {
	pid   int32
	start uint64
	file  *os.File
	wait  sync.WaitGroup
	gone  chan struct{}
}

// StartTime is when the process started, in clock ticks since boot (field 22 of
// /proc/PID/stat, proc(5)). With the pid it tells a process from all others of
// this boot.
func (p *Process) StartTime() uint64 { return p.start }

func startTime(pid int32) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, and may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const at = 22 - 3 // the first of these is field 3
	if len(fields) <= at {
		return 0, fmt.Errorf("%s has too few fields", path)
	}
	v, err := strconv.ParseUint(fields[at], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: start time: %w", path, err)
	}
	return v, nil
}

// Gone is closed when the process has ended. It is not closed by Close.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// End sends SIGTERM, after TermGrace SIGKILL, and returns when the process is
// gone. If ctx ends first the error says so: a process that waits for a disk in
// the kernel (state D) does not end until the disk answers.
func (p *Process) End(ctx context.Context) error {
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	begun := time.Now()
	grace := time.NewTimer(TermGrace)
	defer grace.Stop()
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		if time.Since(begun) < TermGrace {
			return p.stillThere(ctx)
		}
		// This process did not run for a while, and both are over: whoever gives up
		// after the grace counts on the SIGKILL.
	case <-grace.C:
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		return p.stillThere(ctx)
	}
}

func (p *Process) stillThere(ctx context.Context) error {
	return fmt.Errorf("process %d has not ended yet: %w", p.pid, ctx.Err())
}

// Signal sends a signal, which is no error if the process has ended.
func (p *Process) Signal(sig unix.Signal) error { return p.signal(sig) }

func (p *Process) signal(sig unix.Signal) error {
	conn, err := p.file.SyscallConn()
	if err == nil {
		var sent error
		err = conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		if err == nil {
			err = sent
		}
	}
	if err == nil || errors.Is(err, unix.ESRCH) {
		return nil // ESRCH: it has ended and was waited for; Gone is about to say so
	}
	return fmt.Errorf("send signal %d to process %d: %w", sig, p.pid, err)
}

// Close forgets the process and lets go of its descriptor.
func (p *Process) Close() {
	p.file.Close()
	p.wait.Wait()
}
