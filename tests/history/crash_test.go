package history_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// notInRestart are the points that are not passed in a restart: no lock is asked for,
// nothing is proved, and no daemon stops in order.
var notInRestart = []string{"cluster.close.", "cluster.leave.", "cluster.lock.", "cluster.ask", "cluster.read", "cluster.prove.", "journal.intend.", "journal.grant."}

// A daemon that is killed while it takes locks back, and again, and again, at
// every point on the way: nothing is lost and nothing is left. In the journal
// there are locks of owners who live, of one who is gone, of a request that was
// granted and not answered, and of a release that was not finished.
func TestKilledDuringRestore(t *testing.T) {
	base := memoryDir(t)
	for _, name := range points() {
		t.Run(name, func(t *testing.T) {
			seen := map[string]int{}
			inBubble(t, 3, func(rt *rapid.T) { killedDuringRestore(rt, base, name, seen) })
			if slices.ContainsFunc(notInRestart, func(p string) bool { return strings.HasPrefix(name, p) }) {
				return
			}
			if seen[name] < 3 {
				t.Errorf("the daemon was killed %d times at %s", seen[name], name)
			}
		})
	}
}

func killedDuringRestore(rt *rapid.T, base, name string, seen map[string]int) {
	w := newWorld(rt, base, 2, seen)
	defer w.end()
	n := w.nodes[0]
	for pid := range int32(4) {
		n.spawn(pid + 1)
	}
	do := func(pid int32, disk string, release bool, mode locking.Mode) {
		w.ask(n.owners[pid], disk, release, mode)
		fakeclock.Wait()
		w.check()
	}
	kill := func() {
		if n.in != nil {
			n.in.die()
			n.in.bury()
		}
		pass(time.Millisecond)
	}
	killedAt := func(point string, f func()) {
		disarm := failpoint.Find(point).Arm(1, func() { n.in.dieHere(failpoint.Find(point)) })
		f()
		fakeclock.Wait()
		disarm()
		n.in.bury()
		w.check()
	}
	do(1, "a", false, locking.Exclusive)
	do(1, "b", false, locking.Shared)
	do(2, "b", false, locking.Shared)
	do(3, "c", false, locking.Exclusive)
	switch rapid.Bool().Draw(rt, "a release is under way") {
	case true:
		do(4, "d", false, locking.Exclusive)
		killedAt("cluster.unlock.before", func() { w.ask(n.owners[4], "d", true, 0) })
	case false:
		killedAt("cluster.lock.after", func() { w.ask(n.owners[4], "d", false, locking.Exclusive) })
	}
	n.spawnAgain(3)
	p := failpoint.Find(name)
	again := func() { n.start() }
	if inPlace(name) {
		again = func() { n.in.replace() }
	}
	for try := range 12 {
		if !inPlace(name) {
			kill()
		} else if n.in == nil {
			pass(time.Millisecond)
			n.start()
			w.settle() // it is replaced only when nothing is under way
		}
		disarm := p.Arm(1+try/4, func() { n.in.dieHere(p) })
		again()
		fakeclock.Wait()
		if published(p) {
			pass(publishedLater)
		}
		disarm()
		if in := n.in; in != nil && in.dead.Load() {
			in.bury()
		}
		fakeclock.Wait()
		w.check()
		// More to settle for the next one.
		if try%4 == 3 {
			kill()
			n.start()
			w.settle()
			w.check()
			do(3, "c", false, locking.Exclusive)
			do(4, "d", false, locking.Exclusive)
			killedAt("journal.releasing.after", func() { w.ask(n.owners[4], "d", true, 0) })
			n.spawnAgain(3)
		}
	}
	w.finish()
}

// spawnAgain ends an owner and gives its pid to another.
func (n *node) spawnAgain(pid int32) {
	if o := n.owners[pid]; o != nil {
		n.end(o)
	}
	n.spawn(pid)
}
