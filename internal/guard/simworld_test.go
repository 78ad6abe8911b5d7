package guard

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

// breach says which assumption of docs/guard.md does not hold in a simulation.
type breach int

const (
	none       breach = iota
	noMajority        // A1: both halves have quorum
	deafRing          // A2: messages come back in a ring that is not whole any more
	longPause         // A3: the guard stands still
	slowClock         // A4: the clock of one host runs at a fifth of the speed
	dlmRevives        // A5: the DLM runs a lockspace again that was dropped
	lateWrites        // A6: writes arrive long after their process was stopped
	falseWord         // A7: a guard promises to stop processes and does not
	lateNews          // A8: the DLM's members are known after what the recovery granted
	lateVote          // A9: a part counts the vote of the quorum device for longer after another one has it
	untoldVote        // the same, as nobody has said how long that is
)

// simTiming has the shortest hold-off that is allowed.
func simTiming() Timing {
	t := Timing{Token: time.Second, Consensus: 1200 * time.Millisecond, Grace: 6 * time.Second}
	t.HoldOff = t.LeastHoldOff()
	return t
}

// world is a cluster in virtual time: rings, the DLM, and processes that write.
// It is a model of what corosync and dlm_controld do without fencing.
type world struct {
	begun    time.Time
	breach   breach
	timing   Timing
	majority bool
	static   bool
	device   bool // there is a quorum device

	again sync.WaitGroup // restarts in place

	mu    sync.Mutex // guards what follows, and the fields of nodes
	rng   *rand.Rand
	nodes []*node // the node with number n is at n-1
	parts []int   // by node: in which part of the network it is
	vote  int     // the part for which the device votes; -1 for none
	forms int     // how often the network changed
	whole bool    // every node has the ring of its part
	seq   uint64  // of the newest ring
	locks map[string]uint32
	procs []*proc
	pids  int32
	log   []string
	worst string // the first overlap; "" if there was none
	grant int
	freed int // processes that went on after they were stopped
	held  int // grants that were held off
	moved int // votes of the device that moved
}

func newWorld(seed uint64, n int, b breach) *world {
	w := &world{
		begun: time.Now(), breach: b, timing: simTiming(), majority: true, static: true,
		rng: rand.New(rand.NewPCG(seed, 1)), locks: map[string]uint32{}, parts: make([]int, n), whole: true,
	}
	for i := range n {
		w.nodes = append(w.nodes, newNode(w, uint32(i+1)))
	}
	w.seq = 1
	for _, x := range w.nodes {
		x.ring = w.lockedRing(x.id)
		x.daemonRing = w.seq
		x.space = w.lockedPart(x.id)
	}
	return w
}

func (w *world) now() time.Duration { return time.Since(w.begun) }

func (w *world) lockedSay(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%8.3f ", w.now().Seconds())+fmt.Sprintf(format, args...))
}

// lockedUpTo is a random time.
func (w *world) lockedUpTo(d time.Duration) time.Duration {
	return time.Duration(w.rng.Int64N(int64(d) + 1))
}

// lockedPart are the nodes that run corosync in the part of a node.
func (w *world) lockedPart(id uint32) (list []uint32) {
	for _, x := range w.nodes {
		if x.on && w.parts[x.id-1] == w.parts[id-1] {
			list = append(list, x.id)
		}
	}
	return list
}

func (w *world) lockedRing(id uint32) corosync.Ring {
	part := w.lockedPart(id)
	votes, all := len(part), len(w.nodes)
	if w.device {
		all++
		if w.parts[id-1] == w.vote {
			votes++
		}
	}
	quorate := 2*votes > all
	if !w.majority || w.breach == noMajority {
		quorate = true
	}
	return corosync.Ring{ID: corosync.RingID{Node: part[0], Seq: w.seq}, Members: part, Quorate: quorate}
}

