package cluster_test

import (
	"errors"
	"log/slog"
	"strings"
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
)

// entering runs f with a world in which nobody has joined yet. Its function join
// calls New on node 1.
func entering(t *testing.T, f func(w *world, join func(privileged bool) error)) {
	fakeclock.Test(t, func(t *testing.T) {
		w := &world{t: t, nodes: dlmtest.NewCluster(3), controld: controldtest.New(3, space)}
		f(w, func(privileged bool) (err error) {
			w.b, err = cluster.New(cluster.Options{
				Lockspace: space, Kernel: w.nodes.Node(1), Controld: w.controld.Client(), Log: slog.New(slog.NewTextHandler(&w.log, nil)),
				Privileged: func() bool { return privileged },
			})
			return err
		})
		if w.b != nil {
			if err := w.b.Close(t.Context(), false); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
}

// refuse has the kernel refuse to make node 1 a member, with errno, after each
// time that long, until the function it returns is called.
func (w *world) refuse(errno syscall.Errno, takes time.Duration) (end func()) {
	var over atomic.Bool
	w.nodes.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
		if op.Op != "create" || over.Load() {
			return dlmtest.Fault{}
		}
		f := dlmtest.Fault{Err: errno}
		if takes > 0 {
			f.Before = dlmtest.NewGate()
			time.AfterFunc(takes, f.Before.Open)
		}
		return f
	})
	return func() { over.Store(true) }
}

// granted waits until a lock is granted, for as long as joining may take.
func (w *world) granted(name string) {
	w.t.Helper()
	time.Sleep(10 * time.Second) // by the bubble's clock: as long as joining may take
	h := w.open(name)
	if err := h.Lock(w.t.Context(), locking.Exclusive); err != nil {
		w.t.Errorf("not granted after the host could have joined: %v\n%s", err, w.logged())
		return
	}
	if err := h.Unlock(w.t.Context()); err != nil {
		w.t.Error(err)
	}
}

// TestMissingPart: New returns what is missing at once, and leaves nothing
// behind, which the bubble checks.
func TestMissingPart(t *testing.T) {
	for _, tc := range []struct {
		name       string
		do         func(*world)
		privileged bool
		want       error
		text       string // what the administrator is to do
	}{
		{"dlm_controld is not running", func(w *world) { w.controld.Kill() }, true, dlm.ErrNoDaemon, "systemctl start corosync dlm"},
		{"dlm_controld ended meanwhile", func(w *world) { w.refuse(syscall.EUNATCH, time.Second) }, true, dlm.ErrNoDaemon, "systemctl start corosync dlm"},
		{"no privilege", func(w *world) { w.refuse(syscall.EPERM, 0) }, false, dlm.ErrPrivilege, "need root"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			entering(t, func(w *world, join func(bool) error) {
				tc.do(w)
				start := time.Now()
				err := join(tc.privileged)
				if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("got %v, want %v with %q", err, tc.want, tc.text)
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
	t.Run("no module", func(t *testing.T) {
		fakeclock.Test(t, func(t *testing.T) {
			nodes, controld := dlmtest.NewCluster(1), controldtest.New(1, space)
			controld.Kill() // which must not be what is named: it cannot be started yet
			_, err := cluster.New(cluster.Options{Lockspace: space, Kernel: kernelWithoutModule{nodes.Node(1)}, Controld: controld.Client()})
			if !errors.Is(err, dlm.ErrNoModule) || !strings.Contains(err.Error(), "modprobe dlm") {
				t.Errorf("got %v", err)
			}
		})
	})
}

type kernelWithoutModule struct{ dlm.Kernel }

func (kernelWithoutModule) Control() (dlm.Device, error) { return nil, dlm.ErrNoModule }

// TestMissingPartLate: the first attempt ends when New has returned already, so
// that it can be no reason not to start. Joining goes on, and a refusal says why
// it is not over.
func TestMissingPartLate(t *testing.T) {
	entering(t, func(w *world, join func(bool) error) {
		start := time.Now()
		end := w.refuse(syscall.EUNATCH, 4*time.Second)
		if err := join(true); err != nil {
			t.Fatal(err)
		}
		w.refused("a", "still joining")
		time.Sleep(time.Until(start.Add(4200 * time.Millisecond))) // by the bubble's clock: until the first attempt is over
		w.refused("a", "dlm_controld is not running: start corosync")
		if text := w.logged(); !strings.Contains(text, "trying again") || !strings.Contains(text, "dlm_controld is not running") {
			t.Errorf("logged:\n%s", text)
		}
		end()
		w.granted("a")
	})
}

// TestJoinLogsOnce: what fails again and again for one reason is said once.
func TestJoinLogsOnce(t *testing.T) {
	entering(t, func(w *world, join func(bool) error) {
		end := w.refuse(syscall.EPERM, 0)
		if err := join(true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // by the bubble's clock: many attempts, one line
		if n := strings.Count(w.logged(), "trying again"); n != 1 {
			t.Errorf("%d lines in a minute:\n%s", n, w.logged())
		}
		end()
		w.granted("a")
	})
}

// TestDaemonCouldNotJoin: dlm_controld answers the kernel with -1 when it failed
// to join, which is EPERM for a process that has every privilege.
func TestDaemonCouldNotJoin(t *testing.T) {
	for _, takes := range []time.Duration{0, time.Second, 5 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			entering(t, func(w *world, join func(bool) error) {
				end := w.refuse(syscall.EPERM, takes)
				if err := join(true); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second) // by the bubble's clock: New has returned, and the first attempts are over
				if text := w.logged(); takes < 3*time.Second && !strings.Contains(text, "could not make this host a member") || strings.Contains(text, "not privileged") {
					t.Errorf("logged:\n%s", text)
				}
				end()
				w.granted("a")
			})
		})
	}
}

// TestJoinSaysForWhom: dlm_controld has quorum and waits for nothing that has a name, and this host does not come to join. It says
// whether dlm_controld here or the kernel of another host is waited for.
func TestJoinSaysForWhom(t *testing.T) {
	entering(t, func(w *world, join func(bool) error) {
		entered := dlmtest.NewGate()
		w.nodes.Node(1).SetFault(func(op dlmtest.Op) dlmtest.Fault {
			if op.Op != "create" {
				return dlmtest.Fault{}
			}
			return dlmtest.Fault{After: entered}
		})
		if err := join(true); err != nil {
			t.Fatal(err)
		}
		w.nodes.Suspend(space)
		w.refused("a", "still joining the DLM lockspace: dlm_controld here waits for messages (see dlm_tool ls -n). If that goes on for a minute although corosync forms no new membership")
		w.nodes.Node(1).Recovering(space, 2)
		w.refused("a", "still joining the DLM lockspace, and waits for the kernel of node 2")
		if st := w.status(); st.State != cluster.Joining || !strings.Contains(st.Reason, "the kernel of node 2") {
			t.Errorf("status %+v", st)
		}
		w.nodes.Resume(space)
		w.nodes.Node(1).SetFault(nil)
		entered.Open()
		w.granted("a")
	})
}
