package history_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestAdoptedInOrder: a start adopts in the order of acquisition, which is not that of
// names: the kernel looks for an orphan from the oldest on, and any other order is far
// slower. What was given back and taken again is where it was taken last.
func TestAdoptedInOrder(t *testing.T) {
	const disks = 100 // more than are adopted in one go
	base := memoryDir(t)
	inBubble(t, 1, func(rt *rapid.T) {
		w := newWorld(rt, base, 1, map[string]int{})
		defer w.end()
		n := w.nodes[0]
		n.spawn(1)
		request := func(disk string, release bool) {
			c := &call{f: &fact{o: n.owners[1], disk: disk}, release: release, mode: locking.Exclusive}
			if err := n.in.request(c); err != nil {
				rt.Fatal(err)
			}
		}
		var taken []string // in the order in which they were
		for i := range disks {
			disk := fmt.Sprintf("disk%d", i*37%disks)
			request(disk, false)
			taken = append(taken, disk)
		}
		for i := 0; i < disks; i += 7 {
			again := taken[0]
			request(again, true)
			request(again, false)
			taken = append(taken[1:], again)
		}
		n.in.die()
		n.in.bury()
		fakeclock.Wait()
		var adopted []string
		w.c.Node(n.id).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
			if op.Op == "adopt" {
				adopted = append(adopted, op.Name) // the simulation calls this with its lock held
			}
			return f
		})
		n.start()
		w.c.Node(n.id).SetFault(nil)
		var want []string
		for _, disk := range taken {
			want = append(want, cluster.ResourceName(ref(disk)))
		}
		if !slices.Equal(adopted, want) {
			rt.Fatalf("%d locks are adopted, want %d, in this order:\n%q\nand were:\n%q", len(adopted), len(want), want, adopted)
		}
		n.end(n.owners[1])
	})
}
