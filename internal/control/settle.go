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
		for _, o := range h.Holders {
			if claimed[claimOf(o)] && !slices.Contains(names, o.Resource) && len(names) < maxNames {
				names = append(names, o.Resource)
			}
		}
		var again Holders
		again.addPeers(s.ask(ctx, names, nil))
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

// claim is what can have one exclusive holder: by its id, and by its name if that
// is not known. Disks that each of two hosts has for itself can have one name.
type claim struct {
	id  string
	ref locking.Ref
}

func claimOf(h Holder) claim {
	if h.id != "" {
		return claim{id: h.id}
	}
	return claim{ref: locking.Ref{Lockspace: h.Lockspace, Name: h.Resource}}
}

// disputed are the resources that an exclusive holder does not have alone.
func disputed(list []Holder) map[claim]bool {
	count, exclusive := map[claim]int{}, map[claim]bool{}
	for _, h := range list {
		c := claimOf(h)
		count[c]++
		exclusive[c] = exclusive[c] || h.Mode == locking.Exclusive.String()
	}
	for c := range exclusive {
		if !exclusive[c] || count[c] < 2 {
			delete(exclusive, c)
		}
	}
	return exclusive
}
