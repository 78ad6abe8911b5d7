package rpc

import (
	"context"
	"sync"
)

// place is what a connection has as long as it exists.
type place uint8

const (
	noPlace  place = iota // there was none left for a connection that was adopted
	ordinary              // within the limit of clients
	extra                 // beyond it: sessions are Limited
	spare                 // beyond the limit of descriptors: sessions are Limited
)

// places are those that there are for connections, but for spare ones. The limit
// may change while they are taken: who has one keeps it.
type places struct {
	mu      sync.Mutex    // guards what follows
	limit   int           // of ordinary ones
	few     int           // limit of extra ones
	taken   [2]int        // ordinary and extra
	changed chan struct{} // closed when one may be free; nil if nobody waits
}

// try takes a place if there is one, an ordinary one if possible and otherwise
// one of those that more allows.
func (p *places) try(more bool) place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lockedTry(more)
}

func (p *places) lockedTry(more bool) place {
	switch {
	case p.taken[0] < p.limit:
		p.taken[0]++
		return ordinary
	case more && p.taken[1] < p.few:
		p.taken[1]++
		return extra
	}
	return noPlace
}

// take waits for an ordinary or an extra place. It returns noPlace if ctx ends or
// stopping is closed before there is one.
func (p *places) take(ctx context.Context, stopping <-chan struct{}) place {
	for {
		p.mu.Lock()
		if got := p.lockedTry(true); got != noPlace {
			p.mu.Unlock()
			return got
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-stopping:
			return noPlace
		case <-ctx.Done():
			return noPlace
		}
	}
}

// leave gives back an ordinary or extra place.
func (p *places) leave(what place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken[what-ordinary]--
	p.lockedWake()
}

// within says whether so many ordinary places as are taken are allowed.
func (p *places) within() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken[0] <= p.limit
}

// setMax sets the limit of ordinary places.
func (p *places) setMax(limit int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
	p.lockedWake()
}

// max is the limit of ordinary places.
func (p *places) max() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit
}

func (p *places) lockedWake() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}
