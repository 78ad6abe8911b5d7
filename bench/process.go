package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memory is how much a process has, in KiB: its proportional share (PSS) where
// the kernel tells it, and otherwise all that is resident.
func memory(pid int) (kib float64, what string) {
	for line := range strings.Lines(read(fmt.Sprintf("/proc/%d/smaps_rollup", pid))) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			if _, err := fmt.Sscanf(rest, "%f kB", &kib); err == nil {
				return kib, "PSS"
			}
		}
	}
	if f := strings.Fields(read(fmt.Sprintf("/proc/%d/statm", pid))); len(f) > 1 {
		pages, _ := strconv.ParseFloat(f[1], 64)
		return pages * float64(os.Getpagesize()) / 1024, "RSS"
	}
	return 0, "unknown"
}

// tick is USER_HZ, which is 100 on every architecture that Go knows.
const tick = 10 * time.Millisecond

// processorTime is what a process has used of the processors.
func processorTime(pid int) time.Duration {
	stat := read(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return 0
	}
	var sum time.Duration
	for _, field := range f[11:13] { // 14 and 15 of proc(5)
		n, _ := strconv.Atoi(field)
		sum += time.Duration(n) * tick
	}
	return sum
}

// ownTime is what this program has used of the processors.
func ownTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// incarnation changes when a process executes a program: the kernel puts its
// auxiliary vector to random addresses.
func incarnation(pid int) string { return read(fmt.Sprintf("/proc/%d/auxv", pid)) }
