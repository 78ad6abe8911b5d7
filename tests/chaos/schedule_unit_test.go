package chaos_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// seeds is how many of a shape a test looks at: of the first one so many, of the others, which take most from it, fewer.
func seeds(shape int, most uint64) uint64 {
	if shape == 0 {
		return most
	}
	return most / 5
}

// TestSameSeedSameSchedule also holds that a longer run begins like a shorter one.
func TestSameSeedSameSchedule(t *testing.T) {
	for i, of := range shapes {
		for seed := range seeds(i, 100) {
			long := of.draw(seed, 10*time.Minute)
			if again := of.draw(seed, 10*time.Minute); !slices.Equal(long, again) {
				t.Fatalf("%s, seed %d: two schedules:\n%v\n%v", of.name, seed, long, again)
			}
			short := of.draw(seed, 2*time.Minute)
			if len(short) > len(long) || !slices.Equal(short, long[:len(short)]) {
				t.Fatalf("%s, seed %d: 2 minutes are not the begin of 10:\n%v\n%v", of.name, seed, short, long)
			}
			if seed > 0 && slices.Equal(long, of.draw(seed-1, 10*time.Minute)) {
				t.Fatalf("%s: seeds %d and %d have one schedule", of.name, seed-1, seed)
			}
		}
	}
}

// known is what some seeds give in two minutes.
var known = map[uint64][]string{
	1: {
		"12.7 s  node 3: corosync stands still, for 2.8 s",
		"35.8 s  node 1: dlm_controld stands still, for 28.9 s",
		"60.9 s  node 1: corosync stands still, for 5.0 s",
		"92.1 s  node 3: dlm_controld stands still, for 24.9 s",
	},
	// That of make test.
	496535: {
		"10.2 s  node 2: corosync killed, for 5.8 s",
		"25.4 s  node 3: vmlockd stands still, for 17.1 s",
		"69.9 s  node 1: cut off, for 37.1 s",
	},
	1000003: {
		"7.3 s  node 1: loses a tenth of what it sends, and delays the rest, for 6.5 s",
		"25.9 s  node 2: shut down in good order, for 25.2 s",
		"89.7 s  node 1: vmlockd killed, for 0.1 s",
		"90.6 s  node 1: cut off, for 15.0 s",
		"104.0 s  node 1: vmlockd killed, for 12.6 s",
	},
	2000003: {
		"14.7 s  node 2: hears the others, and is not heard, for 20.9 s",
		"20.4 s  node 3: the link goes and comes, for 20.6 s, every 1.8 s",
		"33.0 s  node 2: vmlockd stopped in good order, for 9.7 s",
	},
	3000004: {
		"7.9 s  node 2: vmlockd restarted in place",
		"30.6 s  node 2: vmlockd restarted in place",
		"38.4 s  node 1: stands still as a whole, for longer than hold-off, for 70.3 s",
		"70.4 s  node 2: vmlockd stands still, for 23.4 s",
	},
	4000000: {
		"13.4 s  node 2: the link goes and comes, for 30.4 s, every 5.2 s",
		"69.2 s  node 1: vmlockd restarted in place",
		"70.9 s  node 1: the link goes and comes, for 28.3 s, every 3.0 s",
	},
}

