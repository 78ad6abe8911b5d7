// Package history_test plays random histories of owners, kills and restarts: the
// real lock table, journal and cluster backend, on a DLM in memory and processes
// that exist only for the test. After each step and each restart what clients
// were told is compared with what daemons and kernels have.
//
// VMLOCKD_HISTORIES says how many histories are played, 'make unit-long' plays ten times
// as many as 'make unit'; a failing one is made
// shorter and printed with the seed that brings it about again (-rapid.seed).
package history_test

import (
	"flag"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// 'make unit' plays defaultHistories without the race detector, with which each takes
// three times as long; so that it sees all of their code, racedHistories are enough.
const (
	defaultHistories = 2000
	racedHistories   = 300
)

// perBubble bounds how long a clock runs: rapid gives up after a day of it.
const perBubble = 500

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // many short lives
	// A seed is enough, and the tree stays as it is.
	_ = flag.Set("rapid.nofailfile", "true")
	goleak.VerifyTestMain(m)
}

// wanted is how many histories are to be played.
func wanted(t *testing.T) int {
	usual := defaultHistories
	if testenv.WithRace {
		usual = racedHistories
	}
	n := testenv.Rounds(t, "VMLOCKD_HISTORIES", usual)
	if testing.Short() {
		n = min(n, 100)
	}
	return n
}

// The last disk is not for histories, which are to meet.
var disks = []string{"a", "b", "c", "d"}

var pids = []int32{1, 2, 3}

// rare are points that are passed only when a journal is made, or damaged, where the
// tests of the journal kill it; or when a node joins for the first time. The others have
// tests of their own here, which bring about what chance hardly ever does: late and settling.
var rare = slices.Concat([]string{"cluster.join.", "journal.open.", "journal.fresh.", "journal.settled.", "journal.suspect.", "journal.lockspace."}, late, settling)

func points() (list []string) {
	for _, name := range failpoint.Names() {
		isRare := slices.ContainsFunc(rare, func(p string) bool { return strings.HasPrefix(name, p) })
		if !isRare && (strings.HasPrefix(name, "cluster.") || strings.HasPrefix(name, "journal.")) {
			list = append(list, name)
		}
	}
	return list
}

// weighted has those several times that are hardly ever passed in the step for which
// they are armed.
func weighted() (list []string) {
	seldom := []string{"journal.", "cluster.lock.", "cluster.unlock.", "cluster.publish.", "cluster.leave.", "cluster.ask", "cluster.read", "cluster.prove."}
	for _, name := range points() {
		list = append(list, name)
		if slices.ContainsFunc(seldom, func(p string) bool { return strings.HasPrefix(name, p) }) {
			list = append(list, name, name)
		}
	}
	return list
}

// bubbled keeps rapid from asking for the deadline, which a bubble has not.
type bubbled struct{ *testing.T }

// inBubble checks a property n times, with a clock that passes when nothing else
// can happen.
func inBubble(t *testing.T, n int, f func(*rapid.T)) {
	t.Helper()
	given := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", strconv.Itoa(n)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = flag.Set("rapid.checks", given) }()
	fakeclock.Test(t, func(t *testing.T) { rapid.Check(bubbled{t}, f) })
}

