package control

import (
	"context"
	"slices"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// maxAsks bounds how often it is asked again about a lock that moves.
const maxAsks = 3

// settle asks again about resources that two nodes claim: nodes are asked one
// after the other, and a lock that went from one to another meanwhile is seen on
// both. What is claimed by two even then is shown as it is.
func (s *Server) settle(ctx context.Context, h *Holders) {
	for range maxAsks {
		claimed := disputed(h.Holders)
		if len(claimed) == 0 || ctx.Err() != nil {
			return
		}
		var names []string
		for ref := range claimed {
			if !slices.Contains(names, ref.Name) && len(names) < maxNames {
				names = append(names, ref.Name)
			}
		}
		var again Holders
		again.addPeers(s.ask(ctx, names))
		if len(again.Missing) > 0 {
			return
		}
		again.Holders = append(again.Holders, s.here(ctx)...)
		h.Holders = slices.DeleteFunc(h.Holders, func(o Holder) bool { return slices.Contains(names, o.Resource) })
		for _, o := range again.Holders {
			if slices.Contains(names, o.Resource) {
				h.Holders = append(h.Holders, o)
			}
		}
	}
}

// disputed are the resources that an exclusive holder does not have alone.
func disputed(list []Holder) map[locking.Ref]bool {
	count, exclusive := map[locking.Ref]int{}, map[locking.Ref]bool{}
	for _, h := range list {
		ref := locking.Ref{Lockspace: h.Lockspace, Name: h.Resource}
		count[ref]++
		exclusive[ref] = exclusive[ref] || h.Mode == locking.Exclusive.String()
	}
	for ref := range exclusive {
		if !exclusive[ref] || count[ref] < 2 {
			delete(exclusive, ref)
		}
	}
	return exclusive
}
