package conformance_test

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync/corosynctest/conformance"
	"github.com/vmlockd/vmlockd/corosync/corosynctest/remote"
	"github.com/vmlockd/vmlockd/lab"
)

// TestLab is the suite on the corosyncs of three nodes, driven from here.
func TestLab(t *testing.T) {
	cfg := lab.Config{Nodes: 3}
	lab.Need(t, cfg)
	proxy := buildProxy(t)
	l := lab.ForTest(t, cfg)
	if err := l.Install("corosyncproxy", proxy); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 8*time.Minute) // also for the cleaning up
	t.Cleanup(cancel)
	must := func(t testing.TB, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// dlm_controld ends with its corosync and is of no use here.
	for _, n := range l.Nodes() {
		must(t, n.Service(lab.ServiceDLM).Stop(ctx))
	}
	corosyncOf := func(node int) *lab.Process { return l.Node(node).Service(lab.ServiceCorosync) }
	last := l.Node(cfg.Nodes)
	var count atomic.Int32
	conformance.Run(t, conformance.Site{
		Nodes:    cfg.Nodes,
		Patience: time.Minute,
		Slow:     true,
		Start: func(t testing.TB, node int) conformance.Process {
			n := l.Node(node)
			name := fmt.Sprintf("proxy%d", count.Add(1))
			socket := "/run/" + name
			p, err := n.Start(ctx, name, "corosyncproxy", socket)
			must(t, err)
			dial := func() (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				return n.DialUnix(ctx, socket)
			}
			waitDial(t, dial)
			return process{remote.System(dial), func() {
				if err := p.Kill(ctx); err != nil {
					t.Logf("%s: %v", name, err) // its node may have no power
				}
			}}
		},
		StopCorosync: func(t testing.TB, node int) {
			must(t, corosyncOf(node).Kill(ctx))
		},
		StartCorosync: func(t testing.TB, node int) { must(t, corosyncOf(node).Start(ctx)) },
		Suspend:       func(t testing.TB, node int) { must(t, corosyncOf(node).Signal(ctx, syscall.SIGSTOP)) },
		Resume:        func(t testing.TB, node int) { must(t, corosyncOf(node).Signal(ctx, syscall.SIGCONT)) },
		Cut:           func(t testing.TB) { must(t, last.Cut(ctx)) },
		Heal:          func(t testing.TB) { must(t, last.Heal(ctx)) },
		PowerOff:      func(t testing.TB) { must(t, last.PowerCut(ctx)) },
	})
}
