package peers

import (
	"context"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

const (
	// maxRequests is how many questions of a kind may wait for an answer.
	maxRequests = 256
	// answerPatience is how long sending an answer may take. Whoever asked has given up by then.
	answerPatience = 2 * time.Second
	// maxLookup is how many holders of one resource are told.
	maxLookup = 64
)

// request is a question of a peer.
type request struct {
	from     corosync.Member
	id       uint64
	resource string // "" for all
	busy     bool   // it was one too many, and is to be told that
	path     string // instead, of a kindWhich
}

// lockedAsked takes a question, unless it is one too many. Nobody answers itself.
func (p *Peers) lockedAsked(m *peer, from corosync.Member, h header, body []byte) error {
	if from == p.me {
		return nil
	}
	resource, err := decodeQuery(body)
	if err != nil {
		return err
	}
	limit, queue := &m.looking, p.looking
	if resource == "" {
		limit, queue = &m.listing, p.listing
	}
	if limit.take(1, time.Now()) {
		select {
		case queue <- request{from: from, id: h.query, resource: resource}:
			return nil
		default:
		}
	}
	p.lockedDrop(m)
	// Who asks for everything too often is told, and does not take this node for silent.
	if resource == "" && m.looking.take(1, time.Now()) {
		select {
		case p.looking <- request{from: from, id: h.query, busy: true}:
		default:
		}
	}
	return nil
}

// answer answers questions, one after the other.
func (p *Peers) answer(ctx context.Context, queue <-chan request) {
	for {
		select {
		case r := <-queue:
			if p.present(r.from) {
				p.answerOne(ctx, r)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *Peers) present(m corosync.Member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.members[m] != nil
}

func (p *Peers) answerOne(ctx context.Context, r request) {
	switch {
	case r.busy:
		p.answerBusy(ctx, r)
		return
	case r.path != "":
		p.answerWhich(ctx, r)
		return
	}
	var list []Holding
	cut := false
	if r.resource != "" {
		list = p.held(r.resource)
		if cut = len(list) > maxLookup; cut {
			list = list[:maxLookup]
		}
	} else {
		list = p.opts.Holdings()
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	h := header{kind: kindAnswer, query: r.id, asker: r.from}
	err := pages(list, func(body []byte, flags uint16) error {
		h.flags = flags
		if cut && flags&flagLast != 0 {
			h.flags |= flagCut
		}
		b := append(appendHeader(make([]byte, 0, headerSize+len(body)), h), body...)
		h.page++
		return p.opts.Group.Send(ctx, b)
	})
	if err != nil {
		p.log.Debug("peers: an answer was not sent", "node", r.from.Node, "error", err)
		return
	}
	p.mu.Lock()
	p.stats.Answered++
	p.mu.Unlock()
}

func (p *Peers) answerBusy(ctx context.Context, r request) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	h := header{kind: kindAnswer, flags: flagLast | flagCut | flagBusy, query: r.id, asker: r.from}
	if err := p.opts.Group.Send(ctx, appendHeader(make([]byte, 0, headerSize), h)); err != nil {
		p.log.Debug("peers: an answer was not sent", "node", r.from.Node, "error", err)
	}
}

// held is what this node holds of a resource.
func (p *Peers) held(resource string) []Holding {
	if p.opts.Holders != nil {
		return p.opts.Holders(resource)
	}
	var list []Holding
	for _, h := range p.opts.Holdings() {
		if h.Resource == resource {
			list = append(list, h)
		}
	}
	return list
}

// pages cuts a list into bodies that fit into messages, and ends at what an asker takes; then it says that more is cut.
// There is always a last one. What emit gets is valid until it returns.
func pages(list []Holding, emit func(body []byte, flags uint16) error) error {
	const room = MaxMessage - headerSize
	body := make([]byte, 0, room)
	total, n := maxAnswer, 0
	for _, h := range list {
		if len(body)+maxEntry > room || n == maxPerPage {
			total -= MaxMessage // as the asker counts, at most
			if total < MaxMessage {
				return emit(body, flagLast|flagCut)
			}
			if err := emit(body, 0); err != nil {
				return err
			}
			body, n = body[:0], 0
		}
		body = appendHolding(body, h)
		n++
	}
	return emit(body, flagLast)
}
