package peers

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

const (
	// beat is how often a daemon says hello without news; silentAfter is after how long without a word it is silent.
	beat        = 5 * time.Second
	silentAfter = 3 * beat
	// absentAfter is after how long without a daemon a node is absent. To restart takes less.
	absentAfter = 15 * time.Second
	// soon is how long news wait for more of them.
	soon = 20 * time.Millisecond
	// sendPatience is how long a hello or a page of an answer may wait for corosync's queues.
	sendPatience = 3 * time.Second
	// partingPatience bounds the goodbye, and the leaving.
	partingPatience = 500 * time.Millisecond
)

// What is taken from one peer in a second, and at once. Answers are not among it: what answers no question of this node
// is dropped by its header, and what does is bounded by maxAnswer.
const (
	helloRate, helloBurst   = 10, 100
	listRate, listBurst     = 5, 10 // questions for everything
	lookupRate, lookupBurst = 500, 1000
)

// How often this node asks for everything. It is less than what others take, so that they drop nothing.
const askRate, askBurst = 4, 8

// Peers is this daemon's view of the others.
type Peers struct {
	opts Options
	log  *slog.Logger

	news    chan struct{} // has a value when a hello is due
	listing chan request  // questions for everything, to be answered
	looking chan request  // questions for one resource
	naming  chan request  // questions which disk a path is
	local   chan struct{} // holds a token for each call of Options.Holdings for this node itself
	lists   chan struct{} // holds a token for each own question for everything
	lookups chan struct{} // and for each one for a resource

	mu      sync.Mutex // guards the rest
	self    Info
	me      corosync.Member
	up      bool
	told    bool      // that there is no connection
	since   time.Time // when it came up
	members map[corosync.Member]*peer
	left    map[uint32]time.Time // when a node's last daemon left, for absentAfter
	queries map[uint64]*query
	asking  bucket // of own questions for everything
	stats   Stats
}

// peer is what is known of a member.
type peer struct {
	Peer
	heard    time.Time
	missed   bool // it did not answer the last question
	leaving  bool // it has said goodbye
	greeting bucket
	listing  bucket
	looking  bucket
	naming   bucket
}

// New makes a Peers. Nothing happens before Run.
func New(opts Options) *Peers {
	p := &Peers{
		opts: opts, log: opts.Log, self: opts.Self,
		news: make(chan struct{}, 1), listing: make(chan request, maxRequests), looking: make(chan request, maxRequests), naming: make(chan request, maxRequests),
		local: make(chan struct{}, maxLists+maxLookups), lists: make(chan struct{}, maxLists), lookups: make(chan struct{}, maxLookups),
		members: map[corosync.Member]*peer{}, left: map[uint32]time.Time{}, queries: map[uint64]*query{},
		asking: newBucket(askRate, askBurst, time.Now()),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p
}

// Run takes part until ctx ends; then it says goodbye, leaves and closes the group. It returns nil, or the error of
// leaving. It is called once.
func (p *Peers) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { p.greet(work) })
	wg.Go(func() { p.answer(work, p.listing) })
	wg.Go(func() { p.answer(work, p.looking) })
	wg.Go(func() { p.answer(work, p.naming) })
	ended := false
	for !ended {
		select {
		case ev, ok := <-p.opts.Group.Events():
			if !ok {
				ended = true
				break
			}
			p.handle(ev)
		case <-ctx.Done():
			ended = true
		}
	}
	stop()
	parting, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingPatience)
	defer cancel()
	if b, err := encode(header{kind: kindGoodbye}, nil); err == nil {
		_ = p.opts.Group.Send(parting, b) // who does not hear it hears of the leaving
	}
	err := p.opts.Group.Close(parting)
	p.down()
	idle := make(chan struct{})
	go func() {
		wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-parting.Done(): // one hangs in Options.Holdings
	}
	return err
}

// Announce changes what is told about this daemon.
func (p *Peers) Announce(self Info) {
	p.mu.Lock()
	p.self = self
	p.mu.Unlock()
	p.tell()
}

func (p *Peers) tell() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// greet says hello when there is news, and in regular intervals.
func (p *Peers) greet(ctx context.Context) {
	t := time.NewTicker(beat)
	defer t.Stop()
	for {
		select {
		case <-p.news:
			select {
			case <-time.After(soon):
			case <-ctx.Done():
				return
			}
		case <-t.C:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		self, up := p.self, p.up
		p.mu.Unlock()
		if !up {
			continue
		}
		b, err := encodeHello(self)
		if err == nil {
			send, cancel := context.WithTimeout(ctx, sendPatience)
			err = p.opts.Group.Send(send, b)
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			p.log.Debug("peers: hello was not sent", "error", err)
		}
	}
}

// handle takes an event of the group. It does not block.
func (p *Peers) handle(ev corosync.Event) {
	switch ev := ev.(type) {
	case corosync.Up:
		p.log.Info("peers: connected to corosync", "node", ev.Self.Node)
		p.mu.Lock()
		p.me, p.up, p.told, p.since = ev.Self, true, false, time.Now()
		p.mu.Unlock()
	case corosync.Down:
		p.down()
		p.mu.Lock()
		if !p.told { // it comes again with every attempt
			p.told = true
			p.log.Warn("peers: the other hosts cannot be asked", "error", ev.Err)
		}
		p.mu.Unlock()
	case corosync.Membership:
		p.membership(ev)
	case corosync.Message:
		p.message(ev)
	}
}

// down forgets all members, and ends questions to them.
func (p *Peers) down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up = false
	for m := range p.members {
		p.lockedForget(m)
	}
}

