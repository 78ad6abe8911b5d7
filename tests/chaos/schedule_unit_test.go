package chaos_test

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSameSeedSameSchedule also holds that a longer run begins like a shorter one.
func TestSameSeedSameSchedule(t *testing.T) {
	for seed := range uint64(100) {
		long := draw(seed, 10*time.Minute)
		if again := draw(seed, 10*time.Minute); !slices.Equal(long, again) {
			t.Fatalf("seed %d: two schedules:\n%v\n%v", seed, long, again)
		}
		short := draw(seed, 2*time.Minute)
		if len(short) > len(long) || !slices.Equal(short, long[:len(short)]) {
			t.Fatalf("seed %d: 2 minutes are not the begin of 10:\n%v\n%v", seed, short, long)
		}
		if seed > 0 && slices.Equal(long, draw(seed-1, 10*time.Minute)) {
			t.Fatalf("seeds %d and %d have one schedule", seed-1, seed)
		}
	}
}

// known is what seed 1 gives in two minutes.
var known = []string{
	"12.7 s  node 3: corosync stands still, for 2.8 s",
	"35.8 s  node 1: dlm_controld stands still, for 28.9 s",
	"60.9 s  node 1: corosync stands still, for 5.0 s",
	"92.1 s  node 3: dlm_controld stands still, for 24.9 s",
}

// TestSeedIsKnown fails when a schedule of old cannot be played again. Then the table of
// docs/chaos.md has to say up to which commit its commands are for.
func TestSeedIsKnown(t *testing.T) {
	var got []string
	for _, f := range draw(1, 2*time.Minute) {
		got = append(got, strings.TrimSpace(f.String()))
	}
	if !slices.Equal(got, known) {
		t.Errorf("seed 1 is now\n%s\nand was\n%s", strings.Join(got, "\n"), strings.Join(known, "\n"))
	}
}

func TestEveryKindIsDrawn(t *testing.T) {
	const seeds, whole = 15, 10 * time.Minute
	n, total := map[kind]int{}, 0
	for seed := range uint64(seeds) {
		list := draw(seed, whole)
		if len(list) < 6 {
			t.Errorf("seed %d: only %d faults in %v", seed, len(list), whole)
		}
		for _, f := range list {
			n[f.Kind]++
			total++
		}
	}
	for _, s := range specs {
		if n[s.kind] == 0 {
			t.Errorf("%q is not drawn by the first %d seeds", s.kind, seeds)
		}
	}
	t.Logf("%d faults: %v", total, n)
}

// TestOverlapsAreDrawn: faults that last at the same time are what a mix is for.
func TestOverlapsAreDrawn(t *testing.T) {
	var same, other, quick int
	for seed := range uint64(50) {
		list := draw(seed, 10*time.Minute)
		for i, f := range list {
			for _, g := range list[:i] {
				switch {
				case !overlap(f, g, 0, 0):
				case f.Kind == lockdRestarted || g.Kind == lockdRestarted:
					quick++
				case f.Node == g.Node:
					same++
				default:
					other++
				}
			}
		}
	}
	if same < 10 || other < 10 || quick < 10 {
		t.Errorf("of 50 seeds, at the same time: %d on one node, %d on two, %d with a restart in place", same, other, quick)
	}
	t.Logf("%d on one node, %d on two, %d with a restart in place", same, other, quick)
}

// TestForbiddenIsNotDrawn looks at each moment of many schedules, by itself: it knows
// only what docs/guard.md says, and nothing of how schedules are made.
func TestForbiddenIsNotDrawn(t *testing.T) {
	for seed := range uint64(300) {
		if why := uncovered(draw(seed, 10*time.Minute)); why != "" {
			t.Fatalf("seed %d: %s", seed, why)
		}
	}
}

// uncovered names a moment of a schedule at which docs/guard.md promises nothing.
func uncovered(list []fault) string {
	noGuard := []kind{lockdKilled, lockdStands, lockdStopped}
	// loses is all that is not done to vmlockd; mayLoseAll what can take the cluster from nodes
	// that it is not done to.
	loses := func(k kind) bool { return !slices.Contains(noGuard, k) && k != lockdRestarted }
	mayLoseAll := []kind{cut, cutAll, deaf, mute, lossy, flapping, hostFrozen, corosyncStands, controldStands}
	for _, f := range list {
		if f.Kind == hostFrozen && f.For > holdOff/2 {
			return f.String() + ": for so long that the others grant what it has"
		}
		if !slices.Contains(noGuard, f.Kind) {
			continue
		}
		others := map[int]bool{}
		for _, g := range list {
			if !loses(g.Kind) || g.At > f.end()+10*time.Second || g.end() < f.At-30*time.Second {
				continue
			}
			if f.Node == g.Node || slices.Contains(mayLoseAll, g.Kind) {
				return g.String() + " meets " + f.String()
			}
			others[g.Node] = true
		}
		if len(others) > 1 {
			return f.String() + ": without quorum"
		}
	}
	return ""
}

// TestForbiddenIsFound: uncovered finds what it is to find.
func TestForbiddenIsFound(t *testing.T) {
	at := func(k kind, node int, at, dur time.Duration) fault {
		return fault{Kind: k, Node: node, At: at, For: dur}
	}
	const s = time.Second
	for name, list := range map[string][]fault{
		"vmlockd killed, then cut off":             {at(lockdKilled, 2, 10*s, 20*s), at(cut, 2, 15*s, 20*s)},
		"cut off just after vmlockd is back":       {at(lockdKilled, 2, 10*s, 20*s), at(powerCut, 2, 33*s, 20*s)},
		"vmlockd stands still, and all are cut":    {at(lockdStands, 2, 10*s, 20*s), at(cutAll, 0, 15*s, 20*s)},
		"vmlockd stops while another host is deaf": {at(lockdStopped, 2, 10*s, 20*s), at(deaf, 1, 15*s, 20*s)},
		"vmlockd killed, both others off":          {at(lockdKilled, 2, 10*s, 20*s), at(powerCut, 1, 15*s, 20*s), at(powerCut, 3, 15*s, 20*s)},
		"a host stands still for too long":         {at(hostFrozen, 2, 10*s, holdOff)},
	} {
		if uncovered(list) == "" {
			t.Errorf("%s is not found", name)
		}
		why := crowd(list[1:], list[0])
		for _, f := range list[1:] {
			if why == "" {
				why = clash(list[0], f)
			}
		}
		if why == "" && len(list) > 1 {
			t.Errorf("%s may be drawn", name)
		}
	}
	allowed := []fault{at(lockdKilled, 2, 10*s, 20*s), at(powerCut, 1, 15*s, 20*s)}
	if why := uncovered(allowed) + clash(allowed[0], allowed[1]) + crowd(allowed[:1], allowed[1]); why != "" {
		t.Errorf("vmlockd killed while another host is off: %s", why)
	}
}
