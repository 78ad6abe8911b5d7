// Package crash_test kills the real daemon at every fail point and at random
// moments, starts it again, and checks that what clients were told is true:
// what was granted is held, what was released is free, and nothing else is held.
//
// The tests run on this machine with the backend "local", and once more, the
// same program in a node of the lab, with the backend "cluster".
package crash_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/testenv"
	"github.com/vmlockd/vmlockd/lab"

	_ "github.com/vmlockd/vmlockd/internal/daemon" // for its fail points
)

// insideEnv marks the run in a node, where the cluster is.
const insideEnv = "VMLOCKD_CRASH_INSIDE"

func inside() bool { return os.Getenv(insideEnv) != "" }

// binary builds the daemon, or finds it in a node.
func binary(t *testing.T) string {
	t.Helper()
	if !inside() && os.Getenv(lab.Env) != "1" {
		t.Skipf("starts the daemon a hundred times: run with %s=1 (make lab-test)", lab.Env)
	}
	if inside() {
		path, err := exec.LookPath("vmlockd")
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	return lab.Build(t, vmlockd)
}

const vmlockd = "github.com/vmlockd/vmlockd/cmd/vmlockd"

// otherBackend are points that this backend cannot pass, by their beginning.
func otherBackend(name string) bool {
	if inside() {
		return strings.HasPrefix(name, "local.") || strings.HasPrefix(name, "holder.")
	}
	return strings.HasPrefix(name, "cluster.") || strings.HasPrefix(name, "closer.")
}

// rare are points that a daemon here does not pass, and where they are passed instead.
var rare = []string{
	"failpoint.", // of that package's own tests
	"guard.",     // there is no guard here: internal/guard kills a process at these
	// No owner here hangs up with locks: internal/daemon kills a daemon at it.
	"daemon.ending.",
	// These take a second host, locks that a guard proves, or a purge, which has its dangers in the
	// kernel: tests/history goes through all of them, with the DLM in memory.
	"cluster.ask", "cluster.read", "cluster.prove.", "cluster.adoptlate.", "cluster.lateend.", "cluster.adoptdue.", "cluster.drop.", "cluster.purge.",
}

// onceIsEnough are points whose step does not depend on the backend, and which were passed
// outside.
var onceIsEnough = []string{"journal.open.", "journal.fresh.", "journal.settled.", "journal.suspect.", "journal.lockspace.", "daemon.drain.", "daemon.undrain.", "audit."}

// halves are the passes of journal.append.half, by what is written then, once there is a journal: see workload.
var halves = map[int]string{1: "intend", 4: "grant", 6: "releasing", 7: "forget"}

func begins(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

func TestFailPoints(t *testing.T) {
	w := newWorld(t, binary(t))
	reached := map[string]bool{}
	for _, name := range failpoint.Names() {
		if otherBackend(name) || begins(name, rare) || inside() && begins(name, onceIsEnough) {
			continue
		}
		passes := []int{1, 4}
		switch {
		case name == "journal.append.half":
			passes = slices.Sorted(maps.Keys(halves))
		case inside():
			passes = passes[:1] // each start takes seconds there
		case whenPassed(name) == byOperator, whenPassed(name) == withoutJournal, begins(name, []string{"journal.lockspace.", "journal.open.truncate.", "local.mkdir.", "local.delete."}):
			passes = passes[:1] // it happens once
		case whenPassed(name) == later:
			passes = []int{1, 3} // as many are held exclusively in the end
		}
		for _, pass := range passes {
			t.Run(fmt.Sprintf("%s:%d", name, pass), func(t *testing.T) {
				w, env, at := w, fmt.Sprintf("%s=%s:%d", failpoint.Variable, name, pass), whenPassed(name)
				switch {
				case strings.HasPrefix(name, "holder.spawn."), at == withoutHolder, at == byOperator, at == withoutJournal:
					w = newWorld(t, w.program) // in the other one there may be a holder, or a journal, already
				case begins(name, []string{"local.create.", "local.unlink.", "local.mkdir.", "local.delete.", "journal.lockspace."}):
					w = newLeaseWorld(t, w.program)
				}
				killed := false
				switch {
				case at == byOperator:
					killed = w.operatorRound(t, env, name)
				case at == withoutJournal:
					killed = w.goneRound(t, env)
				case name == "journal.append.half":
					w.start(t, "").stop(t) // in a new journal there is one record more
					w.killed = func() {
						if got := w.tornRecord(t); got != halves[pass] {
							t.Errorf("pass %d is in the middle of a record %q, and it should be %q", pass, got, halves[pass])
						}
					}
					killed = w.round(t, env, 0, at)
					w.killed = nil
				default:
					if strings.HasPrefix(name, "journal.open.truncate.") {
						w = newWorld(t, w.program)
						w.first = failpoint.Variable + "=journal.append.half:20"
					}
					killed = w.round(t, env, 0, at)
				}
				reached[name] = reached[name] || killed
			})
		}
		if !reached[name] {
			t.Errorf("the daemon never passed %s, so nothing was shown for it", name)
		}
	}
	if len(reached) < 8 {
		t.Errorf("only %d fail points were passed: %v", len(reached), reached)
	}
}

// whenPassed says what has to be done to a daemon for it to pass a point.
func whenPassed(name string) when {
	switch {
	case strings.HasPrefix(name, "local.restore.relock."):
		return withoutHolder
	case strings.HasPrefix(name, "journal.open.truncate."):
		return atRestart
	case strings.HasPrefix(name, "journal.suspect."):
		return withoutJournal
	case begins(name, []string{"local.restore.drop.", "journal.open.aside.", "journal.fresh.", "journal.settled.", "daemon.drain.", "daemon.undrain.", "audit."}):
		return byOperator
	case strings.Contains(name, ".adopt."), strings.Contains(name, ".adoptone."), strings.Contains(name, ".restore."), strings.HasPrefix(name, "closer."):
		return atRestart
	case strings.Contains(name, ".leave."):
		return atEnd
	case strings.Contains(name, ".handover."), strings.Contains(name, ".resume."), strings.HasPrefix(name, "daemon.keep."):
		return inPlace
	case strings.Contains(name, ".publish."):
		return later
	}
	return inWork
}

// roundsEnv says how often TestKilledAtRandom kills, outside and in the node.
const roundsEnv = "VMLOCKD_CRASH_ROUNDS"

func randomRounds(t *testing.T) int {
	t.Helper()
	usual := 25
	if inside() {
		usual = 10
	}
	return testenv.Rounds(t, roundsEnv, usual)
}

// randomWorkload is about as much as can be done until the daemon is killed.
func randomWorkload(rnd *rand.Rand, names int) []step {
	list := make([]step, 40)
	for i := range list {
		list[i] = step{vm: rnd.IntN(3), name: rnd.IntN(names), release: rnd.IntN(3) == 0, shared: rnd.IntN(2) == 0}
	}
	return list
}

// TestKilledAtRandom ends the daemon in the middle of anything, with another workload
// each time.
func TestKilledAtRandom(t *testing.T) {
	rounds := randomRounds(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, binary(t))
	for i := range rounds {
		delay := time.Duration(rnd.Int64N(int64(8 * time.Millisecond)))
		if inside() {
			delay *= 10
		}
		w.steps = randomWorkload(rnd, len(w.names))
		t.Run(fmt.Sprintf("%d after %v", i, delay), func(t *testing.T) { w.round(t, "", delay, inWork) })
	}
}

// TestKilledAfterRestartInPlace is about locks that were never taken back, but stayed
// open while the program was replaced.
func TestKilledAfterRestartInPlace(t *testing.T) {
	w := newWorld(t, binary(t))
	for range 3 {
		if !w.round(t, "", 0, inPlace) {
			t.Error("it was not killed")
		}
	}
}

// TestInTheLab runs the other tests in a node, on the kernel's DLM.
func TestInTheLab(t *testing.T) {
	if inside() {
		t.Skip("this is the run in the lab")
	}
	cfg := lab.Config{Nodes: 1}
	lab.Need(t, cfg)
	self := filepath.Join(t.TempDir(), "crash.test")
	if err := lab.BuildProgram(self, "github.com/vmlockd/vmlockd/tests/crash", true); err != nil {
		t.Fatal(err)
	}
	cfg.Binaries = map[string]string{"vmlockd": lab.Build(t, vmlockd), "crash.test": self}
	l := lab.ForTest(t, cfg)
	patience := 14 * time.Minute
	if os.Getenv(roundsEnv) != "" {
		patience += time.Duration(randomRounds(t)) * 8 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	res, err := l.Node(1).Run(ctx, lab.Cmd{
		Args: []string{"crash.test", "-test.run", "TestFailPoints|TestKilled", "-test.v", "-test.timeout", (patience - time.Minute).String()},
		Env:  []string{insideEnv + "=1", lab.Env + "=", "HOME=/root", roundsEnv + "=" + os.Getenv(roundsEnv)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", summary(res.Stdout))
	if !res.OK() {
		t.Fatalf("in the node: %v", res)
	}
}

// summary is the results of the single tests, without what they logged.
func summary(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if strings.Contains(line, "--- ") || strings.HasPrefix(line, "PASS") || strings.HasPrefix(line, "FAIL") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// endedBySignal says whether a process was killed.
func endedBySignal(err error) bool {
	var e *exec.ExitError
	if err == nil || !asExit(err, &e) {
		return false
	}
	ws, ok := e.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}
