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
	asked := map[locking.Ref]bool{}
	for range maxAsks {
		refs := disputed(h.Holders)
		if len(refs) == 0 {
			return
		}
		if ctx.Err() != nil {
			break
		}
		refs = refs[:min(len(refs), maxMoving)]
		var again Holders
		again.addPeers(s.o.Peers.Holders(ctx, refs))
		if h.addMissing(again.Missing) > 0 {
			return
		}
		for _, ref := range refs {
			asked[ref] = true
		}
		again.Holders = append(again.Holders, s.here(ctx)...)
		about := func(o Holder) bool { return slices.Contains(refs, o.ref()) }
		h.Holders = slices.DeleteFunc(h.Holders, about)
		for _, o := range again.Holders {
			if about(o) {
				h.Holders = append(h.Holders, o)
			}
		}
	}
	left := 0
	for _, ref := range disputed(h.Holders) {
		if !asked[ref] {
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

func (h Holder) ref() locking.Ref { return locking.Ref{Lockspace: h.Lockspace, Name: h.Resource} }

// disputed are the resources that an exclusive holder does not have alone, in order.
func disputed(list []Holder) []locking.Ref {
	count, exclusive := map[locking.Ref]int{}, map[locking.Ref]bool{}
	for _, h := range list {
		count[h.ref()]++
		exclusive[h.ref()] = exclusive[h.ref()] || h.Mode == locking.Exclusive.String()
	}
	maps.DeleteFunc(exclusive, func(ref locking.Ref, one bool) bool { return !one || count[ref] < 2 })
	return slices.SortedFunc(maps.Keys(exclusive), func(a, b locking.Ref) int {
		return strings.Compare(a.Lockspace+"\x00"+a.Name, b.Lockspace+"\x00"+b.Name)
	})
}
