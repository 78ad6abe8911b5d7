package peers

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

const group = "vmlockd:test"

// world is a cluster with a daemon's Peers on each node, in a bubble.
type world struct {
	*corosynctest.Cluster
	t     *testing.T
	nodes []*daemon // from 1 on
}

// daemon is what is around a Peers.
type daemon struct {
	*Peers
	w       *world
	node    int
	process *corosynctest.Process
	cancel  context.CancelFunc
	done    chan error

	mu   sync.Mutex
	held []Holding
	hang chan struct{} // Holdings waits for it, if not nil
}

// newWorld is for a bubble, and ends with t.
func newWorld(t *testing.T, nodes int) *world {
	w := &world{Cluster: corosynctest.NewCluster(nodes), t: t, nodes: []*daemon{nil}}
	for i := range nodes {
		w.nodes = append(w.nodes, w.start(i+1))
	}
	w.settle()
	return w
}

// settle lets everything that is under way come to its end, and news be told.
func (w *world) settle() {
	fakeclock.Wait()
	time.Sleep(10 * soon)
	fakeclock.Wait()
}

func (w *world) start(node int) *daemon {
	d := &daemon{w: w, node: node, process: w.Node(node).NewProcess(), done: make(chan error, 1)}
	g, err := corosync.Join(w.t.Context(), d.process, group, GroupOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	d.held = []Holding{d.holding("own", "exclusive"), d.holding("common", "shared")}
	d.Peers = New(Options{Group: g, Self: d.info(), Holdings: d.holdings})
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() { d.done <- d.Run(ctx) }()
	return d
}

func (d *daemon) info() Info {
	return Info{Name: fmt.Sprintf("node%d", d.node), Version: "1.0", Digest: "abc", Guard: "off", Rules: "r1", Started: time.Unix(1e9, 0).UTC()}
}

// holding is a lock; one that is its own has a resource of the node's.
func (d *daemon) holding(resource, mode string) Holding {
	if resource == "own" {
		resource = fmt.Sprintf("own %d", d.node)
	}
	return Holding{
		Node: uint32(d.node), Resource: resource, Name: "/dev/" + resource, Mode: mode, OwnerName: fmt.Sprintf("vm%d", d.node),
		OwnerUUID: "u", OwnerPID: 40 + d.node, Since: time.Unix(1e9, 0).UTC(),
	}
}

func (d *daemon) holdings() []Holding {
	d.mu.Lock()
	list, hang := d.held, d.hang
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return list
}

func (d *daemon) set(list []Holding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = list
}

// stop ends the daemon in good order.
func (d *daemon) stop() {
	d.cancel()
	if err := <-d.done; err != nil {
		d.w.t.Errorf("node %d: %v", d.node, err)
	}
}

// end ends all daemons; errors are of no interest, since their processes may be dead.
func (w *world) end() {
	for i, d := range w.nodes {
		if d != nil {
			w.Node(i).Resume()
			d.process.Thaw()
			d.cancel()
			<-d.done
		}
	}
	fakeclock.Wait()
}

// ask is Holdings with a second's patience.
func (d *daemon) ask() ([]NodeHoldings, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return d.Holdings(ctx)
}

// member is what d knows of a node.
func (d *daemon) member(node int) *Peer {
	for _, m := range d.Members() {
		if m.Node == uint32(node) {
			return &m
		}
	}
	return nil
}

// of is a node's entry.
func of(list []NodeHoldings, node int) *NodeHoldings {
	for i := range list {
		if list[i].Node == uint32(node) {
			return &list[i]
		}
	}
	return nil
}

// holders is Holders without who answered, which is checked on the way: whoever
// holds something has answered.
func (d *daemon) holders(t *testing.T, resource string) []Holding {
	t.Helper()
	list, answered := d.Holders(t.Context(), resource)
	for _, h := range list {
		if h.Node != uint32(d.node) && !slices.Contains(answered, h.Node) {
			t.Errorf("node %d holds something and is not among those that answered, %v", h.Node, answered)
		}
	}
	return list
}
