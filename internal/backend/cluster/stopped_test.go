package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld/controldtest"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

const space = "disks"

// world is a backend on node 1 of three, with a dlm_controld of its own.
type world struct {
	t        *testing.T
	nodes    *dlmtest.Cluster
	controld *controldtest.Daemon
	b        *cluster.Backend
	holders  []locking.Holder
	identify func(context.Context, string) (cluster.Disk, error)

	log  testenv.Log
	mu   sync.Mutex  // guards what a test notes of events
	lost atomic.Bool // the guard says that this host has lost the cluster
}

func (w *world) logged() string { return w.log.String() }

// lostCluster is what a guard says that has lost the cluster.
type lostCluster struct{}

func (lostCluster) Error() string { return "this host has lost the cluster" }
func (lostCluster) Cause() string { return "guard_lost" }

// bubble runs f with a world in a bubble, where time passes only when all wait.
func bubble(t *testing.T, f func(*world)) {
	fakeclock.Test(t, func(t *testing.T) {
		w := &world{t: t, nodes: dlmtest.NewCluster(3), controld: controldtest.New(3, space)}
		b, err := cluster.New(cluster.Options{
			Lockspace: space, Kernel: w.nodes.Node(1), Controld: w.controld.Client(), Log: slog.New(slog.NewTextHandler(&w.log, nil)),
			Holders: func() []locking.Holder { return w.holders },
			Admit: func(context.Context) error {
				if w.lost.Load() {
					return lostCluster{}
				}
				return nil
			},
			Identify: func(ctx context.Context, path string) (cluster.Disk, error) {
				if w.identify == nil {
					return cluster.Disk{Name: path}, nil
				}
				return w.identify(ctx, path)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.b = b
		f(w)
		w.nodes.Resume(space)
		w.controld.Thaw()
		if err := b.Close(t.Context(), false); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func (w *world) open(name string) locking.Handle {
	w.t.Helper()
	h, err := w.b.Open(w.t.Context(), locking.Ref{Name: name}, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *world) locked(name string) []dlmtest.Held {
	return w.nodes.Locks(space, cluster.ResourceName(locking.Ref{Name: name}))
}

// refused tries to lock and expects a refusal with that text within a second.
func (w *world) refused(name, text string) {
	w.t.Helper()
	start := time.Now()
	err := w.open(name).Lock(w.t.Context(), locking.Exclusive)
	var e *locking.Error
	if !errors.As(err, &e) || e.Kind != locking.KindUnavailable || !strings.Contains(err.Error(), text) {
		w.t.Errorf("got %v, want %q", err, text)
	}
	if took := time.Since(start); took > time.Second {
		w.t.Errorf("refused after %v: %v", took, err)
	}
	if !errors.Is(err, locking.ErrNotAsked) {
		w.t.Errorf("the kernel was not asked, and nobody is told so: %v", err)
	}
	if locking.Cause(err) == "" {
		w.t.Errorf("no word says why: %v", err)
	}
}

func TestRefusedWithReason(t *testing.T) {
	lost := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-14 * time.Second) // a bubble's time begins in 2000
	for _, tc := range []struct {
		name string
		do   func(*controldtest.Daemon)
		text string
	}{
		{"recovering", func(*controldtest.Daemon) {}, "recovering"},
		{"quorum", func(d *controldtest.Daemon) { d.Lose(lost, true, 2, 3) },
			"the cluster has no quorum: 2 of 3 nodes are missing: 2, 3 (see corosync-quorumtool -s)"},
		{"fencing", func(d *controldtest.Daemon) { d.Lose(lost, true, 3) },
			"waiting for fencing of node 3, lost at 1999-12-31T23:59:46Z, 1"},
		{"membership", func(d *controldtest.Daemon) { d.Set(func(s *controldtest.State) { s.Status.ClusterRing++ }) },
			"the membership of the cluster is changing"},
		{"merge", func(d *controldtest.Daemon) { d.Set(func(s *controldtest.State) { s.Status.MergeWait = true }) },
			"were separated and have met again"},
		{"hangs", func(d *controldtest.Daemon) { d.Freeze() }, "dlm_controld does not answer"},
		{"gone", func(d *controldtest.Daemon) { d.Kill() },
			"dlm_controld is not running: this host can neither get nor give back locks until it is rebooted; locks held here: 1: web has '/web.img' (exclusive)"},
		{"restarted", func(d *controldtest.Daemon) { d.Set(func(s *controldtest.State) { s.Lockspaces = nil }) },
			"dlm_controld was restarted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.holders = []locking.Holder{{Owner: locking.Owner{Name: "web"}, Ref: locking.Ref{Name: "/web.img"}}}
				w.nodes.Suspend(space)
				tc.do(w.controld)
				w.refused("a", tc.text)
				w.refused("b", tc.text) // also when it is known
				if n := w.nodes.Names(space); len(n) > 0 {
					t.Errorf("locked: %v", n)
				}
			})
		})
	}
}

// TestShortRecovery: a stop that ends soon is only a delay.
func TestShortRecovery(t *testing.T) {
	bubble(t, func(w *world) {
		w.nodes.Suspend(space)
		time.AfterFunc(400*time.Millisecond, func() { w.nodes.Resume(space) })
		h := w.open("a")
		if err := h.Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Fatal(err)
		}
		if err := h.Unlock(w.t.Context()); err != nil {
			t.Error(err)
		}
		if strings.Contains(w.logged(), "stopped") {
			t.Errorf("logged:\n%s", w.logged())
		}
	})
}

// TestStopsUnderRequest: the lockspace stops when the request is in the kernel
// already. It is refused in time, and the grant that comes later is undone.
func TestStopsUnderRequest(t *testing.T) {
	bubble(t, func(w *world) {
		gate := dlmtest.NewGate()
		w.nodes.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if op.Op == "lock" {
				return dlmtest.Fault{Before: gate}
			}
			return dlmtest.Fault{}
		})
		time.AfterFunc(3*time.Second, func() {
			w.controld.Lose(time.Now(), true, 2, 3)
			w.nodes.Suspend(space)
			gate.Open()
		})
		start := time.Now()
		err := w.open("a").Lock(w.t.Context(), locking.Exclusive)
		if err == nil || !strings.Contains(err.Error(), "no quorum") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("refused %v after the stop", took-3*time.Second)
		}
		if n := w.b.Unsettled(); n != 1 {
			t.Errorf("%d requests are unsettled", n)
		}
		w.nodes.Resume(space)
		fakeclock.Wait()
		if held := w.locked("a"); len(held) > 0 || w.b.Unsettled() != 0 {
			t.Errorf("the late grant stays: %v", held)
		}
	})
}

