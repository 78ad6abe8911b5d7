package cluster_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// A request of an earlier process that the kernel has not answered holds up
// neither the start nor other resources; its own resource is refused until the
// answer has come, and what it got is given back then.
func TestLateAnswer(t *testing.T) {
	for _, granted := range []bool{true, false} {
		name := "refused late"
		if granted {
			name = "granted late"
		}
		t.Run(name, func(t *testing.T) {
			fakeclock.Test(t, func(t *testing.T) { lateAnswer(t, granted) })
		})
	}
}

func lateAnswer(t *testing.T, granted bool) {
	nodes := dlmtest.NewCluster(2)
	late := locking.Ref{Name: "late"}
	resource := cluster.ResourceName(late)
	other, err := dlm.Create(t.Context(), nodes.Node(2), space, dlm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	theirs, err := other.Lock(t.Context(), resource, dlm.EX, dlm.LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gate := dlmtest.NewGate()
	nodes.Node(1).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
		if op.Op == "lock" && op.Name == resource {
			f.Result = gate
		}
		return f
	})
	p := nodes.Node(1).NewProcess()
	earlier, err := dlm.Create(t.Context(), p, space, dlm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := earlier.Lock(ctx, resource, dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
		asked <- err
	}()
	fakeclock.Wait()
	p.Kill()
	giveUp()
	<-asked
	closing, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_ = earlier.Close(closing) // nobody answers it any more

	b, err := cluster.New(cluster.Options{Lockspace: space, Kernel: nodes.Node(1).NewProcess()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background(), false)
	begin := time.Now()
	res := b.Restore(t.Context(), []locking.Held{{ID: resource, Ref: late, Mode: locking.Exclusive}})[0]
	if !errors.Is(res.Err, locking.ErrUnderway) || res.Handle == nil {
		t.Fatalf("restore of an unanswered request: %v", res.Err)
	}
	if err := res.Handle.Unlock(t.Context()); !errors.Is(err, locking.ErrUnderway) {
		t.Errorf("unlock of an unanswered request: %v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the start was held up for %v", took)
	}
	if b.Unsettled() == 0 {
		t.Error("nothing is unsettled, so the journal would forget the request")
	}
	lock := func(name string) error {
		h, err := b.Open(t.Context(), locking.Ref{Name: name}, false)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := h.Lock(ctx, locking.Exclusive); err != nil {
			return err
		}
		return h.Unlock(ctx)
	}
	if err := lock("another"); err != nil {
		t.Errorf("another resource: %v", err)
	}
	if err := lock("late"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the resource in doubt: %v", err)
	}
	nodes.Node(1).SetFault(nil)
	if granted {
		// The simulation decides before it delays an answer. So what the request
		// would have got is taken in its place.
		if err := theirs.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		orphan(t, nodes.Node(1), resource)
	}
	gate.Open()
	time.Sleep(2 * time.Second) // of the bubble's clock
	if n := b.Unsettled(); n != 0 {
		t.Errorf("%d requests are unsettled after the answer", n)
	}
	switch err := lock("late"); {
	case granted && err != nil:
		t.Errorf("after it was given back: %v", err)
	case !granted && !errors.Is(err, locking.ErrBusy):
		t.Errorf("another node has it: %v", err)
	}
	want := 1
	if granted {
		want = 0
	}
	if held := nodes.Locks(space, resource); len(held) != want {
		t.Errorf("locks left in the kernels: %v", held)
	}
}

// orphan leaves a lock of a process that has ended.
func orphan(t *testing.T, n *dlmtest.Node, resource string) {
	t.Helper()
	p := n.NewProcess()
	s, err := dlm.Open(t.Context(), p, space, dlm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(t.Context(), resource, dlm.EX, dlm.LockOptions{Persistent: true}); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	_ = s.Close(t.Context())
}
