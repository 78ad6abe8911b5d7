package history_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// world is a cluster with a daemon on each node, and what its clients know.
type world struct {
	t         *rapid.T
	dir       string
	c         *dlmtest.Cluster
	nodes     []*node
	suspended bool
	lost      bool // a node lost power, and the others have not recovered from that
	gates     []*dlmtest.Gate
	calls     []*call   // not collected yet
	disturbed time.Time // when something was let go on last
	known     []*fact
	mayLose   bool // the kernel loses locks

	mu     sync.Mutex // guards what follows
	failed string
	seen   map[string]int
}

// node is one host.
type node struct {
	w         *world
	id        int
	boots     int
	on        bool
	processes *locktest.Processes
	owners    map[int32]*owner // by pid
	in        *instance        // nil while none runs
	late      *instance        // the last one that died
	// journalLost makes the next start find no journal.
	journalLost bool
}

// GoString is how rapid prints a choice.
func (n *node) GoString() string { return fmt.Sprint(n.id) }

// owner is a virtual machine.
type owner struct {
	*locktest.Process
	n   *node
	pid int32
	// id tells it from others that had its pid.
	id uint32
}

func (o *owner) alive() bool { return o.n.owners[o.pid] == o }

// fact is what clients know of one owner's use of one disk.
type fact struct {
	o          *owner
	disk       string
	shared     bool // if granted > 0
	granted    int  // grants they were told of, less releases
	acquiring  int  // acquires with no certain answer
	releasing  int  // releases with no certain answer
	underway   int  // of these, calls that have not ended
	maybeMixed bool // an uncertain acquire was in the other mode
}

// GoString is how rapid prints a choice.
func (f *fact) GoString() string {
	return fmt.Sprintf("owner %d of node %d and %s", f.o.pid, f.o.n.id, f.disk)
}

func (f *fact) least() int { return max(0, f.granted-f.releasing) }
func (f *fact) most() int  { return f.granted + f.acquiring }

func newWorld(t *rapid.T, base string, nodes int, seen map[string]int) *world {
	dir, err := os.MkdirTemp(base, "history")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, c: dlmtest.NewCluster(nodes), seen: seen}
	for id := range nodes {
		n := &node{w: w, id: id + 1, on: true, processes: locktest.NewProcesses(w), owners: map[int32]*owner{}}
		w.nodes = append(w.nodes, n)
		n.start()
	}
	return w
}

// Errorf keeps the first failure for the next check: rapid wants to hear of it
// in its own goroutine.
func (w *world) Errorf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
	}
}

// saw counts what a run of the test is to contain.
func (w *world) saw(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[what] += n
}

// end frees everything, also after a failure.
func (w *world) end() {
	w.resume()
	w.openGates()
	for _, n := range w.nodes {
		if in := n.in; in != nil {
			in.die()
			in.bury()
		}
	}
	pass(4 * stopTimeout)
	_ = os.RemoveAll(w.dir)
}

// pass lets everything happen that does so within d, in no time.
func pass(d time.Duration) {
	time.Sleep(d) // the clock is the bubble's
	fakeclock.Wait()
}

// quiet says that nothing is under way and nothing is kept from happening.
func (w *world) quiet() bool {
	return !w.suspended && !w.lost && len(w.gates) == 0 && len(w.calls) == 0 && time.Since(w.disturbed) >= time.Second
}

// settle brings about that the world is quiet.
func (w *world) settle() {
	w.recover()
	w.resume()
	w.openGates()
	pass(1500 * time.Millisecond)
	w.collect()
}

func (w *world) suspend() {
	w.c.Suspend(lockspace)
	w.suspended = true
}

func (w *world) resume() {
	w.c.Resume(lockspace)
	w.suspended, w.disturbed = false, time.Now()
}

func (w *world) recover() {
	w.c.Recover()
	w.lost, w.disturbed = false, time.Now()
}

func (w *world) openGates() {
	for _, g := range w.gates {
		g.Open()
	}
	for _, n := range w.nodes {
		w.c.Node(n.id).SetFault(nil)
	}
	w.gates, w.disturbed = nil, time.Now()
}

func (n *node) spawn(pid int32) {
	p := n.processes.Start(pid)
	n.owners[pid] = &owner{Process: p, n: n, pid: pid, id: uint32(p.StartTime())}
}

func (n *node) end(o *owner) {
	delete(n.owners, o.pid)
	o.Kill()
	n.releaseOfGone()
}

// releaseOfGone notes that the daemon, if there is one, releases what owners had
// who are gone. It may be killed at that.
func (n *node) releaseOfGone() {
	for _, f := range n.w.known {
		if f.o.n == n && n.in != nil && !f.o.alive() {
			f.releasing = max(f.releasing, f.most())
		}
	}
}

// powerOff is the end of all that runs on the node.
func (n *node) powerOff() {
	n.on = false
	n.w.lost = true
	if n.in != nil {
		n.in.dead.Store(true)
	}
	n.w.c.Node(n.id).PowerOff()
	for _, o := range n.owners {
		n.end(o)
	}
	if in := n.in; in != nil {
		in.die()
		in.bury()
	}
	fakeclock.Wait()
	n.w.collect()
	n.w.known = filter(n.w.known, func(f *fact) bool { return f.o.n != n })
}

func (n *node) boot() {
	n.w.recover()
	n.w.c.Node(n.id).Boot()
	n.on = true
	n.boots++
}

// startable says that the earlier instance has left the kernel: the next one
// does not start before.
func (n *node) startable() bool {
	if !n.on || n.in != nil {
		return false
	}
	if n.late == nil {
		return true
	}
	select {
	case <-n.late.buried:
		return true
	default:
		return false
	}
}

func filter[T any](list []T, keep func(T) bool) []T {
	var kept []T
	for _, v := range list {
		if keep(v) {
			kept = append(kept, v)
		}
	}
	return kept
}

// identified is the disk that has an identity: each time somebody wants it, it is asked
// first whether a daemon that knew paths only has it.
const identified = "c"

func ref(disk string) locking.Ref {
	name := filepath.Join("/disks", disk)
	if disk == identified {
		return locking.Ref{Name: name}
	}
	return locking.Ref{Lockspace: "/" + disk, Name: name}
}

func identify(_ context.Context, path string) (cluster.Disk, error) {
	return cluster.Disk{Name: "identity of " + path}, nil
}

// resource is the name of a disk in the DLM.
func resource(disk string) string {
	r := ref(disk)
	if disk == identified {
		d, _ := identify(context.Background(), r.Name)
		r.Name = d.Name
	}
	return cluster.ResourceName(r)
}

// inKernel is who has the lock of a disk in the kernel, and in which mode.
func (w *world) inKernel(disk string) map[int][]dlm.Mode {
	list := map[int][]dlm.Mode{}
	for _, l := range w.c.Locks(lockspace, resource(disk)) {
		if l.State == "granted" {
			list[l.Node] = append(list[l.Node], l.Mode)
		}
	}
	return list
}
