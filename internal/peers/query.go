package peers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

const (
	// maxAnswer is how many bytes of messages are taken from one peer as its answer: more than 20,000 ordinary locks.
	maxAnswer = 16 << 20
	// maxTotal is how many are taken from all peers for one question.
	maxTotal = 64 << 20
	// maxLists and maxLookups are how many questions may be under way at once.
	maxLists, maxLookups = 2, 256
	// defaultPatience is how long a question waits whose context has no deadline.
	defaultPatience = 800 * time.Millisecond
	// fair is how long a peer must have had for an answer to be called silent without one.
	fair = 250 * time.Millisecond
)

// query is a question that is under way. The lock is that of its Peers.
type query struct {
	kind    uint8 // of its answers
	answers map[corosync.Member]*reply
	open    int
	room    int // bytes that may still be taken
	done    chan struct{}
}

// reply is what one peer has answered so far: pages as they came, to be read by who asked and not by who takes messages.
type reply struct {
	name     string
	pages    [][]byte
	bytes    int
	finished bool
	err      error
}

func (q *query) lockedFinish(r *reply, err error) {
	if r.finished {
		return
	}
	r.finished, r.err = true, err
	if q.open--; q.open == 0 {
		close(q.done)
	}
}

func (q *query) lockedLost(m corosync.Member) {
	if r := q.answers[m]; r != nil {
		q.lockedFinish(r, ErrLeft)
	}
}

// lockedPage takes a page. Pages come in order, since corosync delivers in order; if not, the answer is broken.
func (q *query) lockedPage(from corosync.Member, h header, body []byte) {
	r := q.answers[from]
	if r == nil || r.finished || h.kind != q.kind {
		return
	}
	size := headerSize + len(body)
	switch {
	case r.bytes+size > maxAnswer || size > q.room:
		q.lockedFinish(r, fmt.Errorf("%w: it answers with more than is taken from a peer", ErrIncomplete))
		return
	case h.page != uint32(len(r.pages)):
		q.lockedFinish(r, fmt.Errorf("%w: page %d came instead of %d", ErrIncomplete, h.page, len(r.pages)))
		return
	}
	r.bytes += size
	q.room -= size
	r.pages = append(r.pages, body)
	switch {
	case h.flags&flagLast == 0:
	case h.flags&flagBusy != 0:
		q.lockedFinish(r, ErrBusy)
	case h.flags&flagCut != 0:
		q.lockedFinish(r, fmt.Errorf("%w: it holds more than it sends", ErrIncomplete))
	default:
		q.lockedFinish(r, nil)
	}
}

// read reads the pages. What cannot be read makes the answer incomplete.
func (r *reply) read(node uint32) (list []Holding, broken bool, err error) {
	err = r.err
	for _, body := range r.pages {
		page, perr := decodeAnswer(node, body)
		list = append(list, page...)
		if perr != nil {
			broken = true
			err = cmp.Or(err, fmt.Errorf("%w: parts could not be read: %w", ErrIncomplete, perr))
		}
	}
	return list, broken, err
}

// Holdings asks all members what they hold. It returns when all have answered or ctx ends (after 0.8 s, if it has no
// deadline), with an entry for each member, by node, this one included; the Err of each says whether it is complete.
//
// More than a few a second wait for their turn, so that no peer is asked more often than it answers.
//
// The error is corosync.ErrDown while there is no connection - then there is this node's entry alone - or ErrBusy.
// A host that has left the group, or never came, has no entry: corosync.Cmap.Nodes says who is configured.
func (p *Peers) Holdings(ctx context.Context) ([]NodeHoldings, error) {
	ctx, cancel := patience(ctx)
	defer cancel()
	if !turn(ctx, p.lists) {
		return nil, ErrBusy
	}
	defer func() { <-p.lists }()
	if !p.paced(ctx) {
		return nil, ErrBusy
	}
	own := p.own(p.opts.Holdings)
	q, err := p.ask(ctx, kindQuery, queryBody{}, false)
	list := p.collect(q)
	p.mu.Lock()
	mine := NodeHoldings{Node: p.me.Node, PID: p.me.PID, Name: p.self.Name, Err: ErrNoAnswer}
	p.mu.Unlock()
	if got, ok := waitOwn(ctx, own); ok {
		mine.Holdings, mine.Err = got, nil
	}
	for i := range mine.Holdings {
		mine.Holdings[i].Node = mine.Node
	}
	list = append(list, mine)
	slices.SortFunc(list, func(a, b NodeHoldings) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.PID, b.PID)) })
	return list, err
}

