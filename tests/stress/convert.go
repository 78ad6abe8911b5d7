package stress

import (
	"cmp"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// background is what all resources have in common.
type background struct {
	owners  []Owner
	outages []Outage // in order of From
}

func newBackground(h *History) background {
	outages := slices.SortedFunc(slices.Values(h.Outages), func(a, b Outage) int { return cmp.Compare(a.From, b.From) })
	return background{h.Owners, outages}
}

// cut says whether the daemon of a node was ended after some moment, and which
// end of it was the first of those after which the next one is known to have
// served. What had been asked before is settled then.
func (b background) cut(node int, after time.Duration) (ended bool, at Outage) {
	for _, o := range b.outages {
		if o.Node != node || o.Until < after {
			continue
		}
		ended = true
		if o.From > after && o.Until != never {
			return true, o
		}
	}
	return ended, Outage{From: never, Until: never}
}

// operations makes of the operations on one resource what Porcupine checks.
func operations(b background, ops []Op) []porcupine.Operation {
	owners := b.owners
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
	// What the end of a daemon cut off is undone when the next one starts, or stays
	// from then on; it may also have been granted, and be undone then. What had timed out
	// before is undone by then.
	open := map[Outage]step{}
	ended := func(o Op) bool {
		after := o.Call
		if o.Answer == TimedOut {
			after = o.Return // it was there to say so
		}
		cut, at := b.cut(owners[o.Owner].Node, after)
		if at.Until != never && at.Until <= end {
			in := open[at]
			if o.Answer == TimedOut && o.Kind == Acquire {
				in.undone = append(in.undone, id+1)
			} else {
				in.ids = append(in.ids, id+1)
			}
			open[at] = in
		}
		return cut
	}
	for _, o := range ops {
		switch {
		case o.Answer == OwnerGone:
			mayHappen(o, true)
			o.Kind, o.Answer, o.Call = takenBack, Done, o.Return
			add(o, step{id: id})
		case o.Answer == TimedOut:
			ended(o)
			mayHappen(o, o.Kind == Acquire)
		case o.Answer == Unknown:
			cut := ended(o)
			mayHappen(o, o.Kind == Acquire && (timeouts || cut))
		case o.Return == never:
			mayHappen(o, false)
		case o.Kind == Release && o.Answer != Done:
			anyNode, tells := b.refusal(ops, o)
			if tells {
				add(o, step{anyNode: anyNode})
			}
		default:
			add(o, step{})
		}
	}
	for at, in := range open {
		in.kind, in.node = settled, uint8(at.Node)
		list = append(list, porcupine.Operation{
			ClientId: len(owners) + at.Node, Input: in, Output: Done, Call: int64(at.From), Return: int64(at.Until),
		})
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
func (b background) refusal(ops []Op, r Op) (anyNode, tells bool) {
	owners := b.owners
	if owners[r.Owner].Killed <= r.Return {
		return false, false
	}
	for _, o := range ops {
		if o.Kind != Acquire || o.Answer == Busy || o.Call > r.Return || b.over(o) < r.Call {
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

// over is when it was settled what came of an operation.
func (b background) over(o Op) time.Duration {
	switch {
	case o.Answer == Unknown:
		_, at := b.cut(b.owners[o.Owner].Node, o.Call)
		return at.Until
	case o.pending():
		return never
	}
	return o.Return
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
