package daemon

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/closer"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// A request that has no answer when this program is to be replaced goes on until
// then, and counts: the number must be there, for it and for the closer.
func TestKeepWithRequestUnderWay(t *testing.T) {
	nodes := dlmtest.NewCluster(1)
	guard, err := closer.NewGuard(t.TempDir(), "space", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer guard.Close()
	b, err := cluster.New(cluster.Options{Lockspace: "space", Kernel: nodes.Node(1), LastClose: guard})
	if err != nil {
		t.Fatal(err)
	}
	gate := dlmtest.NewGate()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	nodes.Node(1).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
		if op.Op == "lock" {
			f.Result = gate
			cancel() // it is in the kernel
		}
		return f
	})
	h, err := b.Open(t.Context(), locking.Ref{Name: "a"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Lock(ctx, locking.Exclusive); !errors.Is(err, context.Canceled) {
		t.Fatalf("lock: %v", err)
	}
	soon, giveUp := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer giveUp()
	if kept, err := (dlmLocks{b, guard}).Keep(soon, true); err == nil || kept.cluster != nil {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if n, _ := guard.UnderWay().Count(); n != 1 { // a fault if it is not mapped
		t.Errorf("%d requests are under way, want 1", n)
	}
	gate.Open()
	// Waits until nothing counts any more, for the number goes with the guard. That the
	// first Close had to leave a request is its result for good.
	if err := b.Close(t.Context(), false); !errors.Is(err, dlm.ErrUnsettled) {
		t.Errorf("close: %v, want %v", err, dlm.ErrUnsettled)
	}
}
