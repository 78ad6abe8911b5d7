package cluster_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/dlm/controld/controldtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
)

func (w *world) status() cluster.Status {
	w.t.Helper()
	start := time.Now()
	st := w.b.Status(w.t.Context())
	if took := time.Since(start); took > 900*time.Millisecond {
		w.t.Errorf("the status took %v", took)
	}
	return st
}

func TestStatus(t *testing.T) {
	bubble(t, func(w *world) {
		w.controld.Set(func(s *controldtest.State) { s.Config["enable_fencing"] = "0" })
		st := w.status()
		if st.State != cluster.Running || st.Reason != "" || st.Err != nil || !st.Asked || !st.Cluster.Quorate || len(st.Cluster.Nodes) != 3 {
			t.Errorf("healthy: %+v", st)
		}
		if st.Fencing == nil || *st.Fencing {
			t.Errorf("fencing is off, and the status says %v", st.Fencing)
		}
		w.controld.Set(func(s *controldtest.State) { s.Config["enable_fencing"] = "1" })
		<-time.After(6 * time.Second)
		w.status() // the answer that it had, while it asks again
		<-time.After(time.Second)
		if st = w.status(); st.Fencing == nil || !*st.Fencing {
			t.Errorf("fencing is on, and the status says %v", st.Fencing)
		}

		w.controld.Lose(time.Now(), true, 3)
		w.nodes.Suspend(space)
		<-time.After(2 * time.Second)
		st = w.status()
		if st.State != cluster.Stopped || !strings.Contains(st.Reason, "fencing of node 3") || st.Since.IsZero() {
			t.Errorf("stopped: %+v", st)
		}
		w.controld.Freeze()
		<-time.After(5 * time.Second)
		for range 10 {
			if st = w.status(); !errors.Is(st.Err, controld.ErrNoAnswer) || st.State != cluster.Stopped {
				t.Errorf("silent: %+v", st)
			}
		}
		w.controld.Thaw()
		w.controld.Kill()
		<-time.After(6 * time.Second)
		if st = w.status(); st.State != cluster.Dead || !errors.Is(st.Err, controld.ErrNotRunning) || !strings.Contains(st.Reason, "rebooted") {
			t.Errorf("gone: %+v", st)
		}
	})
}
