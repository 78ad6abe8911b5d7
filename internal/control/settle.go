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
// both. What is claimed by two even then is shown as it is; what could not be
// asked is shown too, and said to be incomplete.
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
		if h.addMissing(again.Missing) > 0 {
			return
		}
		now := make(map[string]bool, len(list))
		for _, one := range list {
			now[one.key()], asked[one.key()] = true, true
		}
		again.Holders = append(again.Holders, s.here(ctx)...)
		about := func(o Holder) bool { return now[o.sought().key()] }
		h.Holders = slices.DeleteFunc(h.Holders, about)
		for _, o := range again.Holders {
			if about(o) {
				h.Holders = append(h.Holders, o)
			}
		}
	}
	left := 0
	for _, one := range disputed(h.Holders) {
		if !asked[one.key()] {
			left++
		}
	}
	if left > 0 {
		h.addMissing([]Missing{{Error: fmt.Sprintf("%d resources moved while the hosts were asked, and are shown where they were too: ask again", left)}})
	}
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