func TestHistories(t *testing.T) {
	base := memoryDir(t)
	seen := map[string]int{}
	histories := 0
	play := func(n int) {
		inBubble(t, n, func(rt *rapid.T) {
			histories++
			w := newWorld(rt, base, 3, seen)
			defer w.end()
			for range rapid.IntRange(5, 40).Draw(rt, "steps") {
				w.step()
				fakeclock.Wait()
				w.check()
			}
			w.finish()
		})
	}
	n := wanted(t)
	for left := n; left > 0 && !t.Failed(); left -= perBubble {
		play(min(left, perBubble))
	}
	if n >= 1000 {
		// What did not happen was not shown. The rarest happens in one of 500 histories, so
		// chance may want some more of them.
		for histories < atMost*n && len(never(seen)) > 0 && !t.Failed() {
			play(perBubble)
		}
		for _, what := range never(seen) {
			t.Errorf("%s: never in %d histories", what, histories)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%s: %d", what, seen[what])
	}
}

// atMost is how many times as many histories as wanted are played until everything
// has happened.
const atMost = 8

// never is what has not happened, of all that is to happen.
func never(seen map[string]int) (list []string) {
	for _, what := range append(points(), "granted", "no answer", "refused in doubt", "release in doubt",
		"restored", "released untold", "handed over") {
		if seen[what] == 0 {
			list = append(list, what)
		}
	}
	return list
}

// inPlace says that only a restart in place passes a point.
func inPlace(point string) bool {
	return strings.HasPrefix(point, "cluster.handover.") || strings.HasPrefix(point, "cluster.resume.")
}

func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "vmlockd-history-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func draw[T any](w *world, from []T, what string) T {
	return rapid.SampledFrom(from).Draw(w.t, what)
}

// step is one thing that happens, to a node that is chosen at random.
func (w *world) step() {
	n := draw(w, w.nodes, "node")
	type step struct {
		name   string
		weight int
		can    bool
		do     func()
	}
	serves := n.in != nil
	var list []string
	steps := map[string]func(){}
	for _, s := range []step{
		{"acquire", 12, serves, func() { w.acquire(n) }},
		{"release", 6, serves, func() { w.release(n) }},
		{"acquire behind a gate", 3, serves && len(w.gates) == 0, func() { w.gated(n); w.acquire(n) }},
		{"release behind a gate", 2, serves && len(w.gates) == 0, func() { w.gated(n); w.release(n) }},
		{"open gates", 2, len(w.gates) > 0, w.openGates},
		{"owner ends", 3, n.on, func() { w.ownerEnds(n) }},
		{"suspend", 2, !w.suspended, w.suspend},
		{"resume", 3, w.suspended, w.resume},
		{"a second", 3, true, func() { pass(time.Second) }},
		{"longer than requests take", 2, true, func() { pass(requestTimeout + time.Second) }},
		{"kill", 3, serves, func() { n.in.die(); n.in.bury() }},
		{"kill at a point", 16, w.quiet() && n.on, func() { w.killAt(n) }},
		{"prove", 2, serves && w.quiet(), func() { w.prove(n) }},
		{"stop", 2, serves, func() { n.in.stop() }},
		{"restart in place", 4, serves, func() { n.in.replace() }},
		{"start", 12, n.startable(), func() { n.start() }},
		{"power off", 1, n.on && w.others(n), n.powerOff},
		{"recover", 3, w.lost, w.recover},
		{"boot", 5, !n.on, n.boot},
		{"settle", 3, true, w.settle},
	} {
		if s.can {
			steps[s.name] = s.do
			for range s.weight {
				list = append(list, s.name)
			}
		}
	}
	steps[draw(w, list, "step")]()
}

// others says that another node has power, so that somebody recovers.
func (w *world) others(n *node) bool {
	return slices.ContainsFunc(w.nodes, func(o *node) bool { return o != n && o.on })
}

// vm is an owner with this pid; one that runs already, or a new one.
func (w *world) vm(n *node) *owner {
	pid := draw(w, pids, "pid")
	if n.owners[pid] == nil {
		n.spawn(pid)
	}
	return n.owners[pid]
}

func (w *world) acquire(n *node) {
	mode := draw(w, []locking.Mode{locking.Exclusive, locking.Shared}, "mode")
	w.ask(w.vm(n), draw(w, disks[:3], "disk"), false, mode)
}

// release is of something that its owner has, or may have, if there is any.
func (w *world) release(n *node) {
	if mine := filter(w.known, func(f *fact) bool { return f.o.n == n && f.o.alive() && f.most() > 0 }); len(mine) > 0 {
		f := draw(w, mine, "fact")
		w.ask(f.o, f.disk, true, 0)
		return
	}
	w.ask(w.vm(n), draw(w, disks[:3], "disk"), true, 0)
}

