package cli_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/guard"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// fakeCluster is what the control server of node 1 of four knows, so that the whole way
// from there to the terminal is the real one. Node 3 is frozen, and node 4 has
// vanished, unless a scene says otherwise.
type fakeCluster struct {
	mu        sync.Mutex // guards what follows
	c         control.Cluster
	held      []locking.Holder
	waiting   []locking.Waiter
	returning []locking.Returner
	others    map[uint32][]locking.Holder
	silent    map[uint32]string // why a node does not answer
	drained   *control.Drained
	doubt     *control.Doubt
}

// at is when everything has happened.
var at = time.Date(2026, time.November, 25, 6, 2, 35, 0, time.UTC)

func heldBy(vm string, pid int32, mode locking.Mode, path string) locking.Holder {
	return locking.Holder{
		Owner: locking.Owner{PID: pid, Name: vm, UUID: [16]byte{0x4d, 0xea, 15: byte(pid)}}, Ref: locking.Ref{Name: path}, Mode: mode, Since: at,
	}
}

func newFakeCluster() *fakeCluster {
	lost := at.Add(time.Minute)
	return &fakeCluster{
		c: control.Cluster{
			Name: "prod", NodeID: 1, Quorate: control.Yes, Fencing: control.No, Guarded: true,
			Guard:     freezing(),
			Lockspace: control.DLMLockspace{Name: "vmlockd", State: control.LockspaceRunning},
			Nodes:     []control.ClusterNode{{NodeID: 1, Member: true}, {NodeID: 2, Member: true}, {NodeID: 3, Member: true}, {NodeID: 4, Lost: &lost}},
		},
		held: []locking.Holder{heldBy("web", 701, locking.Exclusive, "/srv/vm/web.img"), heldBy("db1", 702, locking.Shared, "/srv/vm/common.img")},
		others: map[uint32][]locking.Holder{
			2: {heldBy("db2", 801, locking.Shared, "/srv/vm/common.img"), heldBy("mail", 802, locking.Exclusive, "/srv/vm/mail.img"), heldBy("web", 803, locking.Exclusive, "/srv/old/web.img")},
		},
		silent: map[uint32]string{3: "no answer in time", 4: "no vmlockd runs there, or it is not reached"},
	}
}

func freezing() *control.GuardState {
	return &control.GuardState{
		Mode: "freeze", Promise: true, Grace: 10, HoldOff: 60, Least: 42.5,
		Stopped: []control.StoppedVM{}, NotStopped: []control.LooseVM{}, Vanished: []control.VanishedNode{},
	}
}

