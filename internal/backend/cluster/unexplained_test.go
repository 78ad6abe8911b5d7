package cluster_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestDropOthers: of what the kernel has for this host, an operator can give back what
// nobody has taken, orphans as well as locks that were handed over; and nothing else.
func TestDropOthers(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		nodes := dlmtest.NewCluster(1)
		p := nodes.Node(1).NewProcess()
		take := func(b *cluster.Backend, name string) {
			t.Helper()
			h, err := b.Open(t.Context(), locking.Ref{Name: name}, false)
			if err == nil {
				err = h.Lock(t.Context(), locking.Exclusive)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		first, err := cluster.New(cluster.Options{Lockspace: space, Kernel: p})
		if err != nil {
			t.Fatal(err)
		}
		take(first, "orphan")
		if err := first.Close(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		second, err := cluster.New(cluster.Options{Lockspace: space, Kernel: p})
		if err != nil {
			t.Fatal(err)
		}
		take(second, "handed")
		take(second, "explained")
		h, err := second.Handover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := cluster.New(cluster.Options{Lockspace: space, Kernel: p, Earlier: h})
		if err != nil {
			t.Fatal(err)
		}
		explained := locking.Ref{Name: "explained"}
		kept := b.Restore(t.Context(), []locking.Held{{ID: cluster.ResourceName(explained), Ref: explained, Mode: locking.Exclusive}})
		if kept[0].Err != nil {
			t.Fatal(kept[0].Err)
		}
		handed := cluster.ResourceName(locking.Ref{Name: "handed"})
		if got := b.Unexplained(); !slices.Equal(got, []string{handed}) {
			t.Errorf("unexplained: %q", got)
		}
		if n, err := b.DropOthers(t.Context()); n != 1 || err != nil {
			t.Errorf("released %d, %v", n, err)
		}
		if got := b.Unexplained(); len(got) != 0 {
			t.Errorf("afterwards: %q", got)
		}
		take(b, "orphan")
		take(b, "handed")
		if locks := nodes.Locks(space, cluster.ResourceName(explained)); len(locks) != 1 {
			t.Errorf("the lock with an explanation: %+v", locks)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := b.Close(ctx, false); err != nil {
			t.Error(err)
		}
	})
}
