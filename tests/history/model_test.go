package history_test

import (
	"context"
	"errors"
	"slices"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// call is a request of a client.
type call struct {
	in       *instance
	f        *fact
	release  bool
	mode     locking.Mode
	alone    bool          // no other call was about the same
	done     chan struct{} // closed when it has ended, with or without an answer
	answered bool
	err      error
}

// fact finds or makes what is known of an owner's use of a disk.
func (w *world) fact(o *owner, disk string) *fact {
	for _, f := range w.known {
		if f.o == o && f.disk == disk {
			return f
		}
	}
	f := &fact{o: o, disk: disk}
	w.known = append(w.known, f)
	return f
}

// ask makes a request. It may have ended when ask returns, or not.
func (w *world) ask(o *owner, disk string, release bool, mode locking.Mode) {
	c := &call{in: o.n.in, f: w.fact(o, disk), release: release, mode: mode, done: make(chan struct{})}
	c.alone = c.f.underway == 0
	for _, other := range w.calls {
		other.alone = other.alone && other.f != c.f
	}
	c.f.underway++
	if release {
		c.f.releasing++
	} else {
		c.f.acquiring++
		c.f.maybeMixed = c.f.maybeMixed || c.f.shared != (mode == locking.Shared)
	}
	w.calls = append(w.calls, c)
	go func() {
		defer close(c.done)
		err := c.in.request(c)
		if !c.in.dead.Load() {
			c.answered, c.err = true, err
		}
	}()
}

func (in *instance) request(c *call) error {
	g, err := in.locks.Register(locking.Owner{PID: c.f.o.pid, ID: c.f.o.id, Name: "vm"})
	if err != nil {
		return err
	}
	defer g.Close()
	if c.release {
		return g.Release(context.Background(), ref(c.f.disk))
	}
	return g.Acquire(context.Background(), ref(c.f.disk), c.mode, false)
}

// collect takes in the answers that have come.
func (w *world) collect() {
	w.calls = filter(w.calls, func(c *call) bool {
		select {
		case <-c.done:
			w.answer(c)
			return false
		default:
			return true
		}
	})
}

func (w *world) answer(c *call) {
	f := c.f
	f.underway--
	var e *locking.Error
	switch {
	case !c.answered:
		w.saw("no answer", 1)
	case c.err != nil && !errors.As(c.err, &e):
		w.Errorf("an error of a strange type: %v", c.err)
	case c.release && c.err == nil:
		f.releasing--
		if f.granted > 0 {
			f.granted--
		} else {
			f.acquiring--
		}
	case c.release && e.Kind == locking.KindUnavailable:
		w.saw("release in doubt", 1)
	case c.release:
		f.releasing--
		if f.least() > 0 && f.o.alive() && c.alone {
			w.Errorf("owner %d of node %d was told that it has %s, and cannot release it: %v", f.o.pid, f.o.n.id, f.disk, c.err)
		}
	case c.err == nil:
		w.saw("granted", 1)
		f.acquiring--
		f.granted++
		f.shared = c.mode == locking.Shared
	default:
		if e.Kind == locking.KindUnavailable {
			w.saw("refused in doubt", 1)
		}
		f.acquiring--
	}
}

// check compares what clients know with what the daemons and the kernels say.
func (w *world) check() {
	w.collect()
	for _, f := range w.known {
		w.checkFact(f)
	}
	for _, disk := range disks {
		w.checkDisk(disk)
	}
	for _, n := range w.nodes {
		if n.in != nil {
			w.checkHolders(n)
		}
	}
	w.resolve()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != "" {
		w.t.Fatal(w.failed)
	}
}

// held is how often the daemon says that the owner has the disk.
func (f *fact) held() int {
	n := 0
	for _, h := range f.o.n.in.locks.Holders() {
		if h.Owner.ID == f.o.id && h.Ref == ref(f.disk) {
			n++
		}
	}
	return n
}

func (w *world) checkFact(f *fact) {
	n := f.o.n
	if f.least() > 0 && (f.o.alive() || n.in == nil) {
		want := dlm.EX
		if f.shared {
			want = dlm.PR
		}
		if got := w.inKernel(f.disk)[n.id]; !slices.Contains(got, want) {
			w.Errorf("owner %d of node %d was told that it has %s, and node %d has locks %v on it", f.o.pid, n.id, f.disk, n.id, got)
		}
	}
	if n.in == nil {
		return
	}
	switch held := f.held(); {
	case f.o.alive() && (held < f.least() || held > f.most()):
		w.Errorf("owner %d of node %d has %s %d times, and by what it was told from %d to %d", f.o.pid, n.id, f.disk, held, f.least(), f.most())
	case !f.o.alive() && w.quiet() && held > 0:
		w.Errorf("owner %d of node %d is gone and still has %s", f.o.pid, n.id, f.disk)
	}
}

func (w *world) checkDisk(disk string) {
	// Never two, unless both share it.
	var certain []*fact
	for _, f := range w.known {
		if f.disk == disk && f.least() > 0 && f.o.alive() {
			certain = append(certain, f)
		}
	}
	for _, f := range certain {
		if !f.shared && len(certain) > 1 {
			w.Errorf("%d owners have %s, and owner %d of node %d has it exclusively", len(certain), disk, f.o.pid, f.o.n.id)
		}
	}
	if !w.quiet() {
		return
	}
	kernel := w.inKernel(disk)
	for _, n := range w.nodes {
		if n.in == nil {
			continue
		}
		want := 0
		for _, h := range n.in.locks.Holders() {
			if h.Ref == ref(disk) {
				want = 1
			}
		}
		if got := kernel[n.id]; len(got) != want {
			w.Errorf("node %d has locks %v on %s, and its daemon knows of %d", n.id, got, disk, want)
		}
	}
}

// checkHolders sees that somebody asked for all that is held.
func (w *world) checkHolders(n *node) {
	for _, h := range n.in.locks.Holders() {
		if !slices.ContainsFunc(w.known, func(f *fact) bool {
			return f.o.n == n && f.o.id == h.Owner.ID && ref(f.disk) == h.Ref && f.most() > 0
		}) {
			w.Errorf("node %d says that %v, and nobody knows of that", n.id, h)
		}
	}
}

// resolve makes certain what a client can find out.
func (w *world) resolve() {
	w.known = filter(w.known, func(f *fact) bool {
		if f.o.n.in == nil || f.underway > 0 {
			return true
		}
		held := f.held()
		for _, h := range f.o.n.in.locks.Holders() {
			if h.Owner.ID == f.o.id && h.Ref == ref(f.disk) {
				if f.granted > 0 && !f.maybeMixed && f.shared != (h.Mode == locking.Shared) {
					w.Errorf("%v, and its owner was told another mode", h)
				}
				f.shared = h.Mode == locking.Shared
			}
		}
		f.granted, f.acquiring, f.releasing, f.maybeMixed = held, 0, 0, false
		if !f.o.alive() {
			f.releasing = held // it is being released
		}
		return held > 0
	})
}
