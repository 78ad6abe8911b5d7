package stress

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/lab"
)

// binaryEnv names a static vmlockd to be tested; without it one is built.
const binaryEnv = "VMLOCKD_BINARY"

const (
	socket        = "/run/libvirt/virtlockd-sock"
	controlSocket = "/run/vmlockd/control.sock"
)

// TestStressCluster is the load on three nodes with the kernel's DLM.
func TestStressCluster(t *testing.T) {
	s := newLab(t)
	o := fromEnv(t, Options{Operations: 6000, Owners: 6, Ref: func(r int) locking.Ref {
		return locking.Ref{Name: fmt.Sprintf("/disks/%d", r)}
	}, Latency: 10 * time.Millisecond})
	runAndCheck(t, s, o)
}

// newLab starts three nodes whose daemons serve.
func newLab(t *testing.T) *labSystem {
	lab.Need(t, lab.Config{})
	ignore := goleak.IgnoreCurrent()
	// Registered first, so that it runs when the lab has ended.
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	l := lab.ForTest(t, lab.Config{
		VMLockd: vmlockd(t),
		// Without a guard: after each kill it would prove first that its host is in the
		// cluster, and there would be less load meanwhile. tests/guard kills one with it.
		VMLockdConfig: func(int) string { return "backend = \"cluster\"\nguard.mode = \"off\"\n[log]\nlevel = \"warning\"\n" },
	})
	s := &labSystem{lab: l, free: make([][]*lab.Process, len(l.Nodes()))}
	s.waitDaemons(t)
	return s
}

func vmlockd(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(binaryEnv); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "vmlockd")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/vmlockd/vmlockd/cmd/vmlockd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// labSystem is a System of a lab's nodes. Its clock is this process's, since all
// connections are made from here.
type labSystem struct {
	lab *lab.Lab

	mu   sync.Mutex       // guards what follows
	free [][]*lab.Process // by node: those that were killed and can be started again
	made int
}

// waitDaemons waits until a lock is granted on each node: the daemons answer
// before they have joined the DLM's lockspace, and refuse until then.
func (s *labSystem) waitDaemons(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for node := range s.Nodes() {
		p, err := s.Spawn(ctx, node)
		if err != nil {
			t.Fatal(err)
		}
		r := &run{Options: Options{ReconnectWithin: time.Minute, Ref: func(int) locking.Ref { return locking.Ref{Name: "/ready"} }}, sys: s, history: newHistory()}
		r.prepare()
		sp := &speaker{run: r, owner: &owner{run: r, node: node, proc: p, id: r.history.addOwner(node, p.PID())}}
		err = lab.WaitFor(ctx, fmt.Sprintf("a lock on node %d", node+1), func(ctx context.Context) (bool, error) {
			op, err := sp.do(ctx, Op{Kind: Acquire}, callTimeout)
			if err != nil || op.Answer != Done {
				return false, err
			}
			op, err = sp.do(ctx, Op{Kind: Release}, callTimeout)
			return op.Answer == Done, err
		})
		sp.close()
		if err == nil {
			err = p.Kill(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (s *labSystem) Nodes() int { return len(s.lab.Nodes()) }

func (s *labSystem) Dial(ctx context.Context, node int) (net.Conn, error) {
	return s.lab.Node(node+1).DialUnix(ctx, socket)
}

func (s *labSystem) Spawn(ctx context.Context, node int) (Process, error) {
	s.mu.Lock()
	var p *lab.Process
	if n := len(s.free[node]); n > 0 {
		p = s.free[node][n-1]
		s.free[node] = s.free[node][:n-1]
	}
	s.made++
	name := fmt.Sprintf("owner-%d", s.made)
	s.mu.Unlock()
	var err error
	if p != nil {
		err = p.Start(ctx)
	} else {
		p, err = s.lab.Node(node+1).Start(ctx, name, "sleep", "infinity")
	}
	if err != nil {
		return nil, err
	}
	st, err := p.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &labProcess{s: s, p: p, node: node, pid: int32(st.PID)}, nil
}

type labProcess struct {
	s    *labSystem
	p    *lab.Process
	node int
	pid  int32
	once sync.Once
	err  error
}

func (p *labProcess) PID() int32 { return p.pid }

func (p *labProcess) Kill(ctx context.Context) error {
	p.once.Do(func() {
		if p.err = p.p.Kill(ctx); p.err != nil {
			return
		}
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		p.s.free[p.node] = append(p.s.free[p.node], p.p)
	})
	return p.err
}
