package guard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm/controld"
)

// Guard is the guard of this host. Run makes it work.
type Guard struct {
	o    Options
	log  *slog.Logger
	run  uint64        // tells its messages from those of an earlier guard
	kick chan struct{} // has room for one: tell the others now

	mu      sync.Mutex // guards what follows; never held while anybody is waited for
	timing  Timing
	totem   Totem
	tooFast error // why the hold-off is too short for corosync's settings
	fencing *bool // whether dlm_controld fences; nil: not known
	ledger  *ledger

	nodeID   uint32          // this one; 0 until it is known
	used     bool            // this host was seen in the lockspace
	spaceAt  time.Duration   // when it was known last who is in the lockspace, or that this host is not
	self     corosync.Member // while up
	up       bool            // in the group
	fresh    bool            // since a moment: it has not said who is in it
	members  map[uint32]int  // guards in the group, by node
	proven   time.Duration
	isProven bool
	began    time.Duration // when this guard was made
	returned trip          // the latest
	doubtful trip          // would be a proof, unless the ring is another one in a moment; zero if there is none
	// woke is the first message that came back after none had for so long that corosync may have stood still.
	woke trip
	// provenRing is the number of the ring that the proof is of.
	provenRing uint64
	ringSeen   bool // corosync has said who is in the cluster, since the start
	cluster    controld.Status
	askedAt    time.Duration
	asked      bool
	silent     error

	frozen map[ownerKey]*frozen
	// unopened are processes that an earlier guard has stopped, and that could not be opened yet.
	unopened map[ownerKey]Frozen
	held     map[ownerKey]*held // owners that are not stopped
	unheld   string             // why one of them is missing; "" if none is
	steps    uint64             // only the goroutine of Run uses it
	// stepped is when the last step was over.
	stepped time.Duration
	lost    string // why this host has lost the cluster; "" while it has not
	losses  int
	// promised is what lockedPromise was at the last step.
	promised bool
	changed  chan struct{} // closed, and made anew, when more is known
	owners   []Owner       // as of the last step
	told     map[ownerKey]struct{}
	heldOff  map[uint32]bool // nodes of which the log was told that they have vanished
	closing  bool            // nothing is granted any more
	leaving  bool            // and nothing is held
	// withdrawn: no promise is given any more, since withdrawnAt.
	withdrawn   bool
	withdrawnAt time.Duration
	heard       bool              // by all others in the ring
	parted      bool              // nobody is in danger when this guard ends, as Withdraw has found
	downs       map[uint32]uint64 // nodes that the group said to be down, and in which ring corosync's quorum had them then
	failed      string            // what the log was told last of saving
	suspect     bool              // what was noted cannot be read
	dog         dogState
	grants      uint64 // of locks, of which Granted was told
	left        []*leftDog
	// introduced: all others in the ring have heard this guard, and count no more on what an earlier one of this host had said.
	introduced bool
}

type ownerKey struct {
	pid   int32
	start uint64
}

// New makes a Guard, which knows what an earlier one has noted. The error says what
// is wrong with the settings. Nothing happens before Run.
func New(o Options) (*Guard, error) {
	g := &Guard{
		o: o, log: o.Log, run: rand.Uint64(), kick: make(chan struct{}, 1), timing: o.Timing, ledger: newLedger(),
		members: map[uint32]int{}, frozen: map[ownerKey]*frozen{}, unopened: map[ownerKey]Frozen{}, held: map[ownerKey]*held{}, changed: make(chan struct{}), told: map[ownerKey]struct{}{}, heldOff: map[uint32]bool{}, downs: map[uint32]uint64{},
	}
	g.began = o.Clock()
	g.proven, g.spaceAt = g.began, g.began
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.timing.Known() {
		if err := g.timing.Check(); err != nil {
			return nil, err
		}
	}
	for path, d := range o.Left {
		g.left = append(g.left, &leftDog{path: path, dog: d})
	}
	saved, err := o.Store.Load()
	switch {
	case err != nil:
		g.log.Error("what the guard has noted cannot be read: processes that are stopped and own locks will be killed", "reason", err)
		g.suspect = true
	case saved != nil:
		g.ledger.restore(saved)
		// Corosync may not answer any more, and what is at stake does not wait for it.
		if saved.Totem != nil {
			g.lockedTotem(*saved.Totem)
		}
		g.fencing = saved.Fencing
		g.proven = saved.Proven
		d, ok := g.o.Dog.(*Device)
		// Another device is in Left, and this one is not running.
		g.dog.left = g.o.Dog != nil && (saved.Armed && saved.Device == "" || ok && slices.Contains(saved.armed(), d.Path))
		if ok && g.dog.left {
			d.Left()
			g.lockedDogStays()
		}
		for _, f := range saved.Frozen {
			g.lockedRestore(f)
		}
	}
	return g, nil
}

