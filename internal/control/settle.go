package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// maxAsks bounds how often it is asked again about locks that move.
	maxAsks = 3
	// maxMoving bounds about how many it is asked at once.
	maxMoving = 64
)

// settle asks again about resources that two nodes claim: nodes are asked one
// after the other, and a lock that went from one to another meanwhile is seen on
// both. What is claimed by two even then is shown as it is. Of what could not be
// asked again only the latest grant is shown, and the answer is said to be
// incomplete.
func (s *Server) settle(ctx context.Context, h *Holders) {
	asked := map[string]bool{}
	for range maxAsks {
		list := disputed(h.Holders)
		if len(list) == 0 {
			return
		}
		if ctx.Err() != nil {
			break
		}
		list = list[:min(len(list), maxMoving)]
		var again Holders
		again.addPeers(s.o.Peers.Holders(ctx, list))
		now := make(map[string]bool, len(list))
		for _, one := range list {
			now[one.key()], asked[one.key()] = true, true
		}
		again.Holders = append(again.Holders, s.here(ctx)...)
		again.Holders = slices.DeleteFunc(again.Holders, func(o Holder) bool { return !now[o.sought().key()] })
		silent := map[uint32]bool{}
		for _, m := range again.Missing {
			silent[m.NodeID] = true
		}
		h.replace(now, again.Holders, silent)
		if h.addMissing(again.Missing) > 0 {
			for _, o := range again.Holders {
				delete(now, o.sought().key()) // what two say again is no matter of time
			}
			h.keepLatest(now)
			return
		}
	}
	moved := map[string]bool{}
	for _, one := range disputed(h.Holders) {
		if !asked[one.key()] {
			moved[one.key()] = true
		}
	}
	if len(moved) > 0 {
		h.keepLatest(moved)
		h.addMissing([]Missing{{Error: fmt.Sprintf("%d resources moved while the hosts were asked, and are shown where they were granted last: ask again", len(moved))}})
	}
}

// replace puts what nodes have said again about some resources in the place of what they
// had said. Nodes that were silent this time may still have what they had, if nobody who has
// answered says that he has it.
func (h *Holders) replace(about map[string]bool, again []Holder, silent map[uint32]bool) {
	has := map[string]bool{}
	for _, o := range again {
		has[o.sought().key()] = true
	}
	h.Holders = slices.DeleteFunc(h.Holders, func(o Holder) bool {
		key := o.sought().key()
		return about[key] && (!silent[o.NodeID] || has[key])
	})
	h.Holders = append(h.Holders, again...)
}

// keepLatest keeps of each of these resources that is still claimed by two the holder to
// whom it was granted last, as the clocks of the hosts tell.
func (h *Holders) keepLatest(about map[string]bool) {
	latest := map[string]Holder{}
	for _, one := range disputed(h.Holders) {
		if about[one.key()] {
			latest[one.key()] = Holder{}
		}
	}
	for _, o := range h.Holders {
		key := o.sought().key()
		if l, ok := latest[key]; ok && !o.Since.Before(l.Since) {
			latest[key] = o
		}
	}
	h.Holders = slices.DeleteFunc(h.Holders, func(o Holder) bool {
		l, ok := latest[o.sought().key()]
		return ok && l != o
	})
}

// addMissing adds nodes that did not say again what they hold, and says how many of
// them have answered before.
func (h *Holders) addMissing(list []Missing) (added int) {
	for _, m := range list {
		if slices.ContainsFunc(h.Missing, func(o Missing) bool { return o.NodeID == m.NodeID }) {
			continue
		}
		h.Missing = append(h.Missing, m)
		added++
	}
	return added
}

func (h Holder) sought() Sought {
	return Sought{ID: h.id, Ref: locking.Ref{Lockspace: h.Lockspace, Name: h.Resource}}
}

// disputed are the resources that an exclusive holder does not have alone, in order.
func disputed(list []Holder) []Sought {
	count, exclusive, what := map[string]int{}, map[string]bool{}, map[string]Sought{}
	for _, h := range list {
		one := h.sought()
		key := one.key()
		count[key]++
		exclusive[key] = exclusive[key] || h.Mode == locking.Exclusive.String()
		what[key] = one
	}
	maps.DeleteFunc(what, func(key string, _ Sought) bool { return !exclusive[key] || count[key] < 2 })
	return slices.SortedFunc(maps.Values(what), func(a, b Sought) int { return strings.Compare(a.key(), b.key()) })
}
