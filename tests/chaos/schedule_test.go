package chaos_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// kind is what is done to a node, or to all of them.
type kind string

// The kinds of faults. Each is undone when its time is over, as far as that can be done.
const (
	cut      kind = "cut off"
	cutAll   kind = "all cut off from all"
	deaf     kind = "hears nobody, and is heard"
	mute     kind = "hears the others, and is not heard"
	lossy    kind = "loses a tenth of what it sends, and delays the rest"
	flapping kind = "the link goes and comes"

	hostFrozen     kind = "stands still as a whole"
	hostFrozenLong kind = "stands still as a whole, for longer than hold-off"
	powerCut       kind = "power cut, and nobody says so"
	powerConfirmed kind = "power cut, and an operator says so"
	leaves         kind = "shut down in good order"

	corosyncKilled kind = "corosync killed"
	corosyncStands kind = "corosync stands still"
	controldKilled kind = "dlm_controld killed"
	controldStands kind = "dlm_controld stands still"

	lockdKilled    kind = "vmlockd killed"
	lockdStands    kind = "vmlockd stands still"
	lockdStopped   kind = "vmlockd stopped in good order"
	lockdRestarted kind = "vmlockd restarted in place"
)

// spec is what is drawn for a kind, and what it may do to the cluster.
type spec struct {
	kind     kind
	weight   int
	from, to time.Duration // how long it may last
	loses    bool          // the node may lose the cluster
	// widely: the other nodes may lose it too, be it for a moment: while it lasts, or when it
	// is undone and those who have dropped each other meet again.
	widely bool
	// gone is how long after its end the node may be away, as it takes a reboot.
	gone time.Duration
	// unguards: no vmlockd runs on the node for longer than its guard may take to stop
	// somebody (A3 of docs/guard.md).
	unguards bool
	link     bool // it is done to the node's link, of which there is one
	// alone: there is nothing left on the node to which something else could be done.
	alone bool
}

// reboot is until a node that an operator has to reboot is back, from when that shows.
const reboot = 75 * time.Second

// specs are the kinds of the shape three, of which others take theirs. Schedules of old need their order and all that is in them.
var specs = []spec{
	{kind: cut, weight: 4, from: 2 * time.Second, to: 40 * time.Second, loses: true, widely: true, gone: reboot, link: true},
	{kind: cutAll, weight: 2, from: 2 * time.Second, to: 30 * time.Second, loses: true, widely: true, gone: reboot, link: true},
	{kind: deaf, weight: 2, from: 5 * time.Second, to: 30 * time.Second, loses: true, widely: true, gone: reboot, link: true},
	{kind: mute, weight: 2, from: 5 * time.Second, to: 30 * time.Second, loses: true, widely: true, gone: reboot, link: true},
	{kind: lossy, weight: 2, from: 5 * time.Second, to: 30 * time.Second, loses: true, widely: true, gone: reboot, link: true},
	{kind: flapping, weight: 2, from: 10 * time.Second, to: 40 * time.Second, loses: true, widely: true, gone: reboot, link: true},
	// Not longer: see clash.
	{kind: hostFrozen, weight: 2, from: time.Second, to: longestFreeze, loses: true, widely: true, gone: reboot, alone: true},
	{kind: powerCut, weight: 2, from: 3 * time.Second, to: 40 * time.Second, loses: true, gone: reboot, alone: true},
	{kind: powerConfirmed, weight: 2, from: 20 * time.Second, to: 40 * time.Second, loses: true, gone: reboot, alone: true},
	{kind: leaves, weight: 1, from: 5 * time.Second, to: 30 * time.Second, loses: true, gone: reboot, alone: true},
	{kind: corosyncKilled, weight: 2, from: time.Second, to: 30 * time.Second, loses: true, gone: reboot},
	{kind: corosyncStands, weight: 2, from: time.Second, to: 30 * time.Second, loses: true, widely: true, gone: reboot},
	{kind: controldKilled, weight: 2, from: time.Second, to: 30 * time.Second, loses: true, gone: reboot},
	{kind: controldStands, weight: 2, from: time.Second, to: 30 * time.Second, loses: true, widely: true, gone: reboot},
	{kind: lockdKilled, weight: 3, from: 100 * time.Millisecond, to: 20 * time.Second, unguards: true},
	{kind: lockdStands, weight: 2, from: time.Second, to: 25 * time.Second, unguards: true},
	{kind: lockdStopped, weight: 2, from: 100 * time.Millisecond, to: 15 * time.Second, unguards: true},
	{kind: lockdRestarted, weight: 2},
}

