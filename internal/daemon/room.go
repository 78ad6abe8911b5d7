package daemon

import (
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
)

// A program that has just begun meets each page of its heap for the first time, and
// the kernel is asked for each by a fault: some thousands until 10,000 locks are taken
// back, which on a virtual machine was the greatest part of a restart. Asked for
// together they cost next to nothing.

const (
	// roomFactor is how much of the heap is needed, until the first answer, for each
	// byte of the journal.
	roomFactor = 6
	// leastRoom is not worth a collection, and mostRoom bounds what is taken on trust:
	// the journal may be full of what ended long ago.
	leastRoom, mostRoom = 1 << 20, 64 << 20
)

// makeRoom has the heap ready for what is taken back with this configuration. What is
// not used goes back with all that is left over, see tidier.
func makeRoom(c config.Config) {
	n := min(roomFactor*journal.Size(filepath.Join(c.RunDir, journalDir(c))), mostRoom)
	if n < leastRoom {
		return
	}
	_ = unix.Madvise(make([]byte, n), unix.MADV_POPULATE_WRITE) // since Linux 5.14
	runtime.GC()                                                // of next to nothing as yet, and then that is free
}
