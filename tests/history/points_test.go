package history_test

import (
	"context"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// refused asks for what another node has, if there is any.
func (w *world) refused(n *node) {
	theirs := filter(w.known, func(f *fact) bool { return f.o.n != n && f.o.alive() && f.least() > 0 })
	if len(theirs) == 0 {
		w.acquire(n)
		return
	}
	w.ask(w.vm(n), draw(w, theirs, "fact").disk, false, locking.Exclusive)
}

// prove has the kernel prove the locks of an owner, as the guard does once the cluster
// is back.
func (w *world) prove(n *node) {
	in, o := n.in, w.vm(n)
	if mine := filter(w.known, func(f *fact) bool { return f.o.n == n && f.o.alive() && f.least() > 0 }); len(mine) > 0 {
		o = draw(w, mine, "fact").o
	}
	has := slices.ContainsFunc(w.known, func(f *fact) bool { return f.o == o && f.least() > 0 })
	go func() {
		err := in.locks.Prove(context.Background(), o.pid, o.StartTime())
		if has && err != nil && !in.dead.Load() {
			w.Errorf("owner %d of node %d was told that it has something, and it cannot be proved: %v", o.pid, n.id, err)
		}
	}()
}

// publishedLater is how long it takes at most until a lock is published.
const publishedLater = 2 * time.Second

// published says that a point is passed only by locks that are held for a while.
func published(p *failpoint.Point) bool { return strings.HasPrefix(p.Name(), "cluster.publish.") }

// publish lets time pass until locks that the node has are published, and now and
// then gives one back in that moment.
func (w *world) publish(n *node, nth int) {
	if rapid.Bool().Draw(w.t, "released meanwhile") && n.in != nil && !n.in.dead.Load() {
		pass(70 * time.Millisecond)
		w.release(n)
		pass(time.Duration(nth) * 10 * time.Millisecond)
	}
	pass(publishedLater)
}
