package conformance_test

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm/dlmtest/conformance"
	"github.com/vmlockd/vmlockd/dlm/dlmtest/remote"
	"github.com/vmlockd/vmlockd/lab"
)

// TestLab is the suite on the kernels of three nodes, driven from here.
func TestLab(t *testing.T) {
	cfg := lab.Config{Nodes: 3}
	lab.Need(t, cfg)
	proxy := filepath.Join(t.TempDir(), "dlmproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", proxy, "../dlmproxy")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l := lab.ForTest(t, cfg)
	if err := l.Install("dlmproxy", proxy); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute) // also for the cleaning up
	t.Cleanup(cancel)

	const socket = "/run/dlmproxy"
	// As in TestHost, but on all nodes at once, as dlm_controld would.
	control := func(value string) func(testing.TB, string) {
		return func(t testing.TB, lockspace string) {
			var wg sync.WaitGroup
			for _, n := range l.Nodes() {
				wg.Go(func() {
					path := "/sys/kernel/dlm/" + lockspace + "/control"
					if r, err := n.Shell(ctx, "echo "+value+" > "+path); err != nil || !r.OK() {
						t.Errorf("%s: %v %v", n.Name(), r, err)
					}
				})
			}
			wg.Wait()
		}
	}
	site := conformance.Site{
		Patience: time.Minute,
		Suspend:  control("0"),
		Resume:   control("1"),
		PowerOff: func(t testing.TB) {
			// The others notice by themselves, and recover.
			if err := l.Node(cfg.Nodes).PowerCut(ctx); err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, n := range l.Nodes() {
		p, err := n.Start(ctx, "dlmproxy", "dlmproxy", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Kill(context.WithoutCancel(ctx)) })
		dial := func() (net.Conn, error) { return n.DialUnix(ctx, socket) }
		err = lab.WaitFor(ctx, "dlmproxy on "+n.Name(), func(context.Context) (bool, error) {
			c, err := dial()
			if err != nil {
				return false, nil
			}
			return true, c.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		site.Kernels = append(site.Kernels, remote.Kernel(dial))
	}
	conformance.Run(t, site)
}