// CheckTotem returns an error with a remedy if these settings are too short for
// corosync's.
func CheckTotem(t Timing, c Totem) error {
	t.Token, t.Consensus, t.Device = c.Token, c.Consensus, c.Device
	return t.Check()
}

// Run guards until ctx ends. It leaves stopped processes stopped; see Settle. It is
// called once, and closes the group.
func (g *Guard) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { g.ask(work) })
	wg.Go(func() { g.learn(work) })
	wg.Go(func() { g.learnTotem(work) })
	wg.Go(func() { g.listen(work) })
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	if g.suspect {
		g.lookForStopped()
	}
	g.step(work, &wg)
	// Not earlier: what is promised depends on who owns locks.
	silent := make(chan struct{})
	wg.Go(func() {
		defer close(silent)
		g.tell(work)
	})
	for ctx.Err() == nil {
		select {
		case <-ticker.C:
			g.step(work, &wg)
		case <-ctx.Done():
		}
	}
	cancel()
	parting, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	select {
	case <-silent: // so that what was about to be sent does not come after the last message
	case <-parting.Done():
	}
	g.bye(parting)
	err := g.o.Group.Close(parting)
	wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.frozen {
		f.proc.Close()
	}
	for _, h := range g.held {
		h.proc.Close()
	}
	return err
}

// lockedView puts together what is known. Members are asked anew.
func (g *Guard) lockedView() view {
	v := view{
		at: g.o.Clock(), proven: g.proven, isProven: g.isProven, majority: g.totem.Majority, static: g.totem.Static, configured: g.totem.Nodes,
		cluster: g.cluster, askedAt: g.askedAt, asked: g.asked, silentErr: g.silent,
	}
	if g.nodeID == 0 {
		// It does not change before the cluster's software is started anew.
		if node, err := g.o.Node(); err == nil {
			g.nodeID = node
		}
	}
	v.self = g.nodeID
	v.space, v.spaceErr = g.o.Members()
	if v.spaceErr == nil || errors.Is(v.spaceErr, fs.ErrNotExist) {
		g.spaceAt = v.at
	}
	v.spaceAt = g.spaceAt
	g.used = g.used || v.inSpace()
	v.owned = len(g.owners) > 0
	v.used = g.used || v.owned
	if ring, err := g.o.Ring(); err == nil {
		v.ring, g.ringSeen = &ring, true
	} else {
		v.ringLost = g.ringSeen
	}
	return v
}

// lockedMode is what is to be done now; Auto while that is not known.
func (g *Guard) lockedMode() Mode {
	switch {
	case g.o.Mode != Auto:
		return g.o.Mode
	case g.fencing == nil:
		return Auto
	case *g.fencing:
		return Fencing
	}
	return Freeze
}

// step looks once and does what follows. It waits for nobody.
func (g *Guard) step(ctx context.Context, wg *sync.WaitGroup) {
	g.mu.Lock()
	grants := g.grants
	g.mu.Unlock()
	owners := g.o.Owners()
	g.hold(owners)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.owners = owners
	for _, f := range g.unopened {
		g.lockedRestore(f)
	}
	v := g.lockedView()
	mode := g.lockedMode()
	why := ""
	if mode != Fencing {
		g.ledger.look(v, g.timing, time.Now())
		var lost bool
		if why, lost = judge(v, g.timing); lost != (g.lost != "") {
			g.lockedTurn(v, why, lost)
		} else if lost {
			g.lost = why
		}
	} else {
		g.lost = ""
		if len(g.frozen) > 0 { // stopped before it was known that this cluster fences
			g.ledger.look(v, g.timing, time.Now())
			why, _ = judge(v, g.timing)
		}
	}
	g.lockedWake()
	if g.lost != "" {
		g.lockedFreeze(v)
	}
	g.lockedTend(ctx, v, why == "", wg)
	g.lockedDog(v, mode, g.grants != grants) // of which owners may know nothing yet
	if g.doubtful.ring != 0 && v.at-g.doubtful.at >= ringLag && v.agreed(0) {
		g.news() // what comes back now makes it a proof
	}
	if promise := g.lockedPromise(); promise != g.promised {
		g.promised = promise
		g.news()
	}
	if g.ledger.changed {
		g.ledger.changed = false
		g.lockedTell(v)
		g.lockedSave()
		g.news()
	}
	g.stepped = g.o.Clock()
}