// scenes are what an administrator may find at three in the morning.
var scenes = map[string]func(*fakeCluster){
	"calm": func(*fakeCluster) {},
	// The kernel has not answered a request.
	"busy": func(f *fakeCluster) {
		h := heldBy("new", 704, locking.Exclusive, "/srv/vm/new.img")
		f.waiting = []locking.Waiter{{Owner: h.Owner, Ref: h.Ref, Mode: h.Mode, Since: at}}
	},
	// It is suspended, and has given its disks back.
	"suspended": func(f *fakeCluster) {
		for _, disk := range []string{"/srv/vm/a.img", "/srv/vm/b.img"} {
			f.returning = append(f.returning, locking.Returner{Owner: locking.Owner{Name: "paused", PID: 705}, Ref: locking.Ref{Name: disk}})
		}
	},
	// It is not known yet whether dlm_controld fences.
	"auto": func(f *fakeCluster) {
		f.c.Fencing, f.c.Guarded = control.Unknown, false
		f.c.Guard.Mode, f.c.Guard.Promise, f.c.Guard.Refuses = "auto", false, "dlm_controld has not said yet whether lost hosts are fenced"
	},
	"fenced": func(f *fakeCluster) {
		f.c.Fencing, f.c.Guard.Mode = control.Yes, "fencing"
		f.c.Nodes[3].NeedsFencing = true
		f.c.Lockspace.State, f.c.Lockspace.WaitsFor, f.c.Lockspace.Since = control.LockspaceStopped, "fencing of node 4", f.c.Nodes[3].Lost
	},
	"unguarded": func(f *fakeCluster) {
		f.c.Guarded, f.c.Guard.Mode = false, "off"
	},
	"short": func(f *fakeCluster) {
		f.c.Guarded, f.c.Guard.Promise = false, false
		f.c.Guard.Unsafe = "guard.hold_off is 20s, and has to be 42.5s at least with corosync's timeouts"
		f.c.Guard.HoldOff, f.c.Guard.Refuses = 20, f.c.Guard.Unsafe
	},
	// The cluster is lost: with nothing held, and with virtual machines of each kind.
	"lost-idle": func(f *fakeCluster) {
		f.held = nil
		f.lose()
	},
	"lost": func(f *fakeCluster) {
		f.lose()
		f.c.Guard.Stopped = []control.StoppedVM{{VM: "web", UUID: "u", PID: 701, Left: 7.5}, {VM: "db1", UUID: "u", PID: 702, Left: 7.5, Stays: true}}
	},
	"lost-loose": func(f *fakeCluster) {
		f.lose()
		f.c.Guard.Promise = false
		f.c.Guard.Stopped = []control.StoppedVM{{VM: "web", UUID: "u", PID: 701}}
		f.c.Guard.NotStopped = []control.LooseVM{{VM: "db1", UUID: "u", PID: 702}}
	},
	// It is back, and one was stopped for too long.
	"stays": func(f *fakeCluster) {
		f.c.Guard.Stopped = []control.StoppedVM{{VM: "web", UUID: "u", PID: 701, Left: 2.5}, {VM: "db1", UUID: "u", PID: 702, Stays: true}}
	},
	// A host has vanished: with a promise, without one, and where quorum is no majority.
	"vanished": func(f *fakeCluster) {
		f.vanish(control.VanishedNode{NodeID: 4, Left: 40.2, Promised: true, Seen: true})
	},
	"no-promise": func(f *fakeCluster) {
		f.vanish(control.VanishedNode{NodeID: 4, Forever: true, Seen: true})
	},
	"no-majority": func(f *fakeCluster) {
		f.vanish(control.VanishedNode{NodeID: 4, Forever: true, Promised: true})
	},
	"doubt": func(f *fakeCluster) {
		f.doubt = &control.Doubt{Damage: "bytes 96 to 160 are no record; the file is kept as journal.damaged", Unexplained: []string{"5c1d"}, Orphans: true}
	},
}

func (f *fakeCluster) lose() {
	f.c.Quorate, f.c.Guard.Lost, f.c.Guard.Refuses = control.No, "the cluster has no quorum as seen from here", "this host has lost the cluster"
	f.c.Lockspace.State, f.c.Lockspace.WaitsFor = control.LockspaceStopped, "the cluster has no quorum"
}

func (f *fakeCluster) vanish(v control.VanishedNode) {
	f.c.Guard.Vanished, f.c.Guard.Refuses = []control.VanishedNode{v}, "node 4 has vanished"
}

// serve answers for it on a socket, until what it returns is called.
func (f *fakeCluster) serve(socket string, events *control.Events) (end func(), err error) {
	l, err := rpc.Listen(socket)
	if err != nil {
		return nil, err
	}
	s := control.New(control.Options{
		Version: "1.2.3", Backend: "cluster", Socket: "/run/libvirt/virtlockd-sock", Node: "kvm1",
		Locks: f, Drain: f, Events: events, Cluster: f, Peers: fakePeers{f}, Guard: f, Disks: fakeDisks{}, Settler: f, Warnings: f.warnings,
	})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = s.Close(ctx)
		<-done
	}, nil
}

// clusterCommand is: cluster SCENE. It serves the control socket of a host in a
// cluster, in which it is as the scene says, and nothing is left of an earlier one.
func clusterCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := hostOf(ts)
	scene := scenes[args[0]]
	if scene == nil {
		ts.Fatalf("there is no scene %q", args[0])
	}
	f := newFakeCluster()
	scene(f)
	if h.leave != nil {
		h.leave()
	} else {
		ts.Defer(func() { h.leave() })
	}
	ts.Check(os.MkdirAll(filepath.Join(h.dir, "run"), 0o700))
	end, err := f.serve(h.dir+"/run/control.sock", &control.Events{})
	ts.Check(err)
	h.leave = end
}

