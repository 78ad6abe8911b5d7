package stress

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/backend/local"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// usualOperations of each test take a second; 'make unit-long' has ten times as many.
const usualOperations = 2500

// TestStressSimulated is the load on three daemons in this process, on a DLM in
// memory whose answers take a while now and then.
func TestStressSimulated(t *testing.T) {
	defer goleak.VerifyNone(t)
	const lockspace = "stress"
	dlms := dlmtest.NewCluster(3)
	var late sync.WaitGroup
	defer late.Wait()
	s := &inProcess{t: t, processes: locktest.NewProcesses(t)}
	defer s.stop()
	for id := 1; id <= 3; id++ {
		b, err := cluster.New(cluster.Options{Lockspace: lockspace, Kernel: dlms.Node(id)})
		if err != nil {
			t.Fatal(err)
		}
		s.serve(b, func(ctx context.Context) error { return b.Close(ctx, true) })
		dlms.Node(id).SetFault(slowly(&late, rand.New(rand.NewPCG(uint64(id), 0))))
	}
	o := fromEnv(t, Options{Operations: usualOperations, FreeWithin: time.Minute, Ref: func(r int) locking.Ref {
		return locking.Ref{Lockspace: "", Name: fmt.Sprintf("/disks/%d", r)}
	}, Latency: 200 * time.Microsecond})
	runAndCheck(t, s, o)
	if names := dlms.Names(lockspace); len(names) > 0 {
		t.Errorf("everything was released, and the DLM still has locks on %q", names)
	}
}

// slowly holds back one result in four for a moment, and one write in sixteen.
func slowly(late *sync.WaitGroup, rng *rand.Rand) func(dlmtest.Op) dlmtest.Fault {
	var mu sync.Mutex // guards rng
	gate := func() *dlmtest.Gate {
		g := dlmtest.NewGate()
		late.Add(1)
		time.AfterFunc(time.Duration(rng.Int64N(int64(time.Millisecond))), func() { defer late.Done(); g.Open() })
		return g
	}
	return func(dlmtest.Op) (f dlmtest.Fault) {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(4) == 0 {
			f.Result = gate()
		}
		if rng.IntN(16) == 0 {
			f.Before = gate()
		}
		return f
	}
}

// TestStressLocal is the load on one daemon that locks files, which come and go
// with their locks.
func TestStressLocal(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := &inProcess{t: t, processes: locktest.NewProcesses(t)}
	defer s.stop()
	s.serve(local.New(), func(context.Context) error { return nil })
	dir := filepath.Join(t.TempDir(), "lockspace")
	c, err := lockprogram.Dial(t.Context(), s.sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.CreateLockspace(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	o := fromEnv(t, Options{Operations: usualOperations, Owners: 24, FreeWithin: time.Minute, Ref: func(r int) locking.Ref {
		return locking.Ref{Lockspace: dir, Name: fmt.Sprint("disk", r)}
	}, Flags: lockprogram.FlagAutocreate, Latency: 200 * time.Microsecond})
	runAndCheck(t, s, o)
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("everything was released, and the file %s is still there", e.Name())
	}
}

// inProcess is a System of daemons in this process. Owners are pids that no
// process has.
type inProcess struct {
	t         *testing.T
	processes *locktest.Processes
	sockets   []string
	stops     []func()

	mu      sync.Mutex // guards spawned
	spawned []*locktest.Process
}

// serve adds a daemon.
func (s *inProcess) serve(b locking.Backend, closeBackend func(context.Context) error) {
	t := s.t
	path := filepath.Join(t.TempDir(), "socket")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	locks := locking.New(locking.Options{Backend: b, Processes: s.processes, RequestTimeout: 10 * time.Second})
	server := rpc.NewServer(rpc.Options{Programs: []rpc.Program{lockprogram.New(locks)}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	s.sockets = append(s.sockets, path)
	s.stops = append(s.stops, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, f := range []func(context.Context) error{server.Shutdown, locks.Close, closeBackend} {
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		}
		<-served
	})
}

func (s *inProcess) stop() {
	for _, f := range s.stops {
		f()
	}
	for _, p := range s.spawned {
		select {
		case <-p.Asked():
			s.t.Error("a daemon ended an owner whose own connection never was")
		default:
		}
	}
}

func (s *inProcess) Nodes() int { return len(s.sockets) }

func (s *inProcess) Dial(ctx context.Context, node int) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", s.sockets[node])
}

func (s *inProcess) Spawn(context.Context, int) (Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Above the largest number that Linux gives to a process.
	pid := int32(1<<22 + 1 + len(s.spawned))
	p := s.processes.Start(pid)
	s.spawned = append(s.spawned, p)
	return fakeProcess{p, pid}, nil
}

// fakeProcess is one that only the daemons' fake of the system knows.
type fakeProcess struct {
	*locktest.Process
	pid int32
}

func (p fakeProcess) PID() int32 { return p.pid }

func (p fakeProcess) Kill(context.Context) error {
	p.Process.Kill()
	return nil
}
