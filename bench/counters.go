package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// usage is what processes have used since their counters were opened.
type usage struct {
	processor time.Duration
	calls     uint64 // system calls
	switches  uint64 // context switches: waits, and turns that another thread took
}

func (u usage) since(before usage) usage {
	return usage{u.processor - before.processor, u.calls - before.calls, u.switches - before.switches}
}

// counters are the kernel's own (perf_event_open(2)), of all threads of some processes,
// also of those that have ended. They cost a process next to nothing, unlike strace(1),
// which stops it twice in every system call.
type counters struct {
	fds [3][]int // by what they count, in the order of usage
}

// countCalls is the tracepoint at which every system call passes.
const countCalls = "events/raw_syscalls/sys_enter/id"

// maxAttempts bounds how often counters are opened anew because a thread began meanwhile.
const maxAttempts = 20

// countersOf opens the counters of processes that run. It takes root, and a kernel with
// CONFIG_FTRACE_SYSCALLS, as Debian's.
func countersOf(pids ...int) (*counters, error) {
	id, err := tracepoint(countCalls)
	if err != nil {
		return nil, err
	}
	events := [3]unix.PerfEventAttr{
		{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK},
		{Type: unix.PERF_TYPE_TRACEPOINT, Config: id},
		{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CONTEXT_SWITCHES},
	}
	for range maxAttempts {
		threads := threadsOf(pids)
		c := &counters{}
		var failed error
		for i := range events {
			events[i].Size = uint32(unsafe.Sizeof(events[i]))
			events[i].Bits = unix.PerfBitInherit // threads that begin later are counted with those that began them
			for _, tid := range threads {
				fd, err := unix.PerfEventOpen(&events[i], tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("perf_event_open: %w", err))
					continue
				}
				c.fds[i] = append(c.fds[i], fd)
			}
		}
		if failed == nil && slices.Equal(threads, threadsOf(pids)) {
			return c, nil
		}
		// A thread that began meanwhile would be counted by some counters and not by others.
		c.close()
		if failed != nil && !errors.Is(failed, unix.ESRCH) {
			return nil, failed
		}
	}
	return nil, errors.New("perf_event_open: threads began and ended all the time")
}

// tracepoint is the number of a tracepoint. The file system that has it is often mounted
// nowhere, so it is mounted here, where nobody else sees it.
func tracepoint(name string) (uint64, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, fmt.Errorf("tracefs: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("tracefs: %w", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("tracefs: %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, fmt.Errorf("tracefs: %s: %w", name, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// threadsOf are the threads of processes, by number.
func threadsOf(pids []int) (list []int) {
	for _, pid := range pids {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, e := range entries {
			if tid, err := strconv.Atoi(e.Name()); err == nil {
				list = append(list, tid)
			}
		}
	}
	slices.Sort(list)
	return list
}

func (c *counters) usage() (u usage, err error) {
	var sums [3]uint64
	for i, fds := range c.fds {
		for _, fd := range fds {
			var b [8]byte
			if n, err := unix.Read(fd, b[:]); err != nil || n != len(b) {
				return usage{}, fmt.Errorf("reading a counter: %d bytes, %w", n, err)
			}
			sums[i] += binary.NativeEndian.Uint64(b[:])
		}
	}
	return usage{time.Duration(sums[0]), sums[1], sums[2]}, nil
}

func (c *counters) close() {
	for _, fds := range c.fds {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
