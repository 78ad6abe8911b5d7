package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

// table is who has what, as far as the callers of package dlm were told. Incompatible entries are what must never be.
type table struct {
	mu   sync.Mutex // guards held
	held map[string]map[*dlm.Lock]dlm.Mode
}

// set notes that l has mode m, and returns an error if somebody else has what excludes that.
func (b *table) set(l *dlm.Lock, m dlm.Mode) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	locks := b.held[l.Name()]
	if locks == nil {
		locks = map[*dlm.Lock]dlm.Mode{}
		b.held[l.Name()] = locks
	}
	locks[l] = m
	for o, om := range locks {
		if o != l && !m.Compatible(om) {
			return fmt.Errorf("%q is had in %v and in %v at the same time", l.Name(), m, om)
		}
	}
	return nil
}

func (b *table) drop(l *dlm.Lock) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.held[l.Name()], l)
}

// worker does random things to few resources, with contexts that end at bad moments.
type worker struct {
	p     *process
	rnd   *rand.Rand
	names []string
	table *table
	pace  time.Duration // of a request that need not wait
	tally *tally
}

// tally counts what happened, so that a test can see that it was not always the same.
type tally struct {
	granted, refused, gaveUp, converted atomic.Int64
}

// never is what has not happened.
func (c *tally) never() (list []string) {
	for _, k := range []struct {
		n    *atomic.Int64
		what string
	}{{&c.granted, "granted"}, {&c.converted, "converted"}, {&c.refused, "refused"}, {&c.gaveUp, "given up"}} {
		if k.n.Load() == 0 {
			list = append(list, k.what)
		}
	}
	return list
}

func (w *worker) context(t testing.TB) (context.Context, context.CancelFunc) {
	if w.rnd.IntN(3) == 0 {
		return context.WithTimeout(w.p.e.ctx(t), time.Duration(w.rnd.Int64N(int64(5*w.pace))))
	}
	return context.WithTimeout(w.p.e.ctx(t), 100*w.pace)
}

func (w *worker) mode() dlm.Mode {
	return []dlm.Mode{dlm.CR, dlm.PR, dlm.PR, dlm.EX, dlm.EX, dlm.NL}[w.rnd.IntN(6)]
}

// round is a lock, some conversions, a release.
func (w *worker) round(t testing.TB) error {
	ctx, cancel := w.context(t)
	defer cancel()
	mode := w.mode()
	l, err := w.p.Lock(ctx, w.names[w.rnd.IntN(len(w.names))], mode, dlm.LockOptions{
		NoQueue: w.rnd.IntN(2) == 0, Persistent: w.rnd.IntN(2) == 0, LVB: w.rnd.IntN(3) == 0, Notify: w.rnd.IntN(3) == 0,
	})
	switch {
	case errors.Is(err, dlm.ErrBusy):
		w.tally.refused.Add(1)
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		w.tally.gaveUp.Add(1)
		return nil
	case err != nil:
		return err
	}
	w.tally.granted.Add(1)
	if err := w.table.set(l, mode); err != nil {
		return err
	}
	for range w.rnd.IntN(3) {
		if err := w.convert(t, l); err != nil {
			return err
		}
	}
	w.table.drop(l)
	ctx, cancel = w.context(t)
	defer cancel()
	if err := l.Unlock(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (w *worker) convert(t testing.TB, l *dlm.Lock) error {
	ctx, cancel := w.context(t)
	defer cancel()
	to := w.mode()
	if to < l.Mode() { // what is given away is so from the call on
		if err := w.table.set(l, to); err != nil {
			return err
		}
	}
	var opts dlm.ConvertOptions
	opts.NoQueue = w.rnd.IntN(2) == 0
	if l.Mode() == dlm.EX && w.rnd.IntN(2) == 0 {
		opts.WriteLVB = &dlm.LVB{0: byte(w.rnd.IntN(256))}
	}
	err := l.Convert(ctx, to, opts)
	switch {
	case err == nil:
		w.tally.converted.Add(1)
	case errors.Is(err, context.DeadlineExceeded):
		w.tally.gaveUp.Add(1)
	case errors.Is(err, dlm.ErrBusy), errors.Is(err, dlm.ErrDeadlock):
		w.tally.refused.Add(1)
	default:
		return err
	}
	mode, err := l.Settle(w.p.e.ctx(t))
	if err != nil {
		return err
	}
	return w.table.set(l, mode)
}

// Whatever several processes on all nodes do, no two have what excludes each other, and at the end nothing is left.
func testStorm(t *testing.T, e *env) {
	const perNode = 3
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	table := &table{held: map[string]map[*dlm.Lock]dlm.Mode{}}
	names := []string{e.name(t), e.name(t), e.name(t)}
	begin := time.Now()
	e.process(t, len(e.Kernels)).free(t, e.name(t))
	pace := max(time.Since(begin), 500*time.Microsecond)
	var workers []*worker
	var sum tally
	for i := range perNode * len(e.Kernels) {
		workers = append(workers, &worker{
			p: e.process(t, i+1), rnd: rand.New(rand.NewPCG(seed, uint64(i))), names: names, table: table, pace: pace, tally: &sum,
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), e.Storm)
	defer cancel()
	late := e.ctx(t) // a slow machine may need more until everything has happened
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() {
			for ctx.Err() == nil || late.Err() == nil && len(sum.never()) > 0 {
				if err := w.round(t); err != nil {
					t.Errorf("%v (%v)", err, errnoOf(err))
					return
				}
			}
		})
	}
	wg.Wait()
	for _, w := range workers {
		w.p.settled(t)
		s := w.p.Stats()
		if s.Locks != 0 {
			t.Errorf("%d locks are left", s.Locks)
		}
		if s.Stray != 0 {
			t.Errorf("%d results came for locks that had ended", s.Stray)
		}
	}
	t.Logf("%d granted, %d converted, %d refused, %d given up", sum.granted.Load(), sum.converted.Load(), sum.refused.Load(), sum.gaveUp.Load())
	for _, what := range sum.never() {
		t.Errorf("nothing was %s: this was no storm", what)
	}
	for _, name := range names {
		workers[0].p.free(t, name)
	}
}

func errnoOf(err error) any {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return int(errno)
	}
	return "no errno"
}