// lockedTurn notes that this host has lost the cluster, or has it again.
func (g *Guard) lockedTurn(v view, why string, lost bool) {
	if !lost {
		g.log.Info("this host has the cluster again", "event", "guard-cluster-back")
		g.lost = ""
		return
	}
	g.lost = why
	g.losses++
	g.log.Error("this host has lost the cluster: nothing new is granted, and processes with cluster locks are stopped", "event", "guard-cluster-lost",
		"reason", why, "owners", len(g.owners), "grace", g.timing.Grace, "last_proof", v.at-v.proven)
}

// lockedTell logs who has vanished, and who is not held off for any more.
func (g *Guard) lockedTell(v view) {
	for node := range g.heldOff {
		if _, ok := g.ledger.facts[node]; !ok {
			delete(g.heldOff, node)
			g.log.Info("hold-off has ended", "event", "hold-off-ended", "node", node)
		}
	}
	for _, node := range g.ledger.silent {
		g.log.Warn("the guard of a node says nothing any more: if that node is lost now, nothing new is granted until it is back, fenced or confirmed dead", "event", "guard-silent", "node", node)
	}
	g.ledger.silent = nil
	for _, f := range g.ledger.list() {
		if g.heldOff[f.Node] {
			continue
		}
		g.heldOff[f.Node] = true
		g.log.Warn("a node has vanished, or was away when this host got into the cluster: nothing new is granted until it must have stopped", "event", "hold-off-begun",
			"node", f.Node, "left", f.Until-v.at, "promised", f.Promised && v.majority, "seen", !f.Guess)
	}
}

// lockedWake wakes who waits to know more.
func (g *Guard) lockedWake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// lockedSave writes what must survive.
func (g *Guard) lockedSave() {
	s := Saved{At: g.o.Clock(), Proven: g.proven, Armed: g.dog.open || g.dog.left, Fencing: g.fencing, Parted: g.parted}
	if d, ok := g.o.Dog.(*Device); ok && s.Armed {
		s.Device = d.Path
	}
	for _, l := range g.left {
		s.Left = append(s.Left, l.path)
	}
	if g.timing.Known() {
		totem := g.totem
		s.Totem = &totem
	}
	for _, f := range g.frozen {
		s.Frozen = append(s.Frozen, f.Frozen)
	}
	for _, f := range g.unopened {
		s.Frozen = append(s.Frozen, f)
	}
	g.ledger.save(&s)
	text := ""
	if err := g.o.Store.Save(s); err != nil {
		text = err.Error()
	}
	if text != g.failed && text != "" {
		g.log.Error("the guard cannot note what must survive a restart of vmlockd: nothing new is granted, and if vmlockd ends now, processes that are stopped stay so",
			"event", "guard-unsafe", "reason", text)
	}
	g.failed = text
}

// news has the others told soon.
func (g *Guard) news() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// ErrMember is about a node that somebody says is off.
var ErrMember = errors.New("is a member of the cluster, so it is not off. If it is to be, shut it down or cut its power, and wait until 'vmlockctl status' says that it is no member any more")

// ConfirmDead notes that an operator has seen that a node is off, and tells the
// others. The error is an ErrMember if the node is a member of the cluster, or this
// one; others say why it cannot be done now.
func (g *Guard) ConfirmDead(node uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.lockedView()
	if v.self == node {
		return fmt.Errorf("node %d is this host, and %w", node, ErrMember)
	}
	if g.lockedMode() == Fencing {
		return fmt.Errorf("dlm_controld fences in this cluster, and the DLM waits until node %d was fenced: 'dlm_tool fence_ack %d' says that it is off", node, node)
	}
	if err := g.ledger.confirm(v, node); err != nil {
		return err
	}
	g.lockedSave()
	if g.failed != "" {
		return fmt.Errorf("it could not be noted: %s", g.failed)
	}
	g.news()
	return nil
}
