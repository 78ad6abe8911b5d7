package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// hosts are backends on the nodes of one cluster.
type hosts struct {
	t     fataler
	nodes *dlmtest.Cluster
	list  []*host // by number of the node, less one

	mu    sync.Mutex // guards what follows
	peers cluster.Peers
	// disks is what paths lead to, on all hosts and, with a node's number before it, on
	// one; nil: paths are names.
	disks map[string]cluster.Disk
	slow  map[string]chan struct{} // paths that are looked at until it is closed
	// resolve, if it is not nil, says what paths lead to, in place of disks; set before start.
	resolve func(ctx context.Context, path string) (cluster.Disk, error)
}

type fataler interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// host is a node, the process that serves there, and what it has written.
type host struct {
	*cluster.Backend
	process *dlmtest.Process

	mu       sync.Mutex // guards what follows
	converts int        // begun
	fault    func(dlmtest.Op) dlmtest.Fault
}

// onHosts runs f with a clock of its own.
func onHosts(t *testing.T, n int, f func(*hosts)) {
	fakeclock.Test(t, func(t *testing.T) {
		hs := newHosts(t, n)
		f(hs)
		hs.close()
	})
}

func newHosts(t fataler, n int) *hosts {
	hs := &hosts{t: t}
	hs.boot(n)
	return hs
}

func (hs *hosts) boot(n int) {
	hs.nodes = dlmtest.NewCluster(n)
	for i := range n {
		h := &host{}
		hs.list = append(hs.list, h)
		hs.nodes.Node(i + 1).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if op.Op == "convert" {
				h.converts++
			}
			if h.fault != nil {
				f = h.fault(op)
			}
			return f
		})
		hs.start(i + 1)
	}
}

// Holders implements cluster.Peers, for all hosts.
func (hs *hosts) Holders(ctx context.Context, resource string) ([]locking.RemoteHolder, []uint32) {
	hs.mu.Lock()
	peers := hs.peers
	hs.mu.Unlock()
	if peers == nil {
		return nil, nil
	}
	return peers.Holders(ctx, resource)
}

func (hs *hosts) host(node int) *host { return hs.list[node-1] }

// start starts a process on a node.
func (hs *hosts) start(node int) {
	hs.t.Helper()
	h := hs.host(node)
	h.process = hs.nodes.Node(node).NewProcess()
	var err error
	options := cluster.Options{Lockspace: space, Kernel: h.process, Peers: hs, NodeName: func(id uint32) string {
		return map[uint32]string{1: "kvm1"}[id]
	}}
	switch {
	case hs.resolve != nil:
		options.Identify = hs.resolve
	case hs.disks != nil:
		options.Identify = func(ctx context.Context, path string) (cluster.Disk, error) { return hs.identify(node, path) }
	}
	h.Backend, err = cluster.New(options)
	if err != nil {
		hs.t.Fatalf("start on node %d: %v", node, err)
	}
}

func (hs *hosts) identify(node int, path string) (cluster.Disk, error) {
	hs.mu.Lock()
	slow := hs.slow[path]
	hs.mu.Unlock()
	if slow != nil {
		<-slow
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if d, ok := hs.disks[fmt.Sprint(node)+path]; ok {
		return d, nil
	}
	if d, ok := hs.disks[path]; ok {
		return d, nil
	}
	return cluster.Disk{}, errors.New("its server does not answer")
}

// leads makes a path lead to a disk from now on.
func (hs *hosts) leads(path string, d cluster.Disk) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.disks[path] = d
}

// kill ends the process of a node at once.
func (hs *hosts) kill(node int) {
	h := hs.host(node)
	h.process.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = h.Close(ctx, false) // only what is left of it here
}

func (hs *hosts) close() {
	for i, h := range hs.list {
		if err := h.Close(context.Background(), false); err != nil {
			hs.t.Errorf("close on node %d: %v", i+1, err)
		}
	}
}