func (p *Peers) lockedForget(m corosync.Member) {
	if p.members[m] != nil {
		now := time.Now()
		maps.DeleteFunc(p.left, func(_ uint32, t time.Time) bool { return now.Sub(t) >= absentAfter })
		p.left[m.Node] = now
	}
	delete(p.members, m)
	for _, q := range p.queries {
		q.lockedLost(m)
	}
}

func (p *Peers) membership(v corosync.Membership) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, c := range v.Left {
		if m := p.members[c.Member]; m != nil && c.Member != p.me {
			p.log.Info("peers: a host left", "node", c.Node, "pid", c.PID, "host", m.Name, "reason", c.Reason.String())
		}
		p.lockedForget(c.Member)
	}
	// The list of members is what counts; what came or left is only its story.
	for m := range p.members {
		if !slices.Contains(v.Members, m) {
			p.lockedForget(m)
		}
	}
	for _, m := range v.Members {
		if p.members[m] != nil {
			continue
		}
		p.members[m] = &peer{
			Peer:     Peer{Node: m.Node, PID: m.PID, Self: m == p.me, Since: now},
			heard:    now,
			greeting: newBucket(helloRate, helloBurst, now),
			listing:  newBucket(listRate, listBurst, now), looking: newBucket(lookupRate, lookupBurst, now),
			naming: newBucket(listRate, listBurst, now),
		}
		p.tell()
	}
}

// message takes a message of a member. The header decides, before anything else is read.
func (p *Peers) message(msg corosync.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Received++
	m := p.members[msg.From]
	if m == nil {
		p.stats.Malformed++ // corosync says who is in before it delivers what they say
		return
	}
	h, body, err := decodeHeader(msg.Data)
	if err == nil {
		err = p.lockedTake(m, msg.From, h, body)
	}
	if err != nil {
		p.lockedFault(m, err)
		return
	}
	m.heard = time.Now()
}

func (p *Peers) lockedTake(m *peer, from corosync.Member, h header, body []byte) error {
	switch h.kind {
	case kindHello:
		if !m.greeting.take(1, time.Now()) {
			p.lockedDrop(m)
			return nil
		}
		info, err := decodeHello(body)
		if err != nil {
			return err
		}
		if !m.Known {
			p.log.Info("peers: a host said hello", "node", m.Node, "pid", m.PID, "host", info.Name, "version", info.Version)
		}
		m.Known, m.Info, m.Protocol = true, info, int(h.protocol)
		m.missed = false
	case kindQuery:
		return p.lockedAsked(m, from, h, body)
	case kindWhich:
		return p.lockedWhich(m, from, h, body)
	case kindAnswer, kindDisk:
		if h.asker != p.me {
			return nil
		}
		m.missed = false
		if q := p.queries[h.query]; q != nil { // otherwise it is too late
			q.lockedPage(from, h, body)
		}
	case kindGoodbye:
		m.leaving = true
		for _, q := range p.queries {
			q.lockedLost(from)
		}
	default:
		p.stats.Unknown++
	}
	return nil
}

// lockedFault counts a message that could not be read.
func (p *Peers) lockedFault(m *peer, err error) {
	if m.Faults++; m.Faults == 1 {
		p.log.Warn("peers: a message of a host cannot be read", "node", m.Node, "pid", m.PID, "host", m.Name, "error", err)
	}
	p.stats.Malformed++
}

// lockedDrop counts a message that was one too many.
func (p *Peers) lockedDrop(m *peer) {
	if m.Dropped++; m.Dropped == 1 {
		p.log.Warn("peers: a host sends too much; what is too much is dropped", "node", m.Node, "pid", m.PID, "host", m.Name)
	}
	p.stats.Dropped++
}

// Members are the members of the group as they are now, by node. Without a connection there are none.
func (p *Peers) Members() []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	list := make([]Peer, 0, len(p.members))
	for _, m := range p.members {
		out := m.Peer
		if m.silent(now) {
			out.Silent = m.heard
		}
		list = append(list, out)
	}
	slices.SortFunc(list, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.PID, b.PID)) })
	return list
}

func (m *peer) silent(now time.Time) bool { return m.missed || now.Sub(m.heard) > silentAfter }

// Connected says whether there is a connection to corosync.
func (p *Peers) Connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up
}

// Absent says whether no daemon of a node has been in the group for absentAfter, in all of which this one was in it.
func (p *Peers) Absent(node uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.up || now.Sub(p.since) < absentAfter || now.Sub(p.left[node]) < absentAfter {
		return false
	}
	for m := range p.members {
		if m.Node == node {
			return false
		}
	}
	return true
}

// Node is this node's number, also after the connection is lost; 0 before the first one.
func (p *Peers) Node() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.me.Node
}

// Stats are the counters.
func (p *Peers) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}
