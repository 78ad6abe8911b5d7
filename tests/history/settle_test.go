package history_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// late are points that are passed when the answer to a request comes after its daemon
// has ended, and settling those when an operator settles what a lost journal leaves.
var (
	late     = []string{"cluster.adoptlate.", "cluster.lateend.", "cluster.adoptdue."}
	settling = []string{"cluster.drop.", "cluster.purge."}
)

// pointsOf lists the points that begin so.
func pointsOf(prefixes []string) (list []string) {
	for _, name := range failpoint.Names() {
		for _, p := range prefixes {
			if strings.HasPrefix(name, p) {
				list = append(list, name)
			}
		}
	}
	return list
}

// killedTwice kills the daemon of n at a point, while again is done to it, and once
// more while the next one does the same. Each then starts anew.
func killedTwice(t *rapid.T, n *node, name string, again func()) {
	p := failpoint.Find(name)
	for range 2 {
		disarm := p.Arm(1, func() { n.in.dieHere(p) })
		again()
		fakeclock.Wait()
		disarm()
		if in := n.in; in != nil && in.dead.Load() {
			in.bury()
		}
		pass(time.Millisecond)
	}
}

// The daemon is killed with a request under way, and the next ones while they wait for
// the answer to it, or give back what it was granted.
func TestKilledWhileAnswerIsLate(t *testing.T) {
	base := memoryDir(t)
	for _, name := range pointsOf(late) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]int{}
			inBubble(t, 6, func(rt *rapid.T) {
				w := newWorld(rt, base, 2, seen)
				defer w.end()
				lateAnswer(rt, w, name)
				w.finish()
			})
			if seen[name] < 6 {
				t.Errorf("the daemon was killed %d times at %s", seen[name], name)
			}
		})
	}
}

func lateAnswer(rt *rapid.T, w *world, name string) {
	n, other := w.nodes[0], w.nodes[1]
	n.spawn(1)
	n.spawn(2)
	other.spawn(1)
	w.ask(n.owners[2], "b", false, locking.Exclusive)
	w.ask(other.owners[1], "a", false, locking.Exclusive)
	fakeclock.Wait()
	w.check()
	// All that is asked about the disk has its answer late, or only the first request.
	all := rapid.Bool().Draw(rt, "the later ones too")
	g, first := dlmtest.NewGate(), true
	w.gates = append(w.gates, g)
	w.c.Node(n.id).SetFault(func(op dlmtest.Op) (f dlmtest.Fault) {
		if op.Op == "lock" && op.Name == resource("a") && (first || all) {
			f.Result, first = g, false
		}
		return f
	})
	w.ask(n.owners[1], "a", false, locking.Exclusive)
	fakeclock.Wait()
	n.in.die()
	n.in.bury()
	fakeclock.Wait()
	killedTwice(rt, n, name, func() {
		if n.in == nil {
			n.start()
		}
		pass(2 * time.Second) // longer than a start waits for the answer
		if all {
			g.Open()
		}
		pass(2 * time.Second)
	})
	if n.in == nil {
		n.start()
	}
	w.settle()
	w.check()
}

// The journal is lost. What the kernel has is given back when an operator says that
// nothing uses it, wherever the daemon is killed meanwhile, and what was granted since
// then stays.
func TestKilledWhileSettling(t *testing.T) {
	base := memoryDir(t)
	for _, name := range pointsOf(settling) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]int{}
			inBubble(t, 6, func(rt *rapid.T) {
				w := newWorld(rt, base, 2, seen)
				defer w.end()
				settleDoubt(rt, w, name)
				w.finish()
			})
			if seen[name] < 6 {
				t.Errorf("the daemon was killed %d times at %s", seen[name], name)
			}
		})
	}
}

func settleDoubt(rt *rapid.T, w *world, name string) {
	n := w.nodes[0]
	for pid := range int32(3) {
		n.spawn(pid + 1)
	}
	w.ask(n.owners[1], "a", false, locking.Exclusive)
	w.ask(n.owners[2], "b", false, locking.Shared)
	fakeclock.Wait()
	w.check()
	// What was handed over is known by name; orphans only to the kernel.
	handed := strings.HasPrefix(name, "cluster.drop.") || rapid.Bool().Draw(rt, "handed over")
	n.journalLost = true
	if handed {
		n.in.replace()
	} else {
		n.in.die()
		n.in.bury()
		pass(time.Millisecond)
		n.start()
	}
	for _, disk := range []string{"a", "b"} {
		if len(w.inKernel(disk)[n.id]) != 1 {
			w.Errorf("the journal was lost, and with it %s in the kernel", disk)
		}
	}
	n.end(n.owners[1])
	n.end(n.owners[2])
	w.ask(n.owners[3], "c", false, locking.Exclusive)
	fakeclock.Wait()
	settle := func() {
		if n.in == nil {
			n.start()
		}
		in, done := n.in, make(chan struct{})
		go func() {
			defer close(done)
			_, err := in.backend.DropOthers(context.Background())
			if err != nil && !in.dead.Load() && !errors.Is(err, errDead) {
				w.Errorf("settle: %v", err)
			}
		}()
		<-done
	}
	killedTwice(rt, n, name, settle)
	settle()
	fakeclock.Wait()
	w.check() // also that nothing but c is left in the kernel
	if held := w.inKernel("c")[n.id]; len(held) != 1 {
		w.Errorf("what was granted meanwhile is gone: %v", held)
	}
	w.check()
}