func (h *host) begun() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.converts
}

func (h *host) setFault(f func(dlmtest.Op) dlmtest.Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = f
}

func ref(name string) locking.Ref { return locking.Ref{Name: name} }

// vm is an owner that nobody else is.
func vm(n int) locking.Owner {
	return locking.Owner{PID: int32(n), Name: "not published", UUID: [16]byte{byte(n >> 8), byte(n)}}
}

// hold takes a lock for an owner, as the lock table does.
func (hs *hosts) hold(node int, name string, mode locking.Mode, o locking.Owner) locking.Handle {
	hs.t.Helper()
	h, err := hs.try(node, name, mode)
	if err != nil {
		hs.t.Fatalf("lock %s on node %d: %v", name, node, err)
	}
	h.(locking.Describer).Describe(o, time.Now())
	return h
}

func (hs *hosts) try(node int, name string, mode locking.Mode) (locking.Handle, error) {
	h, err := hs.host(node).Open(context.Background(), ref(name), false)
	if err != nil {
		hs.t.Fatalf("open %s on node %d: %v", name, node, err)
	}
	return h, h.Lock(context.Background(), mode)
}

func (hs *hosts) release(h locking.Handle) {
	hs.t.Helper()
	if err := h.Unlock(context.Background()); err != nil {
		hs.t.Fatalf("unlock: %v", err)
	}
}

// refusal asks for a lock that is held, and is the error that libvirt gets.
func (hs *hosts) refusal(node int, name string, mode locking.Mode) *locking.Error {
	hs.t.Helper()
	h, err := hs.try(node, name, mode)
	if err == nil {
		hs.t.Fatalf("%s is granted to node %d", name, node)
	}
	h.Close()
	return hs.explain(name, err)
}

func (hs *hosts) explain(name string, err error) *locking.Error {
	hs.t.Helper()
	var f locking.HolderFinder
	if !errors.Is(err, locking.ErrBusy) || !errors.As(err, &f) {
		hs.t.Fatalf("%s is refused, and not as busy: %v", name, err)
	}
	begin := time.Now()
	e := &locking.Error{Kind: locking.KindBusy, Ref: ref(name), Err: err, Remote: f.FindHolders(context.Background())}
	if took := time.Since(begin); took > 300*time.Millisecond {
		hs.t.Errorf("the refusal took %v longer", took)
	}
	return e
}

// block reads what is published about a resource.
func (hs *hosts) block(name string) dlm.LVB {
	hs.t.Helper()
	ls, err := dlm.Open(context.Background(), hs.nodes.Node(len(hs.list)), space, dlm.Options{})
	if err != nil {
		hs.t.Fatalf("open: %v", err)
	}
	lvb, _, err := ls.ReadLVB(context.Background(), cluster.ResourceName(ref(name)))
	if err != nil {
		hs.t.Fatalf("read: %v", err)
	}
	if err := ls.Close(context.Background()); err != nil {
		hs.t.Fatalf("close: %v", err)
	}
	return lvb
}

// keep keeps a resource, and with it its value block, alive.
func (hs *hosts) keep(node int, name string) (end func()) {
	hs.t.Helper()
	ls, err := dlm.Open(context.Background(), hs.nodes.Node(node), space, dlm.Options{})
	if err == nil {
		_, err = ls.Lock(context.Background(), cluster.ResourceName(ref(name)), dlm.NL, dlm.LockOptions{})
	}
	if err != nil {
		hs.t.Fatalf("keep: %v", err)
	}
	return func() {
		if err := ls.Close(context.Background()); err != nil {
			hs.t.Errorf("close: %v", err)
		}
	}
}

// pass lets d pass, which takes no time, and whatever happens in it.
func pass(d time.Duration) {
	time.Sleep(d)
	fakeclock.Wait()
}

// soon is long enough for a new lock to be published, later for one that was
// taken back.
const (
	soon  = 200 * time.Millisecond
	later = 2 * time.Second
)