// Holders asks all members who holds one resource, and returns what has come in when all have answered or ctx ends (after
// 0.8 s, if it has no deadline). It does not wait for members that are silent already or have another Digest. What it returns may be less than
// there is, and is a hint. answered are the nodes that answered, those that hold nothing too.
func (p *Peers) Holders(ctx context.Context, resource string) (list []Holding, answered []uint32) {
	ctx, cancel := patience(ctx)
	defer cancel()
	if resource == "" || len(resource) > maxResource {
		return nil, nil
	}
	if !turn(ctx, p.lookups) {
		return nil, nil
	}
	defer func() { <-p.lookups }()
	own := p.own(func() []Holding { return p.held(resource) })
	q, _ := p.ask(ctx, kindQuery, queryBody{Resource: []byte(resource)}, true) // without a connection it is this node's own that counts
	for _, n := range p.collect(q) {
		if n.Err == nil {
			answered = append(answered, n.Node)
		}
		for _, h := range n.Holdings {
			if h.Resource == resource { // a peer may say what it likes
				list = append(list, h)
			}
		}
	}
	p.mu.Lock()
	node := p.me.Node
	p.mu.Unlock()
	mine, _ := waitOwn(ctx, own)
	for _, h := range mine {
		h.Node = node
		list = append(list, h)
	}
	slices.SortStableFunc(list, func(a, b Holding) int { return cmp.Compare(a.Node, b.Node) })
	return list, answered
}

func patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, defaultPatience)
}

// turn waits for a token. It has none if ctx ended, though there may be one by then.
func turn(ctx context.Context, tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		if ctx.Err() == nil {
			return true
		}
		<-tokens
	case <-ctx.Done():
	}
	return false
}

// paced waits until a question for everything does not come too soon after others. It is false if ctx ended first.
func (p *Peers) paced(ctx context.Context) bool {
	for {
		p.mu.Lock()
		now := p.asking.take(1, time.Now())
		p.mu.Unlock()
		if now {
			return true
		}
		select {
		case <-time.After(time.Second / (4 * askRate)):
		case <-ctx.Done():
			return false
		}
	}
}

// own asks this node itself. If the daemon's function hangs, no more goroutines wait for it than questions are possible at once.
func (p *Peers) own(f func() []Holding) <-chan []Holding {
	got := make(chan []Holding, 1)
	select {
	case p.local <- struct{}{}:
	default:
		return got
	}
	go func() {
		defer func() { <-p.local }()
		got <- slices.Clone(f())
	}()
	return got
}

// waitOwn waits for it, and prefers an answer to the end of ctx, which the wait for others may have brought.
func waitOwn(ctx context.Context, own <-chan []Holding) ([]Holding, bool) {
	select {
	case list := <-own:
		return list, true
	default:
	}
	select {
	case list := <-own:
		return list, true
	case <-ctx.Done():
		return nil, false
	}
}

// ask asks all other members, and waits for their answers or the end of ctx. The
// kind of an answer is one more than that of its question.
func (p *Peers) ask(ctx context.Context, kind uint8, body any, skipSilent bool) (*query, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	h := header{kind: kind, query: binary.BigEndian.Uint64(id[:])}
	q := &query{kind: kind + 1, answers: map[corosync.Member]*reply{}, room: maxTotal, done: make(chan struct{})}
	b, err := encode(h, body)
	if err != nil {
		return q, err
	}
	p.mu.Lock()
	if !p.up {
		p.mu.Unlock()
		return q, corosync.ErrDown
	}
	now := time.Now()
	for m, o := range p.members {
		if m == p.me || o.leaving || skipSilent && o.silent(now) {
			continue
		}
		if o.Known && o.Digest != "" && p.self.Digest != "" && o.Digest != p.self.Digest {
			q.answers[m] = &reply{name: o.Name, finished: true, err: ErrOther}
			continue
		}
		q.answers[m] = &reply{name: o.Name}
		q.open++
	}
	asked := q.open > 0
	if asked {
		p.queries[h.query] = q
	}
	p.mu.Unlock()
	if !asked {
		return q, nil
	}
	began := time.Now()
	if err = p.opts.Group.Send(ctx, b); err == nil {
		select {
		case <-q.done:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.queries, h.query)
	for m, r := range q.answers {
		if r.finished {
			continue
		}
		r.err = ErrNoAnswer
		if len(r.pages) > 0 {
			r.err = fmt.Errorf("%w: %w: %d pages came", ErrIncomplete, ErrNoAnswer, len(r.pages))
		}
		r.finished = true
		// One that has begun to answer is slow and not silent.
		if o := p.members[m]; o != nil && err == nil && len(r.pages) == 0 && time.Since(began) >= fair {
			o.missed = true
		}
	}
	return q, err
}

// collect is what a question brought; it has ended.
func (p *Peers) collect(q *query) []NodeHoldings {
	list := make([]NodeHoldings, 0, len(q.answers)+1)
	for m, r := range q.answers {
		held, broken, err := r.read(m.Node)
		if broken {
			p.mu.Lock()
			if o := p.members[m]; o != nil {
				p.lockedFault(o, err)
			}
			p.mu.Unlock()
		}
		list = append(list, NodeHoldings{Node: m.Node, PID: m.PID, Name: r.name, Holdings: held, Err: err})
	}
	return list
}
