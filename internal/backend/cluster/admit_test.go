package cluster_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// gated is a backend on one node of a cluster, with a gate that can say no.
func gated(t *testing.T, admit func(asked int) error, f func(t *testing.T, b *cluster.Backend, nodes *dlmtest.Cluster)) {
	t.Helper()
	fakeclock.Test(t, func(t *testing.T) {
		nodes := dlmtest.NewCluster(2)
		var asked atomic.Int32
		b, err := cluster.New(cluster.Options{
			Lockspace: space, Kernel: nodes.Node(1).NewProcess(),
			Admit: func(context.Context) error { return admit(int(asked.Add(1))) },
		})
		if err != nil {
			t.Fatal(err)
		}
		f(t, b, nodes)
		if err := b.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}

func lockOn(t *testing.T, b *cluster.Backend, mode locking.Mode) (locking.Handle, error) {
	t.Helper()
	h, err := b.Open(t.Context(), locking.Ref{Name: "a"}, false)
	if err != nil {
		t.Fatal(err)
	}
	return h, h.Lock(t.Context(), mode)
}

// What is granted and not admitted is given back, and the refusal says why.
func TestNotAdmitted(t *testing.T) {
	vanished := errors.New("node 2 has vanished")
	for name, at := range map[string]int{"before the DLM is asked": 1, "after it has granted": 2} {
		t.Run(name, func(t *testing.T) {
			gated(t, func(asked int) error {
				if asked == at {
					return vanished
				}
				return nil
			}, func(t *testing.T, b *cluster.Backend, nodes *dlmtest.Cluster) {
				_, err := lockOn(t, b, locking.Exclusive)
				var e *locking.Error
				if !errors.As(err, &e) || e.Kind != locking.KindUnavailable || !errors.Is(err, vanished) {
					t.Fatalf("got %v", err)
				}
				fakeclock.Wait()
				if held := nodes.Locks(space, cluster.ResourceName(locking.Ref{Name: "a"})); len(held) != 0 {
					t.Errorf("what was not admitted is still held: %+v", held)
				}
				if b.Unsettled() != 0 {
					t.Error("something is left to be settled")
				}
				// Asked again, now that it is admitted.
				h, err := lockOn(t, b, locking.Exclusive)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A proof is a conversion, and changes nothing.
func TestProve(t *testing.T) {
	gated(t, func(int) error { return nil }, func(t *testing.T, b *cluster.Backend, nodes *dlmtest.Cluster) {
		for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
			h, err := lockOn(t, b, mode)
			if err != nil {
				t.Fatal(err)
			}
			p, ok := h.(locking.Prover)
			if !ok {
				t.Fatal("the handle cannot prove anything")
			}
			before := nodes.Locks(space, cluster.ResourceName(locking.Ref{Name: "a"}))
			if err := p.Prove(t.Context()); err != nil {
				t.Errorf("%v: %v", mode, err)
			}
			after := nodes.Locks(space, cluster.ResourceName(locking.Ref{Name: "a"}))
			if len(before) != 1 || len(after) != 1 || before[0] != after[0] {
				t.Errorf("%v: before %+v, after %+v", mode, before, after)
			}
			// In a lockspace that does not run there is no proof.
			nodes.Suspend(space)
			if err := p.Prove(t.Context()); err == nil || !strings.Contains(err.Error(), "DLM") {
				t.Errorf("%v, stopped: %v", mode, err)
			}
			nodes.Resume(space)
			if err := h.Unlock(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := p.Prove(t.Context()); !errors.Is(err, dlm.ErrUnlocked) {
				t.Errorf("%v, given back: %v", mode, err)
			}
		}
	})
}

// Of a lock from before a restart the kernel may be slow to tell what became of its
// conversion, or do so too late: then it is proved by the next one.
func TestProveAfterRestart(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		nodes := dlmtest.NewCluster(1)
		ref := locking.Ref{Name: "a"}
		resource := cluster.ResourceName(ref)
		earlier := nodes.Node(1).NewProcess()
		had, err := dlm.Create(t.Context(), earlier, space, dlm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := had.Lock(t.Context(), resource, dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true}); err != nil {
			t.Fatal(err)
		}
		earlier.Kill()
		_ = had.Close(t.Context())
		b, err := cluster.New(cluster.Options{Lockspace: space, Kernel: nodes.Node(1).NewProcess()})
		if err != nil {
			t.Fatal(err)
		}
		res := b.Restore(t.Context(), []locking.Held{{ID: resource, Ref: ref, Mode: locking.Exclusive}})[0]
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		p := res.Handle.(locking.Prover)
		answers := func(after time.Duration) {
			gate := dlmtest.NewGate()
			nodes.Node(1).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
				if op.Op == "convert" {
					f.Result = gate
				}
				return f
			})
			time.AfterFunc(after, gate.Open)
		}
		answers(1500 * time.Millisecond)
		if err := p.Prove(t.Context()); err != nil {
			t.Errorf("answered after 1.5 s: %v", err)
		}
		answers(3 * time.Second)
		for range 2 {
			if err := p.Prove(t.Context()); !errors.Is(err, dlm.ErrNoResult) {
				t.Errorf("not answered: %v", err)
			}
		}
		nodes.Node(1).SetFault(nil)
		time.Sleep(2 * time.Second) // by the bubble's clock: until the late answer has come
		if err := p.Prove(t.Context()); err != nil {
			t.Errorf("after the late answer: %v", err)
		}
		if err := res.Handle.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		if err := b.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}

// What only this host can use is granted whoever has vanished, and whoever has lost
// the cluster; it is told by its name, for which no path need be looked at.
func TestOnlyHereIsNotHeldOff(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		nodes := dlmtest.NewCluster(2)
		vanished := errors.New("node 2 has vanished")
		b, err := cluster.New(cluster.Options{
			Lockspace: space, Kernel: nodes.Node(1).NewProcess(),
			Admit: func(context.Context) error { return vanished },
			Identify: func(_ context.Context, path string) (cluster.Disk, error) {
				return cluster.Disk{Name: path, Here: path == "own"}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		try := func(ref locking.Ref) (locking.Handle, error) {
			h, err := b.Open(t.Context(), ref, false)
			if err != nil {
				t.Fatal(err)
			}
			return h, h.Lock(t.Context(), locking.Exclusive)
		}
		h, err := try(locking.Ref{Name: "own"})
		if err != nil {
			t.Fatal(err)
		}
		if !b.OnlyHere(h.ID()) || len(h.ID()) != dlm.MaxResourceName {
			t.Errorf("its name is %q", h.ID())
		}
		if err := h.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		for _, ref := range []locking.Ref{{Name: "shared"}, {Lockspace: "/leases", Name: "own"}} {
			h, err := try(ref)
			if !errors.Is(err, vanished) || !errors.Is(err, locking.ErrNotAsked) {
				t.Errorf("%v: %v", ref, err)
			}
			if b.OnlyHere(h.ID()) {
				t.Errorf("%v has the name %q", ref, h.ID())
			}
			h.Close()
		}
		if err := b.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}