// TestReleaseWhileStopped: the caller is told in time, nothing is written, and
// the release is made as soon as it can be.
func TestReleaseWhileStopped(t *testing.T) {
	bubble(t, func(w *world) {
		h := w.open("a")
		if err := h.Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Fatal(err)
		}
		writes := 0
		w.nodes.Node(1).SetFault(func(dlmtest.Op) dlmtest.Fault { writes++; return dlmtest.Fault{} })
		w.nodes.Suspend(space)
		w.controld.Lose(time.Now(), true, 2, 3)
		start := time.Now()
		err := h.Unlock(w.t.Context())
		if !errors.Is(err, locking.ErrUnderway) || !strings.Contains(err.Error(), "no quorum") || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if writes != 0 || w.b.Unsettled() != 1 || len(w.locked("a")) != 1 {
			t.Errorf("%d writes, %d unsettled, %v", writes, w.b.Unsettled(), w.locked("a"))
		}
		w.refused("a", "no quorum")
		w.nodes.Resume(space)
		if err := w.open("a").Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Errorf("locked again after the release: %v", err)
		}
		if held := w.locked("a"); len(held) != 1 || w.b.Unsettled() != 0 {
			t.Errorf("held %v, %d unsettled", held, w.b.Unsettled())
		}
	})
}

