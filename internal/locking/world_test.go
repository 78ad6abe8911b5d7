package locking_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// requestTimeout is that of every world. In a bubble it passes at once.
const requestTimeout = 10 * time.Second

// tester is what a world needs of a test: a *testing.T, *testing.B or *rapid.T.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// world is a Manager with everything around it under control.
type world struct {
	t  tester
	m  *locking.Manager
	b  *locktest.Backend
	ps *locktest.Processes
	j  *locktest.Journal
	k  *locktest.Gifts

	mu     sync.Mutex // guards what follows
	events []locking.Event
	stamps map[int32]locking.Stamp // what the Witness says, by pid
	nudges int                     // how often Witness.GaveBack was called
	later  int                     // as Options.Later was told last; negative when all were settled
}

func newWorld(t tester) *world {
	w := &world{t: t, stamps: map[int32]locking.Stamp{}, b: locktest.NewBackend(t), ps: locktest.NewProcesses(t), j: locktest.NewJournal(t), k: locktest.NewGifts(t)}
	w.m = locking.New(locking.Options{
		Backend:        w.b,
		Processes:      w.ps,
		Journal:        w.j,
		Witness:        witness{w},
		Gifts:          w.k,
		RequestTimeout: requestTimeout,
		Later: func(n int, why error, _ time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.later = n; why == nil {
				w.later = -n
			}
		},
		Observe: func(e locking.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if age := time.Since(e.Time); age < 0 || age > requestTimeout {
				w.t.Errorf("an event of kind %d is told as of %v ago", e.Kind, age)
			}
			w.events = append(w.events, e)
		},
	})
	for _, name := range []string{"a", "b", "c"} {
		w.b.Point(disk(name), "id-"+name)
	}
	return w
}

// witness knows nothing of an owner before written.
type witness struct{ *world }

func (w witness) Stamp(o locking.Owner) locking.Stamp {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stamps[o.PID]
}

func (w witness) GaveBack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nudges++
}

// written makes another version of what is known of an owner.
func (w *world) written(pid int32) locking.Stamp {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stamps[pid]
	s.Inode++
	w.stamps[pid] = s
	return s
}

// known says whether anything is.
func (w *world) known(pid int32) bool {
	return witness{w}.Stamp(locking.Owner{PID: pid}) != locking.Stamp{}
}

// inWorld runs a test with a clock of its own, in which nothing is left behind.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.abandon() // a test that failed is not to hang
		f(t, w)
		w.close()
	})
}

// disk is a name in the default lockspace.
func disk(name string) locking.Ref { return locking.Ref{Name: name} }

// vm is an owner with a process that runs.
func (w *world) vm(pid int32) (*locking.Registration, *locktest.Process) {
	w.t.Helper()
	p := w.ps.Start(pid)
	return w.register(pid), p
}

func (w *world) register(pid int32) *locking.Registration {
	w.t.Helper()
	g, err := w.m.Register(locking.Owner{PID: pid, ID: 1, Name: "vm"})
	if err != nil {
		w.t.Fatalf("register %d: %v", pid, err)
	}
	return g
}

// acquire must succeed.
func (w *world) acquire(g *locking.Registration, ref locking.Ref, mode locking.Mode) {
	w.t.Helper()
	if err := g.Acquire(context.Background(), ref, mode, false); err != nil {
		w.t.Fatalf("acquire %v by %d: %v", ref, g.Owner().PID, err)
	}
}

// release must succeed.
func (w *world) release(g *locking.Registration, ref locking.Ref) {
	w.t.Helper()
	if err := g.Release(context.Background(), ref); err != nil {
		w.t.Fatalf("release %v by %d: %v", ref, g.Owner().PID, err)
	}
}

// refused checks the kind of an error.
func (w *world) refused(err error, want locking.Kind) *locking.Error {
	w.t.Helper()
	e, ok := err.(*locking.Error)
	if !ok {
		w.t.Fatalf("got %v (%T), want an *Error", err, err)
	}
	if e.Kind != want {
		w.t.Fatalf("got %q of kind %d, want kind %d", e, e.Kind, want)
	}
	return e
}

// holders checks who holds what: pids, oldest first within a name.
func (w *world) holders(ref locking.Ref, want ...int32) {
	w.t.Helper()
	var got []int32
	for _, h := range w.m.Holders() {
		if h.Ref == ref {
			got = append(got, h.Owner.PID)
		}
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("holders of %v: %v, want %v", ref, got, want)
	}
}

// told returns the kinds of events since the last call.
func (w *world) told() []locking.EventKind {
	w.mu.Lock()
	defer w.mu.Unlock()
	var kinds []locking.EventKind
	for _, e := range w.events {
		kinds = append(kinds, e.Kind)
	}
	w.events = nil
	return kinds
}

// first is the first event since told was called.
func (w *world) first() locking.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == 0 {
		return locking.Event{}
	}
	return w.events[0]
}

func (w *world) toldIs(want ...locking.EventKind) {
	w.t.Helper()
	if got := w.told(); !slices.Equal(got, want) {
		w.t.Fatalf("observed %v, want %v", got, want)
	}
}

// empty checks that nothing is held and nothing is left.
func (w *world) empty() {
	w.t.Helper()
	w.check()
	if s := w.m.Sizes(); s != (locking.Sizes{}) {
		w.t.Errorf("tables are not empty: %+v", s)
	}
	w.b.CheckQuiet(nil)
	if list := w.j.Entries(); len(list) != 0 {
		w.t.Errorf("left in the journal: %+v", list)
	}
	if list := w.k.Kept(); len(list) != 0 {
		w.t.Errorf("left of what was given back: %+v", list)
	}
	if n := w.ps.Watched(); n != 0 {
		w.t.Errorf("%d processes are still watched", n)
	}
}

func (w *world) check() {
	w.t.Helper()
	if err := w.m.Check(); err != nil {
		w.t.Fatalf("the tables: %v", err)
	}
	gifts, kept := w.m.GivenBack(), w.k.Kept()
	for _, g := range gifts {
		if !slices.ContainsFunc(kept, func(k locking.Kept) bool {
			return k.Owner == g.Owner && k.Ref == g.Ref && k.Mode == g.Mode && k.Stamp == g.Stamp
		}) {
			w.t.Errorf("%+v is not kept as it is: %+v", g, kept)
		}
	}
	if n := len(gifts) + w.m.TakenAgain(); n != len(kept) {
		w.t.Errorf("%d are given back or taken again, and what is kept is %+v", n, kept)
	}
}

// close ends the Manager, and checks that this releases nothing and ends all
// of its work.
func (w *world) close() {
	w.t.Helper()
	w.check()
	before := w.b.Locked()
	if err := w.m.Close(context.Background()); err != nil {
		w.t.Errorf("close: %v", err)
	}
	w.b.CheckQuiet(before)
	if n := w.ps.Watched(); n != 0 {
		w.t.Errorf("%d processes are still watched after Close", n)
	}
}

// abandon lets everything end that waits.
func (w *world) abandon() {
	w.b.OpenAll()
	_ = w.m.Close(context.Background())
}

// start runs f in the background; the channel gets its error.
func start(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// pending fails if a call that must wait has ended.
func (w *world) pending(done <-chan error) {
	w.t.Helper()
	select {
	case err := <-done:
		w.t.Fatalf("the call has ended, with %v; it must wait", err)
	default:
	}
}

var errIO = errors.New("input/output error")

// settle waits until everything that can happen by itself has happened.
func settle() { fakeclock.Wait() }

// advance lets time pass in a bubble.
func advance(d time.Duration) {
	<-time.After(d)
	fakeclock.Wait()
}