// TestSeedIsKnown fails when a schedule of old cannot be played again. Then the table of
// docs/chaos.md has to say up to which commit its commands are for.
func TestSeedIsKnown(t *testing.T) {
	for seed, want := range known {
		_, of, err := choose(fmt.Sprint(seed), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range of.draw(seed, 2*time.Minute) {
			got = append(got, strings.TrimSpace(f.String()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("seed %d of %s is now\n%s\nand was\n%s", seed, of.name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestEveryKindIsDrawn(t *testing.T) {
	const most, whole = 20, 10 * time.Minute
	for _, of := range shapes {
		n, total := map[kind]int{}, 0
		for seed := range uint64(most) {
			list := of.draw(seed, whole)
			if len(list) < 6 {
				t.Errorf("%s, seed %d: only %d faults in %v", of.name, seed, len(list), whole)
			}
			for _, f := range list {
				n[f.Kind]++
				total++
				if f.Node > of.nodes {
					t.Errorf("%s, seed %d: %s", of.name, seed, f)
				}
			}
		}
		for _, s := range of.specs {
			if n[s.kind] == 0 {
				t.Errorf("%s: %q is not drawn by the first %d seeds", of.name, s.kind, most)
			}
		}
		t.Logf("%s: %d faults: %v", of.name, total, n)
	}
}

// TestOverlapsAreDrawn: faults that last at the same time are what a mix is for.
func TestOverlapsAreDrawn(t *testing.T) {
	of := shapeOf("three")
	var same, other, quick int
	for seed := range uint64(50) {
		list := of.draw(seed, 10*time.Minute)
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

// limits are what docs/guard.md does not cover in a shape: kinds after which a node must not lose the cluster, and for how long it must not stand
// still, if there is a limit.
type limits struct {
	noGuard []kind
	frozen  time.Duration
}

var limitsOf = map[string]limits{
	"three":    {[]kind{lockdKilled, lockdStands, lockdStopped}, 20 * time.Second},
	"qemu":     {[]kind{lockdKilled, lockdStands, lockdStopped}, 20 * time.Second},
	"watchdog": {[]kind{lockdStopped}, 0},
	"two":      {},
	"fencing":  {},
}

// TestForbiddenIsNotDrawn looks at each moment of many schedules, by itself: it knows
// only what docs/guard.md says, and nothing of how schedules are made.
func TestForbiddenIsNotDrawn(t *testing.T) {
	for i, of := range shapes {
		l, ok := limitsOf[of.name]
		if !ok {
			t.Fatalf("nobody says what the limits of %s are", of.name)
		}
		for seed := range seeds(i, 300) {
			if why := l.uncovered(of.draw(seed, 10*time.Minute)); why != "" {
				t.Fatalf("%s, seed %d: %s", of.name, seed, why)
			}
		}
	}
}

// TestCoveredIsDrawn: what only some shapes cover is what they are for.
func TestCoveredIsDrawn(t *testing.T) {
	three := limitsOf["three"]
	for _, name := range []string{"two", "fencing", "watchdog"} {
		of := shapeOf(name)
		unguarded, frozen := 0, 0
		for seed := range uint64(50) {
			for _, f := range of.draw(seed, 10*time.Minute) {
				if f.Kind == hostFrozenLong && f.For > of.holdOff {
					frozen++
				}
			}
			list := slices.DeleteFunc(of.draw(seed, 10*time.Minute), func(f fault) bool { return f.Kind == hostFrozenLong })
			if three.uncovered(list) != "" {
				unguarded++
			}
		}
		if unguarded < 20 || frozen < 20 {
			t.Errorf("%s: of 50 seeds only %d have a node without a vmlockd that loses the cluster, and there are %d freezes for longer than hold-off", name, unguarded, frozen)
		}
	}
}

// uncovered names a moment of a schedule at which docs/guard.md promises nothing.
func (l limits) uncovered(list []fault) string {
	// loses is all that is not done to vmlockd; mayLoseAll what can take the cluster from nodes
	// that it is not done to.
	loses := func(k kind) bool { return !slices.Contains(l.noGuard, k) && k != lockdRestarted }
	mayLoseAll := []kind{cut, cutAll, deaf, mute, lossy, flapping, hostFrozen, hostFrozenLong, corosyncStands, controldStands}
	for _, f := range list {
		if (f.Kind == hostFrozen || f.Kind == hostFrozenLong) && l.frozen > 0 && f.For > l.frozen {
			return f.String() + ": for so long that the others grant what it has"
		}
		if !slices.Contains(l.noGuard, f.Kind) {
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
	of, l := shapeOf("three"), limitsOf["three"]
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
		"a host stands still for too long":         {at(hostFrozen, 2, 10*s, of.holdOff)},
	} {
		if l.uncovered(list) == "" {
			t.Errorf("%s is not found", name)
		}
		why := of.crowd(list[1:], list[0])
		for _, f := range list[1:] {
			if why == "" {
				why = of.clash(list[0], f)
			}
		}
		if why == "" && len(list) > 1 {
			t.Errorf("%s may be drawn", name)
		}
	}
	allowed := []fault{at(lockdKilled, 2, 10*s, 20*s), at(powerCut, 1, 15*s, 20*s)}
	if why := l.uncovered(allowed) + of.clash(allowed[0], allowed[1]) + of.crowd(allowed[:1], allowed[1]); why != "" {
		t.Errorf("vmlockd killed while another host is off: %s", why)
	}
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		seed, shape string
		random      uint64 // what is drawn
		want        uint64
		of          string // empty for an error
	}{
		{"496535", "", 0, 496_535, "three"},
		{"496535", "three", 0, 496_535, "three"},
		{"1000007", "", 0, 1_000_007, "two"},
		{"4999999", "", 0, 4_999_999, "qemu"},
		{"7", "two", 0, 1_000_007, "two"},
		{"3000007", "watchdog", 0, 3_000_007, "watchdog"},
		{"", "", 2_000_000, 2_000_000, "fencing"},
		{"", "qemu", 12, 4_000_012, "qemu"},
		{"", "three", 12, 12, "three"},
		{"3000007", "two", 0, 0, ""},
		{"3000007", "three", 0, 0, ""},
		{"5000000", "", 0, 0, ""},
		{"-1", "", 0, 0, ""},
		{"x", "two", 0, 0, ""},
		{"7", "four", 0, 0, ""},
	} {
		seed, of, err := choose(tc.seed, tc.shape, func(n uint64) uint64 {
			if tc.random >= n {
				t.Errorf("%+v: a number below %d is asked for", tc, n)
			}
			return tc.random
		})
		switch {
		case tc.of == "" && err == nil:
			t.Errorf("%+v: taken for seed %d of %s", tc, seed, of.name)
		case tc.of != "" && (err != nil || seed != tc.want || of.name != tc.of):
			t.Errorf("%+v: %d, %v, %v", tc, seed, of, err)
		}
	}
}

// TestAgainSaysAll: the command that a run prints gives its schedule.
func TestAgainSaysAll(t *testing.T) {
	for i := range shapes {
		w := &world{shape: &shapes[i], seed: seedsEach*uint64(i) + 17, whole: 3 * time.Minute}
		var shape, seed, whole string
		if _, err := fmt.Sscanf(w.again(), "make chaos CHAOS_SHAPE=%s CHAOS_SEED=%s CHAOS_TIME=%s", &shape, &seed, &whole); err != nil {
			t.Fatal(err)
		}
		n, of, err := choose(seed, shape, nil)
		if d, e := time.ParseDuration(whole); err != nil || e != nil || n != w.seed || of != w.shape || d != w.whole {
			t.Errorf("%q: %d, %v, %v, %v", w.again(), n, of, err, e)
		}
	}
}

func TestWasReset(t *testing.T) {
	const boot, dog = "\n===== node 3: boot 1 at 2026-01-01T00:00:00Z =====\n", "softdog: Initiating system reboot\n"
	for console, want := range map[string]bool{"": false, boot: false, boot + "x\n" + dog + "y": true, boot + dog + boot + "x": false, boot + dog + boot + dog: true} {
		if got := wasReset(console); got != want {
			t.Errorf("%q: %v", console, got)
		}
	}
}
