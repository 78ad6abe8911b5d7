package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// node is a host of a world: all ports of its guard. Its fields are guarded by world.mu.
type node struct {
	w     *world
	id    uint32
	speed float64 // of its clock

	on   bool
	ring corosync.Ring
	// Until shown the guard is told of the ring before: the group is told at another time.
	earlier corosync.Ring
	shown   time.Duration
	deafAt  time.Duration // from when on the old ring delivers nothing; 0 if the ring is whole
	stall   time.Duration // until when the ring delivers nothing
	hung    bool          // corosync says nothing, and is not in any ring
	// There are no descriptors left to open processes with, or to read the members with.
	noProcs, noSpace bool

	inSpace      bool
	dropped      bool // by a part with quorum
	merge        bool // and it has met that part again
	running      bool // the lockspace
	controldGone bool
	controldHung bool
	fences       bool
	ghost        bool // an owner that is no process
	space        []uint32
	// kept is what is held in the books of this node's DLM, and was given up by others who
	// had dropped it: they do not answer it any more. It may go on like that while its corosync hangs.
	kept       map[string]struct{}
	daemonRing uint64

	group *group
	pid   uint32 // of the guard
	guard *Guard
	end   context.CancelFunc
	ended chan struct{}
	saved []byte
	pause time.Duration // until when the guard stands still
	// restarting: the guard is away for a restart in place, and comes back by itself.
	restarting bool
	// options changes what the next guard has; nil: nothing.
	options func(*Options)
}

func newNode(w *world, id uint32) *node {
	x := &node{w: w, id: id, on: true, running: true, inSpace: true, kept: map[string]struct{}{}, speed: 0.976 + 0.048*w.rng.Float64()}
	if w.breach == slowClock && id == 1 {
		x.speed = 0.2
	}
	return x
}

func (x *node) member() corosync.Member { return corosync.Member{Node: x.id, PID: x.pid} }

// group is the group as one guard has it.
type group struct {
	x      *node
	events chan corosync.Event
	mu     sync.Mutex // guards closed, and events against being closed
	closed bool
	due    time.Duration // of the message sent last; guarded by the world's mu
}

func (g *group) Events() <-chan corosync.Event { return g.events }

func (x *node) deliver(ev corosync.Event) {
	if x.group == nil {
		return
	}
	x.group.mu.Lock()
	defer x.group.mu.Unlock()
	if x.group.closed {
		return
	}
	select {
	case x.group.events <- ev:
	default: // the guard stands still; it will be told by later ones
	}
}

func (g *group) Send(_ context.Context, data []byte) error {
	w := g.x.w
	w.mu.Lock()
	defer w.mu.Unlock()
	from, ring, form := g.x.member(), g.x.ring, w.forms
	delay := w.lockedUpTo(50 * time.Millisecond)
	if stall := g.x.stall - w.now(); stall > 0 {
		delay += stall
	}
	// Corosync delivers in the order in which a process has sent.
	g.due = max(w.now()+delay, g.due+1)
	delay = g.due - w.now()
	time.AfterFunc(delay, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		deaf := g.x.deafAt != 0 && w.now() >= g.x.deafAt
		if w.breach == deafRing {
			deaf = false
		}
		if !g.x.on || g.x.group != g || g.x.ring.ID != ring.ID || deaf || g.x.hung {
			return
		}
		if g.x.deafAt != 0 && w.breach != deafRing {
			g.x.deafAt = w.now() // the last one: the token does not come back
		}
		g.x.deliver(corosync.Message{From: from, Data: data})
		if form != w.forms || g.x.deafAt != 0 {
			return
		}
		for _, id := range ring.Members {
			if y := w.nodes[id-1]; y != g.x && y.ring.ID == ring.ID && y.on {
				y.deliver(corosync.Message{From: from, Data: data})
			}
		}
	})
	return nil
}

// Close is also what the others see of the death of the process.
func (g *group) Close(context.Context) error {
	w := g.x.w
	time.Sleep(60 * time.Millisecond) // by the bubble's clock: longer than a message takes, as what was sent before comes first
	w.mu.Lock()
	defer w.mu.Unlock()
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.events)
	}
	g.mu.Unlock()
	if g.x.group == g {
		gone := g.x.member()
		g.x.group = nil
		w.lockedGroupNews(g.x, corosync.Membership{Left: []corosync.Change{{Member: gone, Reason: corosync.ReasonProcDown}}})
	}
	return nil
}

// lockedGroupNews tells all guards in the ring of x of a change.
func (w *world) lockedGroupNews(x *node, m corosync.Membership) {
	if !x.on || x.deafAt != 0 {
		return
	}
	for _, id := range x.ring.Members {
		if y := w.nodes[id-1]; y.on && y.group != nil {
			m.Members = append(m.Members, y.member())
		}
	}
	for _, id := range x.ring.Members {
		if y := w.nodes[id-1]; y.on && y.ring.ID == x.ring.ID {
			y.deliver(m)
		}
	}
}