const (
	// longestFreeze is of a host that stands still as a whole: well below any hold-off.
	longestFreeze = 15 * time.Second
	// settles is how long after a fault that may lose the cluster its node has
	// certainly noticed: it has stopped and killed who wrote, or never will.
	settles = 40 * time.Second
	// heard is how long before a node loses the cluster its vmlockd must be back, for it to
	// guard again and for the others to have heard that it does.
	heard = 20 * time.Second
)

// fault is something that is to be done.
type fault struct {
	Kind kind
	Node int           // 0 for all
	At   time.Duration // since the first fault might begin
	For  time.Duration // until it is undone
	// Beat is, of a link that goes and comes, how long it is there and how long it is not.
	Beat time.Duration
}

func (f fault) end() time.Duration { return f.At + f.For }

// hits reports whether both are about the same node.
func (f fault) hits(other fault) bool {
	return f.Node == other.Node || f.Node == 0 || other.Node == 0
}

func (f fault) String() string {
	where := fmt.Sprintf("node %d: ", f.Node)
	if f.Node == 0 {
		where = ""
	}
	s := fmt.Sprintf("%6.1f s  %s%s", f.At.Seconds(), where, f.Kind)
	if f.For > 0 {
		s += fmt.Sprintf(", for %.1f s", f.For.Seconds())
	}
	if f.Beat > 0 {
		s += fmt.Sprintf(", every %.1f s", f.Beat.Seconds())
	}
	return s
}

// overlap reports whether two times overlap, the second of which is made longer on both sides.
func overlap(a, b fault, before, after time.Duration) bool {
	return a.At <= b.end()+after && a.end() >= b.At-before
}

// clash says why two faults must not be drawn together: empty if they may. What docs/guard.md
// calls not covered is not drawn, as two writers would then be no defect of the program:
//
//   - vmlockd killed, hung or stopped on a host and that host cut off, before the others have
//     heard of the first, or while none of their guards runs that has. Here: no fault that may
//     take the cluster from a host while its vmlockd does not run, and for some time around that.
//     Where more than one host may lose it at once (widely), that is any host. Not for what the shape covers.
//   - A host that stands still for longer than hold-off, and goes on: longestFreeze. Shapes that cover it have frozenLong.
//   - All hosts rebooted but a lost one that gave no promise. Without vmlockd a host is not lost, as
//     above, and see crowd for quorum.
//
// The rest of that list needs storage that delays writes, owners with children or without a
// process, somebody who sends SIGCONT, or last_man_standing: no kind does it.
//
// Two more are left out as there would be nothing to learn: what is done to a node that is not
// there, and two things that would undo each other.
func (s *shape) clash(a, b fault) string {
	for _, p := range [][2]fault{{a, b}, {b, a}} {
		f, g := p[0], p[1]
		of, og := s.specOf(f.Kind), s.specOf(g.Kind)
		if s.exposes(f.Kind) && og.loses && (f.hits(g) || og.widely) && overlap(f, g, heard, settles) {
			return "no vmlockd on a host that may lose the cluster"
		}
		if f.hits(g) && of.alone && overlap(f, g, 0, 0) {
			return "nothing is there to which the other could be done"
		}
		if f.hits(g) && of.gone > 0 && g.At > f.end() && g.At <= f.end()+of.gone {
			return "the node may be away"
		}
	}
	if !a.hits(b) || !overlap(a, b, 0, time.Second) && !overlap(b, a, 0, time.Second) {
		return ""
	}
	oa, ob := s.specOf(a.Kind), s.specOf(b.Kind)
	switch {
	case oa.link && ob.link:
		return "there is one link"
	case oa.unguards && (ob.unguards || b.Kind == lockdRestarted), ob.unguards && a.Kind == lockdRestarted, a.Kind == lockdRestarted && b.Kind == lockdRestarted:
		return "there is one vmlockd"
	case sameProcess(a.Kind, b.Kind, corosyncKilled, corosyncStands), sameProcess(a.Kind, b.Kind, controldKilled, controldStands):
		return "there is one process"
	}
	return ""
}

