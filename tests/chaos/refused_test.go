package chaos_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// TestRefusedMessage has dlm_controld refuse its own message for a change of the lockspace, by the faults that it takes on real nodes:
// one change of the lockspace does not end, as another dlm_controld stands still, and then the same one comes again. vmlockd and
// its doctor name the hosts that have to be rebooted and no other, and when these are, all at once, all is well.
func TestRefusedMessage(t *testing.T) {
	of := shapeOf("three")
	cfg := lab.Config{
		Nodes: of.nodes, VMLockd: binaries.vmlockd, VMLockdConfig: func(int) string { return of.config() },
		Binaries: map[string]string{"vmlockctl": binaries.vmlockctl}, IgnoreSIGPIPE: true,
	}
	lab.Need(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	w := &world{shape: of, Lab: lab.ForTest(t, cfg), t: t, ctx: ctx, began: time.Now()}
	for _, n := range w.Nodes() {
		w.hosts = append(w.hosts, &host{Node: n})
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// until waits until something is so of what dlm_controld says, of the nodes that may be asked.
	until := func(what string, asked []*host, is func(said map[int]string) bool) {
		t.Helper()
		said := map[int]string{}
		wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		err := lab.WaitFor(wait, what, func(ctx context.Context) (bool, error) {
			clear(said)
			for _, h := range asked {
				res, err := h.Exec(ctx, "dlm_tool", "ls", "-n")
				if err != nil {
					return false, err
				}
				said[h.ID()] = res.Stdout
			}
			return is(said), nil
		})
		if err != nil {
			t.Fatalf("%v: %v", err, said)
		}
		w.note("%s", what)
	}
	refuse := func(want ...int) func(map[int]string) bool {
		return func(said map[int]string) bool {
			_, refusing := lab.Awaiting(said)
			return slices.Equal(refusing, want)
		}
	}
	first, second, third := w.hosts[0], w.hosts[1], w.hosts[2]
	lost := func() {
		t.Helper()
		must(second.PowerCut(ctx))
		must(first.WaitRing(ctx, 1, 3))
	}
	var managers sync.WaitGroup
	managing, stop := context.WithCancel(ctx)
	t.Cleanup(func() { stop(); managers.Wait() })
	for _, h := range w.hosts {
		managers.Go(func() { // as systemd does, it starts a vmlockd again that was started before dlm_controld served
			for w.wait(managing, 1500*time.Millisecond) {
				w.broken(h)
			}
		})
	}
	must(w.allWell(2 * time.Minute))

	controld := third.Service(lab.ServiceDLM)
	must(controld.SignalGroup(ctx, syscall.SIGSTOP))
	lost()
	must(second.Boot(ctx))
	until("dlm_controld of node 1 waits for node 3, with node 2 back", w.hosts[:1], func(said map[int]string) bool {
		return strings.Contains(said[1], "new members   1 2 3") && strings.Contains(said[1], "wait messages 1\n")
	})
	lost()
	until("dlm_controld of node 1 waits for its own message", w.hosts[:1], refuse(1))
	must(controld.SignalGroup(ctx, syscall.SIGCONT))
	must(second.Boot(ctx))
	until("dlm_controld of nodes 1 and 3 waits for its own message, all run, and node 2 is in no change", w.hosts, refuse(1, 3))

	for _, tc := range []struct {
		h    *host
		says string
	}{
		{first, "this host must be rebooted, at the same time as all others"}, {third, "this host must be rebooted, at the same time as all others"},
		{second, "waits for the kernel of node 1"},
	} {
		var st *control.Status
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		err := lab.WaitFor(wait, tc.h.Name()+" to say "+tc.says, func(context.Context) (bool, error) {
			st = w.status(tc.h)
			return st != nil && strings.Contains(st.Cluster.Lockspace.WaitsFor, tc.says), nil
		})
		cancel()
		if err != nil {
			t.Errorf("%v: %s", err, brief(st))
		}
		w.note("node %d: %s", tc.h.ID(), brief(st))
		res, err := tc.h.Exec(ctx, "vmlockctl", "doctor")
		must(err)
		if got := strings.Contains(res.Stdout, "lockspace-stuck"); got != (tc.h != second) {
			t.Errorf("doctor of node %d:\n%s", tc.h.ID(), res.Stdout)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	waiting, refusing := w.awaiting()
	if len(waiting) != 2 || len(refusing) != 2 {
		t.Fatalf("%d wait, and %d have refused", len(waiting), len(refusing))
	}
	w.reboot(waiting, "its dlm_controld has refused a message")
	must(w.allWell(repaired))
	w.note("all nodes are well")
}
