package dlmtest

import (
	"cmp"
	"maps"
	"slices"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// recover takes the members that lost power out of the lockspace.
func (s *space) recover() {
	lost := false
	for id, m := range s.members {
		if m.dead {
			delete(s.members, id)
			lost = true
		}
	}
	if !lost {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.resources)) {
		s.resources[name].recover(func(m *member) bool { return m.dead })
	}
}

// leave takes one member out that has left in good order; whatever it had is gone.
func (s *space) leave(gone *member) {
	delete(s.members, gone.node.id)
	for _, name := range slices.Sorted(maps.Keys(s.resources)) {
		s.resources[name].recover(func(m *member) bool { return m == gone })
	}
}

// recover takes out the locks of members that are gone, finds a master and decides about the LVB (recover_lvb in
// fs/dlm/recover.c).
func (r *resource) recover(gone func(*member) bool) {
	wroteLVB := false // one of the lost locks may have changed the LVB
	for _, q := range r.queues() {
		for _, l := range slices.Clone(*q) {
			if gone(l.m) {
				if l.flags&abi.FlagValBlk != 0 && l.gr >= int8(dlm.PW) {
					wroteLVB = true
				}
				r.move(l, off)
				l.gr, l.rq, l.dead = none, none, true
			}
		}
	}
	if r.s.resources[r.name] != r {
		return // nobody is left
	}
	newMaster := gone(r.master)
	switch {
	case newMaster:
		r.master = r.anyMember()
		r.rebuildLVB()
	case wroteLVB:
		r.lvbInvalid = true
	}
	r.grantPending(newMaster)
}

func (r *resource) anyMember() *member {
	all := slices.Concat(r.granted, r.converting, r.waiting)
	return slices.MinFunc(all, func(a, b *lock) int { return cmp.Compare(a.m.node.id, b.m.node.id) }).m
}

// rebuildLVB finds what a new master can know: the copy in a lock that requested the LVB. If none did it is as if it
// had never been written; if only NL and CR locks did, somebody may have changed it since.
func (r *resource) rebuildLVB() {
	var best, strong *lock
	for _, l := range slices.Concat(r.granted, r.converting) {
		if l.flags&abi.FlagValBlk == 0 {
			continue
		}
		if l.gr > int8(dlm.CR) && strong == nil {
			strong = l
		}
		if best == nil || l.lvbSeq >= best.lvbSeq {
			best = l
		}
	}
	r.lvb, r.hasLVB, r.lvbInvalid = [abi.LVBLen]byte{}, false, false
	if best == nil {
		return
	}
	r.lvbInvalid = strong == nil
	if strong != nil {
		best = strong
	}
	r.lvb, r.lvbSeq, r.hasLVB = best.lvb, best.lvbSeq, true
}