// TestReleaseFailsForAWhile: what goes on in the background is tried until it works; nobody
// else knows of the lock.
func TestReleaseFailsForAWhile(t *testing.T) {
	bubble(t, func(w *world) {
		h := w.open("a")
		if err := h.Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Fatal(err)
		}
		w.nodes.Suspend(space)
		w.controld.Lose(time.Now(), true, 2, 3)
		if err := h.Unlock(w.t.Context()); !errors.Is(err, locking.ErrUnderway) {
			t.Errorf("unlock: %v", err)
		}
		w.nodes.Node(1).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
			if op.Op == "unlock" {
				f.Err = syscall.ENOMEM
			}
			return f
		})
		w.nodes.Resume(space)
		time.Sleep(time.Minute) // by the bubble's clock: long enough for many tries, which all fail
		if n := w.b.Unsettled(); n != 1 || len(w.locked("a")) != 1 {
			t.Errorf("%d unsettled, held %v", n, w.locked("a"))
		}
		if n := strings.Count(w.logged(), "could not be given back"); n != 1 {
			t.Errorf("said %d times", n)
		}
		w.nodes.Node(1).SetFault(nil)
		if err := w.open("a").Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Errorf("locked again after the release: %v", err)
		}
	})
}

// TestStopsUnderRelease: the release is in the kernel when the lockspace stops.
func TestStopsUnderRelease(t *testing.T) {
	bubble(t, func(w *world) {
		h := w.open("a")
		if err := h.Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Fatal(err)
		}
		gate := dlmtest.NewGate()
		w.nodes.Node(1).SetFault(func(dlmtest.Op) dlmtest.Fault { return dlmtest.Fault{Before: gate} })
		time.AfterFunc(time.Second, func() {
			w.nodes.Suspend(space)
			gate.Open()
		})
		start := time.Now()
		if err := h.Unlock(w.t.Context()); !errors.Is(err, locking.ErrUnderway) || time.Since(start) > 2*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		w.nodes.Resume(space)
		time.Sleep(time.Second) // by the bubble's clock: until the next look
		if held := w.locked("a"); len(held) > 0 || w.b.Unsettled() != 0 {
			t.Errorf("held %v, %d unsettled", held, w.b.Unsettled())
		}
	})
}

// TestManyWait: any number of requests ask dlm_controld once in a while, and all
// are refused in time though it hangs.
func TestManyWait(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			bubble(t, func(w *world) {
				w.nodes.Suspend(space)
				if hangs {
					w.controld.Freeze()
				} else {
					w.controld.Lose(time.Now(), true, 2, 3)
				}
				before := w.controld.Asked()
				start := time.Now()
				var all sync.WaitGroup
				for i := range 500 {
					all.Go(func() {
						if err := w.open(fmt.Sprint(i)).Lock(w.t.Context(), locking.Exclusive); err == nil {
							t.Error("granted")
						}
					})
				}
				all.Wait()
				if took, asked := time.Since(start), w.controld.Asked()-before; took > time.Second || asked > 10 {
					t.Errorf("took %v, asked %d times", took, asked)
				}
			})
		})
	}
}

