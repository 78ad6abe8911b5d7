package cluster_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld/controldtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestPathStopsWithTheLockspace: the path is on a cluster file system, which answers nobody while the lockspace is
// stopped. The refusal comes as soon, and with the same reason.
func TestPathStopsWithTheLockspace(t *testing.T) {
	bubble(t, func(w *world) {
		w.identify = func(ctx context.Context, path string) (cluster.Disk, error) {
			<-ctx.Done()
			return cluster.Disk{}, ctx.Err()
		}
		w.nodes.Suspend(space)
		w.controld.Lose(time.Now(), true, 2, 3)
		start := time.Now()
		_, err := w.b.Open(w.t.Context(), locking.Ref{Name: "/gfs/a"}, false)
		if err == nil || !strings.Contains(err.Error(), "the cluster has no quorum") || locking.Cause(err) != "quorum" || !errors.Is(err, locking.ErrNotAsked) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("refused after %v", took)
		}
	})
}

// TestSlowAnswers: dlm_controld needs longer for an answer than it is until the next question. What it says is logged.
func TestSlowAnswers(t *testing.T) {
	bubble(t, func(w *world) {
		w.controld.Lose(time.Now(), true, 2, 3)
		w.nodes.Suspend(space)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			w.controld.Freeze()
			pass(300 * time.Millisecond)
			w.controld.Thaw()
			_ = w.open("a").Lock(w.t.Context(), locking.Exclusive)
		}
		if !strings.Contains(w.logged(), "quorum-lost") {
			t.Errorf("logged:\n%s", w.logged())
		}
	})
}

// TestLongRecovery: a recovery that hangs in the kernel is said to, to who is refused and in the log, once, with the node that
// it waits for.
func TestLongRecovery(t *testing.T) {
	bubble(t, func(w *world) {
		w.nodes.Suspend(space)
		w.nodes.Node(1).Recovering(space, 3)
		w.refused("a", "recovering from a change")
		if strings.Contains(w.logged(), "dlm_tool ls") {
			t.Errorf("too early:\n%s", w.logged())
		}
		pass(30 * time.Second)
		w.refused("a", "s now, and the kernel here waits for node 3: if that goes on, and vmlockctl status there knows no reason, the kernel of a host hangs")
		pass(30 * time.Second)
		if n := strings.Count(w.logged(), "dlm_tool ls"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, w.logged())
		}
		// The next one begins anew.
		w.nodes.Resume(space)
		pass(time.Second)
		w.nodes.Suspend(space)
		if err := w.open("a").Lock(w.t.Context(), locking.Exclusive); err == nil || strings.Contains(err.Error(), "goes on") {
			t.Errorf("got %v", err)
		}
	})
}

// TestLongMessages: where dlm_controld of this host does not let the kernel begin, no kernel hangs, and it is this host that
// has to be rebooted. (The hosts that wait for this one look as if their kernels hung.)
func TestLongMessages(t *testing.T) {
	bubble(t, func(w *world) {
		w.nodes.Suspend(space)
		w.refused("a", "recovering from a change")
		pass(15 * time.Second)
		// A further change: from here on all is waited for anew.
		w.controld.Set(func(s *controldtest.State) { s.Status.ClusterRing++; s.Status.DaemonRing++ })
		pass(15 * time.Second)
		err := w.open("a").Lock(w.t.Context(), locking.Exclusive)
		if err == nil || strings.Contains(err.Error(), " now") {
			t.Errorf("15 s after the last change: %v", err)
		}
		// While corosync delivers nothing, dlm_controld cannot have even its own message.
		w.lost.Store(true)
		pass(30 * time.Second)
		w.refused("a", "corosync delivers no messages to this host")
		w.lost.Store(false)
		pass(15 * time.Second)
		if err := w.open("a").Lock(w.t.Context(), locking.Exclusive); err == nil || strings.Contains(err.Error(), " now") {
			t.Errorf("15 s after corosync has gone on: %v", err)
		}
		pass(15 * time.Second)
		w.refused("a", "s now: dlm_controld here waits for messages (see dlm_tool ls -n). If that goes on although corosync forms no new membership and dlm_controld answers on every host, this host must be rebooted, at the same time")
		if text := w.logged(); strings.Contains(text, "hangs") || strings.Count(text, "must be rebooted") != 1 {
			t.Errorf("logged:\n%s", text)
		}
		if st := w.status(); st.State != cluster.Stopped || !strings.Contains(st.Reason, "this host must be rebooted") {
			t.Errorf("status %+v", st)
		}
	})
}
