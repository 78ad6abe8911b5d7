package peers

import (
	"context"
	"encoding/json"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
)

const (
	// maxRequests is how many questions of a kind may wait for an answer.
	maxRequests = 256
	// answerPatience is how long sending an answer may take. Whoever asked has given up by then.
	answerPatience = 2 * time.Second
	// pageRoom is for what is around the entries of a page.
	pageRoom = 256
	// maxLookup is how many holders of one resource are told.
	maxLookup = 64
)

// request is a question of a peer.
type request struct {
	from     corosync.Member
	id       uint64
	resource string // "" for all
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
		case queue <- request{from, h.query, resource}:
			return nil
		default:
		}
	}
	p.lockedDrop(m)
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
	err := pages(list, cut, func(body answerBody, last bool) error {
		if last {
			h.flags |= flagLast
		}
		b, err := encode(h, body)
		if err != nil {
			return err
		}
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

// pages cuts a list into pages that fit into messages, and ends at what an asker takes. There is always a last one.
func pages(list []Holding, cut bool, emit func(body answerBody, last bool) error) error {
	var body answerBody
	room, total := MaxMessage-headerSize-pageRoom, maxAnswer
	used := 0
	for _, h := range list {
		raw, err := encodeHolding(h)
		if err != nil {
			return err
		}
		if used+len(raw)+1 > room || len(body.Holdings) == maxPerPage {
			total -= MaxMessage // as the asker counts, at most
			if total < MaxMessage {
				cut = true
				break
			}
			if err := emit(body, false); err != nil {
				return err
			}
			body, used = answerBody{Holdings: make([]json.RawMessage, 0, len(body.Holdings))}, 0
		}
		body.Holdings = append(body.Holdings, raw)
		used += len(raw) + 1
	}
	body.Cut = cut
	return emit(body, true)
}
