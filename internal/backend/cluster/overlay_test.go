package cluster_test

import (
	"testing"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// A file of an overlay has another inode after its first write, and the same name by its
// place; and a hard link, which has another place, leads to it as long as the inode is
// the same.
func TestAnInodeThatChangesWhileItIsHeld(t *testing.T) {
	at := func(place, local string) cluster.Disk {
		return cluster.Disk{Name: "overlay 0:45 " + place, Local: local, Here: true, ByPath: true}
	}
	onDisks(t, 1, map[string]cluster.Disk{"/o/web": at("/web", "file 0:45 3"), "/o/hard": at("/hard", "file 0:45 3"), "/o/db": at("/db", "file 0:45 4")}, func(hs *hosts) {
		h := hs.hold(1, "/o/web", locking.Exclusive, vm(1))
		hs.wantBusy(1, "/o/hard", locking.Exclusive)
		for _, path := range []string{"/o/web", "/link"} {
			hs.leads(path, at("/web", "file 0:44 9"))
			hs.wantBusy(1, path, locking.Exclusive)
		}
		hs.unlock(hs.hold(1, "/o/db", locking.Exclusive, vm(2)))
		hs.unlock(h)
		hs.unlock(hs.hold(1, "/link", locking.Exclusive, vm(2)))
		if n := hs.host(1).Known(); n != 0 {
			t.Errorf("%d things are known that nobody holds", n)
		}
	})
}
