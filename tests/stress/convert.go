package stress

import (
	"cmp"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// operations makes of the operations on one resource what Porcupine checks.
func operations(owners []Owner, ops []Op) []porcupine.Operation {
	end := time.Duration(0)
	for _, o := range ops {
		end = max(end, o.Call)
		if o.Return != never {
			end = max(end, o.Return)
		}
	}
	// Where daemons have timed out, they may have done so on calls that were cut off.
	timeouts := slices.ContainsFunc(ops, func(o Op) bool { return o.Answer == TimedOut })
	var list []porcupine.Operation
	add := func(o Op, in step) {
		in.kind, in.mode, in.owner, in.node = o.Kind, o.Mode, uint16(o.Owner), uint8(owners[o.Owner].Node)
		list = append(list, porcupine.Operation{
			ClientId: o.Owner, Input: in, Output: o.Answer, Call: int64(o.Call), Return: int64(o.Return),
		})
	}
	id := uint16(0)
	// From now on it may happen.
	mayHappen := func(o Op, back bool) {
		id++
		o.Answer, o.Return = Unknown, o.Call
		add(o, step{id: id, back: back})
	}
	for _, o := range unseenDeaths(owners, ops, end) {
		mayHappen(o, false)
	}
	for _, o := range ops {
		switch {
		case o.Answer == OwnerGone:
			mayHappen(o, true)
			o.Kind, o.Answer, o.Call = takenBack, Done, o.Return
			add(o, step{id: id})
		case o.Answer == TimedOut:
			mayHappen(o, o.Kind == Acquire)
		case o.Answer == Unknown:
			mayHappen(o, o.Kind == Acquire && timeouts)
		case o.Return == never:
			mayHappen(o, false)
		case o.Kind == Release && o.Answer != Done:
			anyNode, tells := refusal(owners, ops, o)
			if tells {
				add(o, step{anyNode: anyNode})
			}
		default:
			add(o, step{})
		}
	}
	return list
}

// unseenDeaths are those of owners who were killed with something in hand, if
// nobody saw when that became free.
func unseenDeaths(owners []Owner, ops []Op, end time.Duration) []Op {
	inHand := map[int]int{}
	for _, o := range ops {
		switch {
		case o.Kind == Acquire && (o.Answer == Done || o.pending()):
			inHand[o.Owner]++
		case o.Kind == Release && o.Answer == Done:
			inHand[o.Owner]--
		}
	}
	for _, o := range ops {
		if o.Kind == Death {
			delete(inHand, o.Owner)
		}
	}
	var list []Op
	for owner, n := range inHand {
		if killed := owners[owner].Killed; n > 0 && killed < end {
			list = append(list, Op{Kind: Death, Owner: owner, Call: killed, Return: never})
		}
	}
	return list
}

// refusal judges how much a refused release tells. A lock counts for the cluster
// from the moment the DLM grants it, and for its node from the moment the daemon
// has written that down; in between, another node is refused with reason, while
// a release on the lock's own node finds nothing. So nothing follows from the
// refusal if the owner's own acquisition was under way, and nothing about the
// other owners on the node if one of theirs was. Nor does anything follow after
// the owner was killed: whoever registers its pid then is another owner.
func refusal(owners []Owner, ops []Op, r Op) (anyNode, tells bool) {
	if owners[r.Owner].Killed <= r.Return {
		return false, false
	}
	for _, o := range ops {
		if o.Kind != Acquire || o.Answer == Busy || o.Call > r.Return || !o.pending() && o.Return < r.Call {
			continue
		}
		if o.Owner == r.Owner {
			return false, false
		}
		if owners[o.Owner].Node == owners[r.Owner].Node {
			anyNode = true
		}
	}
	return anyNode, true
}

// until is what was known at a moment: of what was under way then, nobody knew
// how it would end. If ops can be explained, so can each until(ops, t).
func until(ops []Op, t time.Duration) []Op {
	var list []Op
	for _, o := range ops {
		switch {
		case o.Call > t:
			continue
		case o.Return <= t:
		case o.Kind == Death:
			o.Return = never
		case o.Answer == Done || o.pending():
			o.Answer, o.Return = Unknown, never
		default: // refused: it changed nothing
			continue
		}
		list = append(list, o)
	}
	return list
}

// byResource sorts operations by resource, and those of each by Call.
func byResource(ops []Op) map[int][]Op {
	m := map[int][]Op{}
	for _, o := range ops {
		m[o.Resource] = append(m[o.Resource], o)
	}
	for _, list := range m {
		slices.SortStableFunc(list, func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
	}
	return m
}