// gated keeps the next request of the node in the kernel until the gates open.
func (w *world) gated(n *node) {
	g := dlmtest.NewGate()
	w.gates = append(w.gates, g)
	where := rapid.IntRange(0, 2).Draw(w.t, "where")
	first := true
	w.c.Node(n.id).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
		if !first || op.Op != "lock" && op.Op != "unlock" {
			return f
		}
		first = false
		switch where {
		case 0:
			f.Before = g
		case 1:
			f.After = g
		case 2:
			f.Result = g
		}
		return f
	})
}

func (w *world) ownerEnds(n *node) {
	if len(n.owners) == 0 {
		return
	}
	o := n.owners[draw(w, slices.Sorted(maps.Keys(n.owners)), "pid")]
	n.end(o)
	if rapid.Bool().Draw(w.t, "its pid is used again") {
		n.spawn(o.pid)
	}
}

// killAt kills the node's daemon when it passes a fail point in the next step.
func (w *world) killAt(n *node) {
	p := failpoint.Find(draw(w, weighted(), "point"))
	nth := rapid.SampledFrom([]int{1, 1, 2, 3}).Draw(w.t, "pass")
	what := "start"
	switch {
	case n.in != nil:
		what = draw(w, []string{"acquire", "release", "owner ends", "stop", "restart", "restart in place"}, "what")
		switch { // nobody else passes these
		case strings.HasPrefix(p.Name(), "cluster.adopt"):
			what = "restart"
		case inPlace(p.Name()):
			what = "restart in place"
		case strings.HasPrefix(p.Name(), "cluster.close."), strings.HasPrefix(p.Name(), "cluster.leave."):
			what = "stop"
		case strings.HasPrefix(p.Name(), "cluster.prove."):
			what = "prove"
		case strings.HasPrefix(p.Name(), "cluster.read"):
			what = "refused"
		case strings.HasPrefix(p.Name(), "cluster.lock."), strings.HasPrefix(p.Name(), "cluster.ask"), strings.HasPrefix(p.Name(), "journal.intend."), strings.HasPrefix(p.Name(), "journal.grant."):
			what = "acquire"
		case published(p):
			what = draw(w, []string{"acquire", "restart"}, "what is published")
		}
	case !n.startable():
		return
	}
	if what == "restart" {
		n.in.die()
		n.in.bury()
		fakeclock.Wait()
		w.check()
	}
	disarm := p.Arm(nth, func() { n.in.dieHere(p) })
	defer disarm()
	switch what {
	case "start", "restart":
		n.start()
	case "acquire":
		w.acquire(n)
	case "prove":
		w.prove(n)
	case "refused":
		w.refused(n)
	case "release":
		w.release(n)
	case "owner ends":
		w.ownerEnds(n)
	case "stop":
		n.in.stop()
	case "restart in place":
		n.in.replace()
	}
	fakeclock.Wait()
	if published(p) {
		w.publish(n, nth)
	}
	if in := n.in; in != nil && in.dead.Load() {
		in.bury()
	}
}

// finish brings everything to its end; then nothing is left.
func (w *world) finish() {
	w.settle()
	for _, n := range w.nodes {
		if !n.on {
			n.boot()
		}
		if n.in == nil {
			pass(3 * stopTimeout) // the earlier one may be in the middle of its end
			if !n.startable() {
				w.t.Fatalf("the last instance on node %d has not left the kernel", n.id)
			}
			n.start()
		}
	}
	w.settle()
	w.check()
	for _, n := range w.nodes {
		for _, o := range n.owners {
			n.end(o)
		}
	}
	w.settle()
	pass(2 * time.Second) // what was in doubt is looked at now and then
	w.check()
	if names := w.c.Names(lockspace); len(names) > 0 {
		w.t.Fatalf("all owners are gone, and the kernels still have locks: %v", names)
	}
	for _, n := range w.nodes {
		if s := n.in.journal.real.Stats(); s.Entries > 0 {
			w.t.Fatalf("all owners are gone, and the journal of node %d still has %d entries", n.id, s.Entries)
		}
		if p := w.c.Node(n.id).Panics(); p > 0 {
			w.t.Fatalf("the kernel of node %d crashed", n.id)
		}
	}
}