// change changes the network, after which each part forms a ring of its own.
func (w *world) change(what string, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lockedSay("%s", what)
	f()
	w.lockedVote()
	w.forms++
	form := w.forms
	w.whole = false
	// A node that has the token can go on for a moment.
	for _, x := range w.nodes {
		x.deafAt = w.now() + w.lockedUpTo(w.timing.Token/2)
	}
	done := map[int]bool{}
	for _, x := range w.nodes {
		part := w.parts[x.id-1]
		if !x.on || done[part] {
			continue
		}
		done[part] = true
		delay := w.timing.Token/2 + w.lockedUpTo(w.timing.Token/2) + w.timing.Consensus/2 + w.lockedUpTo(w.timing.Consensus/2)
		time.AfterFunc(delay, func() { w.form(form, part) })
	}
}

// form gives all nodes of a part a new ring.
func (w *world) form(form, part int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if form != w.forms {
		return
	}
	w.seq++
	var nodes []*node
	for _, x := range w.nodes {
		if x.on && w.parts[x.id-1] == part {
			nodes = append(nodes, x)
		}
	}
	if len(nodes) == 0 {
		return
	}
	ring := w.lockedRing(nodes[0].id)
	w.lockedSay("ring %d: %v quorate %v", ring.ID.Seq, ring.Members, ring.Quorate)
	for _, x := range nodes {
		if w.breach == deafRing && !ring.Quorate {
			continue // it notices nothing
		}
		time.AfterFunc(w.lockedUpTo(200*time.Millisecond), func() { w.install(form, x, ring) })
	}
	time.AfterFunc(250*time.Millisecond+w.lockedUpTo(time.Second), func() { w.recover(form, ring) })
}

func (w *world) install(form int, x *node, ring corosync.Ring) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if form != w.forms || !x.on || x.hung {
		return
	}
	old := x.ring.Members
	x.earlier, x.shown = x.ring, w.now()+w.lockedUpTo(200*time.Millisecond)
	x.ring, x.deafAt = ring, 0
	if !ring.Quorate {
		x.running = false
	}
	var m corosync.Membership
	for _, id := range ring.Members {
		y := w.nodes[id-1]
		if y.group == nil {
			continue
		}
		m.Members = append(m.Members, y.member())
		if !slices.Contains(old, id) {
			m.Joined = append(m.Joined, corosync.Change{Member: y.member(), Reason: corosync.ReasonNodeUp})
		}
	}
	for _, id := range old {
		if y := w.nodes[id-1]; !slices.Contains(ring.Members, id) && y.pid != 0 {
			m.Left = append(m.Left, corosync.Change{Member: y.member(), Reason: corosync.ReasonNodeDown})
		}
	}
	x.deliver(m)
}

// recover is what dlm_controld and the DLM make of a new ring.
func (w *world) recover(form int, ring corosync.Ring) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if form != w.forms {
		return
	}
	for _, id := range ring.Members {
		if w.nodes[id-1].hung {
			return // it is alone
		}
	}
	for _, id := range ring.Members {
		if x := w.nodes[id-1]; x.controldHung && x.inSpace && !x.dropped {
			return // the recovery waits for it
		}
	}
	for _, id := range ring.Members {
		if x := w.nodes[id-1]; !x.controldHung {
			x.daemonRing = ring.ID.Seq
		}
	}
	if !ring.Quorate {
		return
	}
	// Who was dropped by a part with quorum is not let in again before a reboot.
	var in []uint32
	for _, id := range ring.Members {
		x := w.nodes[id-1]
		switch {
		case !x.inSpace || x.controldGone || x.controldHung: // that last was dropped, and its kernel does not know
		case x.dropped && w.breach != dlmRevives && w.lockedDroppedBy(x, ring):
			x.merge, x.running = true, false
		default:
			in = append(in, id)
			x.dropped = false
			clear(x.kept)
		}
	}
	w.lockedDrop(in)
}

// lockedDroppedBy says whether a node meets one that has dropped it. Only then does it learn that.
func (w *world) lockedDroppedBy(x *node, ring corosync.Ring) bool {
	return slices.ContainsFunc(ring.Members, func(id uint32) bool {
		y := w.nodes[id-1]
		return y.inSpace && !slices.Contains(y.space, x.id)
	})
}