func sameProcess(a, b kind, of ...kind) bool { return slices.Contains(of, a) && slices.Contains(of, b) }

// crowd says why a fault must not be drawn with all that were: empty if it may. With two
// nodes away the third has lost quorum:
//
//   - then its vmlockd must run, since others that meet it without having lost
//     what they had may end its corosync, and all but it may be rebooted;
//   - and a third fault would find nothing to take the cluster from.
func (s *shape) crowd(list []fault, f fault) string {
	list = append(slices.Clone(list), f)
	for _, f := range list {
		exposed := s.exposes(f.Kind)
		away := map[int]bool{}
		for _, g := range list {
			if g != f && s.specOf(g.Kind).loses && overlap(f, g, heard, settles+reboot) {
				away[g.Node] = true
			}
		}
		delete(away, f.Node)
		if exposed && len(away) > 1 {
			return "no vmlockd on a host that may be left alone"
		}
		if s.specOf(f.Kind).loses && len(away) > 1 {
			return "no host is left"
		}
	}
	return ""
}

// draw makes a schedule from a seed: of all faults that have ended after that time. One for a
// longer time has the same ones first.
func (s *shape) draw(seed uint64, whole time.Duration) []fault {
	rng := rand.New(rand.NewPCG(seed, 6))
	var list []fault
	between := func(from, to time.Duration) time.Duration {
		const tick = 100 * time.Millisecond
		return from + time.Duration(rng.Int64N(int64((to-from)/tick)+1))*tick
	}
	at, last := between(5*time.Second, 15*time.Second), time.Duration(0) // last is when all of them have ended
	f := s.pick(rng, between)
	for at < whole {
		f.At = at
		near := list[max(0, len(list)-12):] // more do not reach as far as this
		why := s.crowd(near, f)
		for _, g := range near {
			if why == "" {
				why = s.clash(f, g)
			}
		}
		if why != "" {
			// It waits, or another one takes its place. If always another one did, there would
			// be little but what goes together with all the others.
			at += between(100*time.Millisecond, 2*time.Second)
			if rng.IntN(6) == 0 {
				f = s.pick(rng, between)
			}
			continue
		}
		if f.end() > whole {
			break
		}
		list = append(list, f)
		last = max(last, f.end())
		switch p := rng.Float64(); {
		case p < 0.55: // while the last one lasts, perhaps
			at += between(100*time.Millisecond, 10*time.Second)
		case p < 0.8: // while the others still hold off
			at = last + between(5*time.Second, 25*time.Second)
		default: // when locks are granted again
			at = last + s.holdOff + between(5*time.Second, 20*time.Second)
		}
		f = s.pick(rng, between)
	}
	return list
}

// pick draws all of a fault but the time.
func (s *shape) pick(rng *rand.Rand, between func(from, to time.Duration) time.Duration) fault {
	sum := 0
	for _, k := range s.specs {
		sum += k.weight
	}
	at := rng.IntN(sum)
	i := slices.IndexFunc(s.specs, func(k spec) bool { at -= k.weight; return at < 0 })
	k := s.specs[i]
	f := fault{Kind: k.kind, Node: 1 + rng.IntN(s.nodes), For: between(k.from, k.to)}
	switch k.kind {
	case cutAll:
		f.Node = 0
	case flapping:
		f.Beat = between(time.Second, 9*time.Second)
	}
	return f
}
