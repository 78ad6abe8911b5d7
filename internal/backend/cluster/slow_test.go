package cluster_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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

// TestLongRecovery: a recovery that hangs in the kernel is said to, to who is refused and in the log, once.
func TestLongRecovery(t *testing.T) {
	bubble(t, func(w *world) {
		w.nodes.Suspend(space)
		w.refused("a", "recovering from a change")
		if strings.Contains(w.logged(), "dlm_tool ls") {
			t.Errorf("too early:\n%s", w.logged())
		}
		pass(30 * time.Second)
		w.refused("a", "s now: if that goes on, the kernel of a host hangs")
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
