package journal

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A process that is killed gives back its flock while it ends, but has ended only
// when all its other files are closed too. The DLM closes none while it recovers
// or the cluster has no quorum, and carries out first what the process had asked
// for. Until then its locks cannot be adopted, and whoever tried would take them
// for lost. So the last user of a journal must really have ended.

// endPatience is how long Open waits for that. Tests change it.
var endPatience = 2000 // milliseconds

// awaitEnd waits until the process that had the journal last has ended.
func awaitEnd(text, started string) error {
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 || pid == os.Getpid() || started == "" {
		return nil // none, or it is this process
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // most likely ESRCH
	}
	defer unix.Close(fd)
	if startTime(pid) != started {
		return nil // another process has its pid
	}
	// A pidfd is readable once all threads of the process have ended.
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(fds, endPatience); {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("%w: process %d, which had it last, has not left the kernel yet", ErrInUse, pid)
		default:
			return nil
		}
	}
}

// startTime is when a process started, as /proc/PID/stat has it (field 22), and
// "" if there is none.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field is in parentheses, and may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return ""
	}
	return string(fields[19])
}
