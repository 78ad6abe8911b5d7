package stress

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// step is an operation as the model sees it.
type step struct {
	kind  Kind
	mode  locking.Mode
	owner uint16
	node  uint8
	// id numbers the operations that may have happened. The step is then the
	// moment from which on they may, and has no answer.
	id uint16
	// ids are those of the operations that are settled, and undone those that did not
	// happen after all.
	ids, undone []uint16
	// back says that the daemon takes back what it grants.
	back bool
	// anyNode says of an answer NotLocked that it tells nothing about other owners
	// of the node.
	anyNode bool
}

// takenBack is the kind of a step: what an acquisition brought for a moment, if
// it did, is taken back.
const takenBack Kind = Death + 1

// settled is the kind of a step: the node's daemon was ended, and the next one
// has settled what was under way.
const settled Kind = Death + 2

// state is all that a resource may be: several configs if the answers leave
// open which of the operations that may have happened did.
type state struct {
	key     string // the same for states that are the same
	configs []config
}

func newState(list []config) *state {
	for i := range list {
		list[i].holds = slices.SortedFunc(slices.Values(list[i].holds), compareHolds)
	}
	var kept []config
	for i, c := range list {
		covered := slices.ContainsFunc(kept, func(k config) bool { return k.covers(c) }) ||
			slices.ContainsFunc(list[i+1:], func(k config) bool { return k.covers(c) })
		if !covered {
			kept = append(kept, c)
		}
	}
	keys := make([]string, len(kept))
	for i, c := range kept {
		keys[i] = string(c.appendKey(nil))
	}
	slices.Sort(keys)
	return &state{key: strings.Join(keys, "|"), configs: kept}
}

// apply is the state after an answer, with no configs if none can give it.
func (s *state) apply(in step, answer Answer) *state {
	var next []config
	for _, c := range s.configs {
		next = append(next, c.apply(in, answer)...)
	}
	return newState(next)
}

func (c config) apply(in step, answer Answer) []config {
	h := hold{owner: in.owner, node: in.node}
	own := func(h hold) bool { return h.owner == in.owner }
	if answer == Unknown {
		if in.back {
			h.back = in.id
		}
		return []config{c.withMaybe(maybe{id: in.id, kind: in.kind, mode: in.mode, hold: h})}
	}
	switch {
	case in.kind == takenBack:
		return []config{c.expire(in.id)}
	case in.kind == settled:
		for _, id := range in.undone {
			c = c.expire(id)
		}
		list := []config{c}
		for _, id := range in.ids {
			var next []config
			for _, c := range list {
				next = append(next, c.settle(id)...)
			}
			list = next
		}
		return list
	case in.kind == Death:
		return []config{c.die(in.owner)}
	case in.kind == Acquire && answer == Done:
		if slices.Contains(c.dead, in.owner) {
			return nil
		}
		return with(c.makeFit(in.mode), h, in.mode)
	case in.kind == Acquire && answer == Busy:
		return c.makeBusy(in.mode)
	case in.kind == Release && answer == Done:
		if at := c.holdOf(in.owner); at >= 0 {
			return []config{c.withoutHold(at)}
		}
		var next []config
		for _, had := range c.happen(func(m maybe) bool { return own(m.hold) }) {
			next = append(next, had.withoutHold(had.holdOf(in.owner)))
		}
		return next
	case in.kind == Release && answer == NotOwner:
		var next []config
		onNode := func(h hold) bool { return h.node == in.node && !own(h) }
		for _, without := range c.remove(own) {
			if slices.ContainsFunc(without.holds, onNode) {
				next = append(next, without)
			} else {
				next = append(next, without.happen(func(m maybe) bool { return onNode(m.hold) })...)
			}
		}
		return next
	case in.kind == Release && answer == NotLocked && in.anyNode:
		return c.remove(own)
	case in.kind == Release && answer == NotLocked:
		return c.remove(func(h hold) bool { return h.node == in.node })
	}
	return nil
}

func with(list []config, h hold, mode locking.Mode) []config {
	for i := range list {
		list[i] = list[i].with(h, mode)
	}
	return list
}

// makeFit lists the ways in which the resource may be free for somebody in that
// mode: it is, or what is in the way may have been released.
func (c config) makeFit(mode locking.Mode) []config {
	if c.fits(mode) {
		return []config{c}
	}
	return c.remove(func(hold) bool { return true })
}

// makeBusy lists the ways in which it may not be free: it is not, or somebody
// may have acquired it.
func (c config) makeBusy(mode locking.Mode) []config {
	if !c.fits(mode) {
		return []config{c}
	}
	return c.happen(func(m maybe) bool { return mode == locking.Exclusive || m.mode == locking.Exclusive })
}

// happen lists the ways in which one of certain acquisitions that may have
// happened did.
func (c config) happen(which func(maybe) bool) []config {
	var next []config
	for i, m := range c.maybes {
		if m.kind == Acquire && which(m) {
			next = append(next, with(c.withoutMaybe(i).makeFit(m.mode), m.hold, m.mode)...)
		}
	}
	return next
}

// remove lists the ways in which certain holds may be gone.
func (c config) remove(which func(hold) bool) []config {
	at := slices.IndexFunc(c.holds, which)
	if at < 0 {
		return []config{c}
	}
	h := c.holds[at]
	if h.back != 0 {
		return c.withoutHold(at).remove(which)
	}
	var next []config
	released := false
	for i, m := range c.maybes {
		switch {
		case m.hold.owner != h.owner:
		case m.kind == Death:
			next = append(next, c.withoutMaybe(i).die(h.owner).remove(which)...)
		case m.kind == Release && !released: // one is as good as another
			released = true
			next = append(next, c.withoutMaybe(i).withoutHold(at).remove(which)...)
		}
	}
	return next
}

func (s *state) String() string {
	var list []string
	for _, c := range s.configs {
		list = append(list, c.String())
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", or ")
}

var hashSeed = maphash.MakeSeed()

// model is a single resource.
var model = porcupine.Model{
	Init: func() any { return newState([]config{{}}) },
	Step: func(s, in, out any) (bool, any) {
		next := s.(*state).apply(in.(step), out.(Answer))
		return len(next.configs) > 0, next
	},
	Equal: func(a, b any) bool { return a.(*state).key == b.(*state).key },
	Hash:  func(s any) uint64 { return maphash.String(hashSeed, s.(*state).key) },
	DescribeOperation: func(in, out any) string {
		i := in.(step)
		if i.kind == settled {
			return fmt.Sprintf("node %d: daemon restarted", i.node)
		}
		mode := ""
		if i.kind == Acquire {
			mode = " " + i.mode.String()
		}
		return fmt.Sprintf("%d: %s%s -> %s", i.owner, i.kind, mode, out.(Answer))
	},
	DescribeState: func(s any) string { return s.(*state).String() },
}
