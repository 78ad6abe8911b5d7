package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// startControl serves the control socket. Locks are served without it if it
// cannot be made: an upgrade must not fail for that.
func (i *instance) startControl() {
	host, _ := os.Hostname()
	o := control.Options{
		Version: i.version, Backend: i.cfg.Backend, Socket: i.cfg.Socket, Node: host,
		Locks: i.locks, Drain: i.drain, Events: &i.events, Log: i.log,
		Disks: i.disks,
		Audit: auditor{i.audit}, More: map[string]http.Handler{"/metrics": i.metrics.Handler()},
	}
	o.Settler, o.Warnings = i.doubt, i.warnings
	if b, ok := i.backend.(dlmLocks); ok {
		o.Cluster = clusterState{b.Backend, i.guard, i.leftover}
	}
	if i.guard != nil {
		o.Guard = i.guard
	}
	if i.others != nil {
		o.Peers = forOperators{i.others}
	}
	l, err := rpc.Listen(i.cfg.ControlSocket)
	if err != nil {
		i.log.Error("there is no control socket, so vmlockctl does not work; locks are served", "reason", err)
		return
	}
	server := control.New(o)
	i.control = server // which stopControl may forget before this goroutine runs
	i.serving.Go(func() {
		if err := server.Serve(l); err != nil {
			i.log.Error("the control socket is not served any more; locks are", "reason", err)
		}
	})
}

// stopControl cuts off the clients of the control socket, but for a release that
// is under way.
func (i *instance) stopControl() {
	if i.control != nil {
		i.within("the control socket", i.control.Close)
		i.control = nil
	}
}

// observe tells everybody who wants to know what happens to locks.
func (i *instance) observe() func(locking.Event) {
	return observers(i.arm, i.metrics.Observe, logEvents(i.log), i.events.Observe, i.tidy.observe, i.noteEnding)
}

// clusterState is a cluster backend as the control socket shows it.
type clusterState struct {
	*cluster.Backend
	guard    *guarding
	leftover *leftover
}

func (c clusterState) Cluster(ctx context.Context) control.Cluster {
	st := c.Status(ctx)
	out := control.Cluster{
		Name: st.Name, NodeID: uint32(st.Cluster.NodeID), Quorate: control.Unknown, Fencing: control.Unknown,
		Lockspace: control.DLMLockspace{
			Name: st.Lockspace, WaitsFor: st.Reason, InFlight: st.Kernel.InFlight,
			Oldest: st.Kernel.OldestWrite.Seconds(), Undecided: st.Kernel.Unsettled + st.GivingBack,
		},
	}
	switch st.State {
	case cluster.Joining:
		out.Lockspace.State = control.LockspaceJoining
	case cluster.Running:
		out.Lockspace.State = control.LockspaceRunning
	case cluster.Stopped:
		out.Lockspace.State = control.LockspaceStopped
	case cluster.Dead:
		out.Lockspace.State = control.LockspaceDead
	}
	if !st.Since.IsZero() {
		out.Lockspace.Since = &st.Since
	}
	if st.Fencing != nil {
		out.Fencing = yesNo(*st.Fencing)
	}
	out.Guard, out.Guarded = c.guard.state(c.leftover.stays())
	switch {
	case st.Err != nil:
		out.Error = st.Err.Error()
	case st.Asked:
		out.Quorate = yesNo(st.Cluster.Quorate)
	}
	for _, n := range st.Cluster.Nodes {
		node := control.ClusterNode{NodeID: uint32(n.NodeID), Member: n.Member, NeedsFencing: n.NeedFencing}
		if !n.Failed.IsZero() {
			node.Lost = &n.Failed
		}
		out.Nodes = append(out.Nodes, node)
	}
	return out
}

func yesNo(b bool) string {
	if b {
		return control.Yes
	}
	return control.No
}

// drainer remembers in run_dir that the host is being drained, so that a restart
// of the daemon does not end that. A reboot does.
type drainer struct {
	path  string
	locks *locking.Manager
	tell  func(bool) // the other hosts

	mu  sync.Mutex // guards what follows, and the order of file and Manager
	now *control.Drained
}

// drainFile is in run_dir while the host is being drained.
const drainFile = "draining.json"

// maxDrainFile bounds what is read of it.
const maxDrainFile = 64 << 10

// openDrainer goes on with a drain of an earlier daemon. It must be called before
// anything is granted.
func openDrainer(dir string, locks *locking.Manager, tell func(bool), log *slog.Logger) *drainer {
	d := &drainer{path: filepath.Join(dir, drainFile), locks: locks, tell: tell}
	text, err := readSmall(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return d
	}
	// That the file is there is what counts.
	d.now = &control.Drained{Since: time.Now().UTC()}
	if err == nil {
		err = json.Unmarshal(text, d.now)
	}
	log.Warn("this host is being drained and grants no new locks; 'vmlockctl drain --undo' ends that",
		"since", d.now.Since, "by", d.now.By, "why", d.now.Reason, "error", err)
	locks.Drain(true)
	tell(true)
	return d
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxDrainFile {
		return nil, fmt.Errorf("%s has %d bytes, and was not written by vmlockd", path, info.Size())
	}
	return os.ReadFile(path)
}

func (d *drainer) Drained() *control.Drained {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		return nil
	}
	now := *d.now
	return &now
}

func (d *drainer) Drain(want *control.Drained) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case want == nil:
		undrainBefore.Pass()
		err := os.Remove(d.path)
		undrainAfter.Pass()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the drain goes on: %w", err)
		}
		d.now = nil
		d.locks.Drain(false)
		d.tell(false)
	case d.now == nil:
		text, err := json.Marshal(want)
		if err == nil {
			// All at once: a part of it would still be a drain, but not say whose.
			err = os.WriteFile(d.path+".new", text, 0o600)
		}
		if err == nil {
			drainBefore.Pass()
			err = os.Rename(d.path+".new", d.path)
			drainAfter.Pass()
		}
		if err != nil {
			return fmt.Errorf("the drain was not begun, because a restart would end it: %w", err)
		}
		d.now = want
		d.locks.Drain(true)
		d.tell(true)
	}
	return nil
}