func (f *fakeCluster) Cluster(context.Context) control.Cluster {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.c
	g := *c.Guard
	g.Vanished = slices.Clone(g.Vanished)
	c.Guard = &g
	return c
}

func (f *fakeCluster) Holders() []locking.Holder     { return slices.Clone(f.held) }
func (f *fakeCluster) Waiting() []locking.Waiter     { return f.waiting }
func (f *fakeCluster) Returning() []locking.Returner { return f.returning }

func (f *fakeCluster) ForceRelease(_ context.Context, ref locking.Ref, _ func(locking.Holder) bool, _ bool) ([]locking.Holder, error) {
	return nil, &locking.Error{Kind: locking.KindOwnerLives, Ref: ref, Holders: f.held[:1]}
}

func (f *fakeCluster) Drained() *control.Drained {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.drained
}

func (f *fakeCluster) Drain(d *control.Drained) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drained = d
	return nil
}

// ConfirmDead says of a member what the guard says.
func (f *fakeCluster) ConfirmDead(node uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if node < 4 {
		return &control.Error{Code: control.CodeNodeMember, Message: fmt.Sprintf("node %d %v", node, guard.ErrMember)}
	}
	if f.c.Guard.Mode == "fencing" {
		return fmt.Errorf("dlm_controld fences in this cluster, and the DLM waits until node %d was fenced: 'dlm_tool fence_ack %d' says that it is off", node, node)
	}
	f.c.Guard.Vanished, f.c.Guard.Refuses = []control.VanishedNode{}, ""
	return nil
}

func (f *fakeCluster) Doubt() *control.Doubt {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doubt
}

func (f *fakeCluster) Settle(context.Context, control.Caller, string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.doubt = nil
	return 1, nil
}

func (f *fakeCluster) warnings() []control.Warning {
	if f.Doubt() == nil {
		return nil
	}
	return []control.Warning{{Code: control.WarnDoubt, Message: "the journal was damaged: what it may have said stays locked; 'vmlockctl settle' shows it"}}
}

// fakePeers are the other three nodes.
type fakePeers struct{ *fakeCluster }

func (f fakePeers) Members() []control.PeerMember {
	var list []control.PeerMember
	for id := uint32(1); id <= 3; id++ {
		list = append(list, control.PeerMember{NodeID: id, Name: fmt.Sprint("kvm", id), Version: "1.2.3", Silent: f.silent[id] != "", ConfigDigest: "d", RulesDigest: "r", Self: id == 1})
	}
	return list
}

func (fakePeers) Names() map[uint32]string {
	return map[uint32]string{1: "kvm1", 2: "kvm2", 3: "kvm3", 4: "kvm4"}
}

func (fakePeers) Absent(uint32) bool { return false }

func (f fakePeers) Holdings(context.Context) (list []control.PeerHoldings) {
	for id := uint32(2); id <= 4; id++ {
		list = append(list, control.PeerHoldings{NodeID: id, Name: fmt.Sprint("kvm", id), Holders: f.others[id], Err: f.silent[id]})
	}
	return list
}

func (f fakePeers) Holders(ctx context.Context, sought []control.Sought) []control.PeerHoldings {
	list := f.Holdings(ctx)
	for i := range list {
		list[i].Holders = slices.DeleteFunc(slices.Clone(list[i].Holders), func(h locking.Holder) bool {
			return !slices.ContainsFunc(sought, func(s control.Sought) bool { return s.Ref == h.Ref })
		})
	}
	return list
}

func (f fakePeers) Identify(_ context.Context, path string) (list []control.PeerDisk) {
	for id := uint32(2); id <= 4; id++ {
		d := fakeDisks{}.Identify(context.Background(), path)
		if path == "/dev/differs" {
			d.Name = "scsi:naa.2"
		}
		list = append(list, control.PeerDisk{NodeID: id, Name: fmt.Sprint("kvm", id), Disk: d, Err: f.silent[id]})
	}
	return list
}

type fakeDisks struct{}

func (fakeDisks) Identify(_ context.Context, path string) control.Disk {
	return control.Disk{Path: path, Type: "scsi", Scope: control.ScopeCluster, Name: "scsi:naa.1", Resource: "5c1d", Steps: []string{"it says so itself"}}
}
