package local

import (
	"fmt"
	"os"
	"slices"
)

// Unexplained are the files that an earlier process has locked and Restore has not
// taken, sorted, by the path that the kernel knows, or by Handle.ID if it knows none.
// DropOthers releases them.
func (b *Backend) Unexplained() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []string{}
	for id, fds := range b.earlier {
		if b.doubtful[id] {
			continue
		}
		for _, fd := range fds {
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) // asks no file system
			if err != nil {
				path = id
			}
			list = append(list, path)
		}
	}
	slices.Sort(list)
	return list
}