// TestCallerLeaves: the caller's own deadline counts too.
func TestCallerLeaves(t *testing.T) {
	bubble(t, func(w *world) {
		w.nodes.Suspend(space)
		ctx, cancel := context.WithTimeout(w.t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := w.open("a").Lock(ctx, locking.Exclusive); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestLogsStopOnce(t *testing.T) {
	bubble(t, func(w *world) {
		count := func(text string) int { return strings.Count(w.logged(), text) }
		w.nodes.Suspend(space)
		w.controld.Lose(time.Now(), true, 3)
		time.Sleep(time.Minute) // nothing but the bubble's clock
		w.refused("a", "fencing")
		if count("is stopped") != 1 || count("fencing of node 3") != 1 {
			t.Errorf("logged:\n%s", w.logged())
		}
		w.controld.Lose(time.Now(), true, 2)
		time.Sleep(time.Minute)
		if count("is stopped") != 2 || count("no quorum") != 1 {
			t.Errorf("logged:\n%s", w.logged())
		}
		w.nodes.Resume(space)
		time.Sleep(time.Minute)
		for _, text := range []string{"event=lockspace-joined", "event=lockspace-stopped dlm=disks cause=fencing", "event=quorum-lost", "event=lockspace-running dlm=disks cause=quorum"} {
			if count(text) != 1 {
				t.Errorf("%d times %q:\n%s", count(text), text, w.logged())
			}
		}
		if count("lockspace runs again") != 1 || count("level=ERROR") != 0 {
			t.Errorf("logged:\n%s", w.logged())
		}
	})
}

// TestLogsReboot: dlm_controld dies with locks held; whether the kernel knows or not.
func TestLogsReboot(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("kernelKnows=%v", known), func(t *testing.T) {
			bubble(t, func(w *world) {
				w.holders = []locking.Holder{
					{Owner: locking.Owner{Name: "web", PID: 7}, Ref: locking.Ref{Name: "/web.img"}},
					{Owner: locking.Owner{Name: "mail", PID: 8}, Ref: locking.Ref{Lockspace: "/leases", Name: "m1"}, Mode: locking.Shared},
				}
				w.controld.Kill()
				if known {
					w.nodes.Suspend(space)
				}
				time.Sleep(time.Minute)
				for _, text := range []string{"this host must be rebooted", "virtual machine web", "/web.img", "virtual machine mail", "/leases"} {
					if !strings.Contains(w.logged(), text) {
						t.Errorf("%q is not logged:\n%s", text, w.logged())
					}
				}
				if n := strings.Count(w.logged(), "must be rebooted"); n != 1 {
					t.Errorf("%d times", n)
				}
				start := time.Now()
				w.refused("a", "dlm_controld is not running")
				if time.Since(start) > 100*time.Millisecond {
					t.Errorf("waits for what never comes")
				}
			})
		})
	}
}

// TestCloseWhileStopped: what could not be given back stays held for the next
// process to settle.
func TestCloseWhileStopped(t *testing.T) {
	bubble(t, func(w *world) {
		h := w.open("a")
		if err := h.Lock(w.t.Context(), locking.Exclusive); err != nil {
			t.Fatal(err)
		}
		w.nodes.Suspend(space)
		if err := h.Unlock(w.t.Context()); !errors.Is(err, locking.ErrUnderway) {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		if err := w.b.Close(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		if err := w.open("b").Lock(w.t.Context(), locking.Exclusive); err == nil {
			t.Error("granted after close")
		}
		w.nodes.Resume(space)
		fakeclock.Wait()
		if held := w.locked("a"); len(held) != 1 || !held[0].Orphan {
			t.Errorf("held %v", held)
		}
	})
}

// kernelWithoutState cannot tell whether a lockspace runs.
type kernelWithoutState struct{ dlm.Kernel }

func TestKernelWithoutState(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		nodes := dlmtest.NewCluster(1)
		b, err := cluster.New(cluster.Options{Lockspace: space, Kernel: kernelWithoutState{nodes.Node(1)}})
		if err != nil {
			t.Fatal(err)
		}
		h, _ := b.Open(t.Context(), locking.Ref{Name: "a"}, false)
		if err := h.Lock(t.Context(), locking.Exclusive); err != nil {
			t.Fatal(err)
		}
		if err := h.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		if err := b.Close(t.Context(), true); err != nil {
			t.Error(err)
		}
	})
}
