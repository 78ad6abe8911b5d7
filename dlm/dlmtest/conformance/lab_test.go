package conformance_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path"
	"strings"
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
	programs := map[string]string{}
	for _, name := range []string{"dlmtest/dlmproxy", "dlmtest/draincheck", "clusterflock"} {
		programs[path.Base(name)] = lab.Build(t, "github.com/vmlockd/vmlockd/dlm/"+name)
	}
	l := lab.ForTest(t, cfg)
	for name, file := range programs {
		if err := l.Install(name, file); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute) // also for the cleaning up
	t.Cleanup(cancel)

	t.Run("Drain", func(t *testing.T) { drain(ctx, t, l) })
	t.Run("Example", func(t *testing.T) { example(ctx, t, l) })
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

// drain has a node drained of a request that its kernel never had, about a resource that another one keeps the books of.
func drain(ctx context.Context, t *testing.T, l *lab.Lab) {
	holder, err := l.Node(2).Start(ctx, "holder", "draincheck", "hold", "drained", "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := holder.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	err = lab.WaitFor(ctx, "node 2 to have the lock", func(ctx context.Context) (bool, error) {
		if st, err := holder.Status(ctx); err != nil || st.State == lab.ProcessExited {
			return false, fmt.Errorf("%+v %v", st, err)
		}
		log, err := holder.Log(ctx)
		return bytes.Contains(log, []byte("held")), err
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := l.Node(1).Exec(ctx, "draincheck", "drain", "drained", "disk")
	if err != nil || !res.OK() {
		t.Fatalf("%v %v", res, err)
	}
	t.Log(res.Stdout)
}

// example is the program of dlm/README.md: what runs under its lock on one node keeps it from the other, also when it is killed.
func example(ctx context.Context, t *testing.T, l *lab.Lab) {
	has, err := l.Node(1).Start(ctx, "has-it", "clusterflock", "example", "disk-1", "sh", "-c", "echo has it; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = has.Kill(context.WithoutCancel(ctx)) }()
	err = lab.WaitFor(ctx, "node 1 to have the lock", func(ctx context.Context) (bool, error) {
		if st, err := has.Status(ctx); err != nil || st.State == lab.ProcessExited {
			return false, fmt.Errorf("%+v %v", st, err)
		}
		log, err := has.Log(ctx)
		return bytes.Contains(log, []byte("has it")), err
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := l.Node(2).Exec(ctx, "clusterflock", "example", "disk-1", "echo", "has it too")
	if err != nil || res.Status != 1 || res.Stdout != "" || !strings.Contains(res.Stderr, "disk-1 is locked by somebody in the cluster") {
		t.Fatalf("node 2: %v %v", res, err)
	}
	if err := has.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	err = lab.WaitFor(ctx, "node 2 to have the lock", func(ctx context.Context) (bool, error) {
		res, err := l.Node(2).Exec(ctx, "clusterflock", "example", "disk-1", "echo", "has it now")
		return res.OK() && res.Stdout == "has it now\n", err
	})
	if err != nil {
		t.Fatal(err)
	}
	// And the first command has ended with what had the lock for it.
	err = lab.WaitFor(ctx, "the end of the first command", func(ctx context.Context) (bool, error) {
		res, err := l.Node(1).Exec(ctx, "pgrep", "-f", "sleep 1000")
		return res.Status == 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
}
