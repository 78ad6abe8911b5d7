package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// spacesDir is where dlm_controld tells the kernel who is in which lockspace
// (fs/dlm/config.c, dlm_controld/action.c).
const spacesDir = "/sys/kernel/config/dlm/cluster/spaces"

// Members are the members of a lockspace as this host's kernel was told last. It
// is an error if this host is in no such lockspace.
func Members(lockspace string) ([]uint32, error) { return membersIn(spacesDir, lockspace) }

func membersIn(dir, lockspace string) ([]uint32, error) {
	entries, err := os.ReadDir(filepath.Join(dir, lockspace, "nodes"))
	if err != nil {
		return nil, err
	}
	list := make([]uint32, 0, len(entries))
	for _, e := range entries {
		// dlm_controld names them by their number.
		n, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no node's number", dir, e.Name())
		}
		list = append(list, uint32(n))
	}
	slices.Sort(list)
	return list, nil
}

// BootClock is the time since boot, sleep included (clock_gettime(2)).
func BootClock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("guard: CLOCK_BOOTTIME: " + err.Error()) // since Linux 2.6.39
	}
	return time.Duration(t.Nano())
}