// start starts the guard.
func (x *node) start() {
	w := x.w
	w.mu.Lock()
	w.pids++
	x.pid = uint32(w.pids)
	gr := &group{x: x, events: make(chan corosync.Event, 1024)}
	x.group = gr
	gr.events <- corosync.Up{Self: x.member()}
	w.lockedGroupNews(x, corosync.Membership{Joined: []corosync.Change{{Member: x.member(), Reason: corosync.ReasonJoin}}})
	timing := w.timing
	// What corosync says is not known before it has been asked, and a guard that
	// starts while it is hung is told nothing.
	timing.Token, timing.Consensus, timing.Device = 0, 0, 0
	heard := false
	connected := w.now() + w.lockedUpTo(500*time.Millisecond) // to corosync's quorum
	w.mu.Unlock()
	o := Options{
		Mode: Auto, Timing: timing, Lockspace: "test", Group: gr, Store: store{x},
		Clock: func() time.Duration { return time.Hour + time.Duration(float64(w.now())*x.speed) },
		Node:  func() (uint32, error) { return x.id, nil },
		Ring: func() (corosync.Ring, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !heard && (x.hung || w.now() < connected) {
				return corosync.Ring{}, errors.New("not connected")
			}
			heard = true
			if w.now() < x.shown {
				return x.earlier, nil
			}
			return x.ring, nil
		},
		Totem: func(ctx context.Context) (Totem, error) {
			w.mu.Lock()
			hung := x.hung
			w.mu.Unlock()
			if hung {
				<-ctx.Done()
				return Totem{}, ctx.Err()
			}
			t := Totem{Token: w.timing.Token, Consensus: w.timing.Consensus, Device: w.timing.Device, Majority: w.majority, Static: w.majority && w.static}
			for _, y := range w.nodes {
				t.Nodes = append(t.Nodes, y.id)
			}
			return t, nil
		},
		Members: func() ([]uint32, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if x.noSpace {
				return nil, fmt.Errorf("open nodes: %w", syscall.EMFILE)
			}
			if !x.inSpace {
				return nil, fmt.Errorf("not in the lockspace: %w", fs.ErrNotExist)
			}
			return slices.Clone(x.space), nil
		},
		Controld: x, Owners: x.owners, Processes: x, Prove: x.prove,
	}
	if x.options != nil {
		x.options(&o)
	}
	g, err := New(o)
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	w.mu.Lock()
	x.guard, x.end, x.ended = g, cancel, ended
	w.mu.Unlock()
	go func() {
		defer close(ended)
		_ = g.Run(ctx)
	}()
}

// kill ends the guard and nothing else.
func (x *node) kill() {
	x.w.mu.Lock()
	end, ended := x.end, x.ended
	x.guard = nil
	x.w.mu.Unlock()
	end()
	<-ended
}

type store struct{ x *node }

func (s store) Load() (*Saved, error) {
	s.x.w.mu.Lock()
	defer s.x.w.mu.Unlock()
	if s.x.saved == nil {
		return nil, nil
	}
	var v Saved
	return &v, json.Unmarshal(s.x.saved, &v)
}

func (s store) Save(v Saved) error {
	b, err := json.Marshal(v)
	s.x.w.mu.Lock()
	defer s.x.w.mu.Unlock()
	s.x.saved = b
	return err
}

// Status, Known and Config make it a Controld.
func (x *node) Status(ctx context.Context) (controld.Status, error) {
	x.w.mu.Lock()
	if x.controldHung {
		x.w.mu.Unlock()
		<-ctx.Done()
		return controld.Status{}, controld.ErrNoAnswer
	}
	defer x.w.mu.Unlock()
	if x.controldGone {
		return controld.Status{}, controld.ErrNotRunning
	}
	st := controld.Status{NodeID: int(x.id), Quorate: x.ring.Quorate, DaemonRing: x.daemonRing, ClusterRing: x.ring.ID.Seq, MergeWait: x.merge}
	for _, y := range x.w.nodes {
		st.Nodes = append(st.Nodes, controld.DaemonNode{NodeID: int(y.id), Member: slices.Contains(x.ring.Members, y.id)})
	}
	return st, nil
}

func (x *node) Known(context.Context, string) error { return nil }

func (x *node) Config(context.Context) (controld.Config, error) {
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	return controld.Config{EnableFencing: x.fences}, nil
}

// owners stands still while the guard is to.
func (x *node) owners() (list []Owner) {
	x.w.mu.Lock()
	pause := x.pause - x.w.now()
	x.w.mu.Unlock()
	if pause > 0 {
		time.Sleep(pause) // by the bubble's clock: the fault itself, a guard that gets no CPU
	}
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	for _, p := range x.w.procs {
		if p.node == x && !p.ended {
			list = append(list, Owner{PID: p.pid, Start: 1})
		}
	}
	if x.ghost {
		list = append(list, Owner{PID: 4711, Name: "who knows"})
	}
	return list
}

// opensNothing has descriptors run out, or there are some again.
func (x *node) opensNothing(yes bool) {
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	x.noProcs = yes
}

// hears is what the guard of another node was heard to say last.
func (x *node) hears(other uint32) word {
	x.guard.mu.Lock()
	defer x.guard.mu.Unlock()
	return x.guard.ledger.words[other]
}

// Open makes it a Processes.
func (x *node) Open(pid int32, _ uint64) (Process, error) {
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	if x.noProcs {
		return nil, syscall.ENFILE
	}
	for _, p := range x.w.procs {
		if p.pid == pid && !p.ended {
			return p, nil
		}
	}
	return nil, locking.ErrNoProcess
}

// prove is a conversion, which succeeds on this node alone while it has not been
// told of any change.
func (x *node) prove(ctx context.Context, _ Owner) error {
	x.w.mu.Lock()
	wait, ok := x.w.lockedUpTo(100*time.Millisecond), x.running
	x.w.mu.Unlock()
	if ok {
		time.Sleep(wait) // by the bubble's clock: as long as the kernel takes for a conversion
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}