// lockedDrop makes in the members of the lockspace, and gives up the locks of the rest.
func (w *world) lockedDrop(in []uint32) {
	for _, x := range w.nodes {
		if x.inSpace && !slices.Contains(in, x.id) {
			x.dropped = true
		}
	}
	told := func() {
		for _, id := range in {
			w.nodes[id-1].space = in
		}
	}
	if w.breach == lateNews {
		time.AfterFunc(3*time.Second, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			told()
		})
	} else {
		told()
	}
	for _, id := range in {
		w.nodes[id-1].running = true
	}
	for r, holder := range w.locks {
		if !slices.Contains(in, holder) {
			w.lockedSay("the DLM gives up the lock of node %d on %s", holder, r)
			delete(w.locks, r)
			for _, x := range w.nodes {
				if slices.Contains(in, x.id) {
					delete(x.kept, r)
				} else if x.inSpace {
					x.kept[r] = struct{}{}
				}
			}
		}
	}
}

// lockedEndControld ends dlm_controld of a node, which the others learn soon, in the same ring.
func (w *world) lockedEndControld(x *node) {
	if !x.on || !x.inSpace || !x.ring.Quorate || x.controldGone {
		return
	}
	w.lockedSay("dlm_controld of node %d ends", x.id)
	x.controldGone, x.running = true, false
	in := []uint32{}
	for _, id := range x.ring.Members {
		if y := w.nodes[id-1]; y.inSpace && !y.controldGone && !y.dropped {
			in = append(in, id)
		}
	}
	time.AfterFunc(w.lockedUpTo(time.Second), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.lockedDrop(in)
	})
}

// proc is a process that writes to a resource for as long as it runs.
type proc struct {
	w        *world
	pid      int32
	node     *node
	resource string
	running  bool
	lands    time.Duration // until when writes from before the stop may arrive
	started  time.Duration
	gone     chan struct{}
	ended    bool
	inKernel bool // it does not run at the moment, as it waits for a disk
}

// lockedConflict notes an overlap if p writes now while others may, or after a
// later holder has.
func (w *world) lockedConflict(p *proc, what string) {
	for _, q := range w.procs {
		if q == p || q.resource != p.resource || q.node == p.node {
			continue
		}
		if q.running || w.now() < q.lands || q.started > p.started {
			text := fmt.Sprintf("process %d of node %d %s on %s, and process %d of node %d may write or has written since (runs: %v)", p.pid, p.node.id, what, p.resource, q.pid, q.node.id, q.running)
			w.lockedSay("OVERLAP: %s", text)
			if w.worst == "" {
				w.worst = text
			}
		}
	}
}

func (p *proc) lockedHalt() {
	if !p.running {
		return
	}
	p.running = false
	late := inFlight
	if p.w.breach == lateWrites {
		late = time.Minute
	}
	p.lands = p.w.now() + p.w.lockedUpTo(late)
}

func (p *proc) lockedEnd() {
	if !p.ended {
		p.lockedHalt()
		p.ended = true
		close(p.gone)
	}
}

// Stop, Continue and the rest make it a Process.
func (p *proc) Stop() error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.w.breach != falseWord {
		if p.running {
			p.w.lockedSay("node %d stops %d on %s", p.node.id, p.pid, p.resource)
		}
		p.lockedHalt()
	}
	return nil
}

func (p *proc) Stopped() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return !p.running
}

func (p *proc) Suspended() bool { return p.Stopped() && !p.inKernel }

func (p *proc) Continue() error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if !p.ended && !p.running {
		p.w.lockedSay("node %d continues %d on %s", p.node.id, p.pid, p.resource)
		p.running = true
		p.w.freed++
		p.w.lockedConflict(p, "goes on")
	}
	return nil
}

func (p *proc) Kill() error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.w.breach != falseWord {
		p.w.lockedSay("node %d kills %d", p.node.id, p.pid)
		p.lockedEnd()
	}
	return nil
}

func (p *proc) Gone() <-chan struct{} { return p.gone }
func (p *proc) Close()                {}
