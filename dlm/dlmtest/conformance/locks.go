package conformance

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

func testModes(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	for held := dlm.NL; held <= dlm.EX; held++ {
		for asked := dlm.NL; asked <= dlm.EX; asked++ {
			name := e.name(t)
			l := a.lock(t, name, held, dlm.LockOptions{})
			o, err := b.Lock(e.ctx(t), name, asked, dlm.LockOptions{NoQueue: true})
			if held.Compatible(asked) {
				must(t, err)
				must(t, o.Unlock(e.ctx(t)))
			} else {
				wantError(t, err, dlm.ErrBusy)
			}
			must(t, l.Unlock(e.ctx(t)))
			wantError(t, l.Unlock(e.ctx(t)), dlm.ErrUnlocked)
		}
	}
}

func testOrder(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	holder := a.lock(t, name, dlm.PR, dlm.LockOptions{Notify: true})
	first := b.queue(t, name, dlm.EX, dlm.LockOptions{}, holder)
	// This one would be compatible with what is held, but it came later.
	second := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return a.Lock(ctx, name, dlm.PR, dlm.LockOptions{}) })
	_, err := a.Lock(e.ctx(t), name, dlm.PR, dlm.LockOptions{NoQueue: true})
	wantError(t, err, dlm.ErrBusy)
	must(t, holder.Unlock(e.ctx(t)))
	must(t, first.wait(t, e))
	select {
	case <-second.done:
		t.Fatalf("a later request was granted beside an exclusive lock: %v", second.err)
	default:
	}
	must(t, first.l.Unlock(e.ctx(t)))
	must(t, second.wait(t, e))
}

func testNoQueue(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	x := a.lock(t, name, dlm.PR, dlm.LockOptions{NoQueue: true})
	y := b.lock(t, name, dlm.PR, dlm.LockOptions{NoQueue: true})
	wantError(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{NoQueue: true}), dlm.ErrBusy)
	if m := x.Mode(); m != dlm.PR {
		t.Fatalf("after a refused conversion the mode is %v", m)
	}
	must(t, y.Unlock(e.ctx(t)))
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{NoQueue: true}))
	b.held(t, name, dlm.CR)
}

func testContextEnds(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	for _, opts := range []dlm.LockOptions{{}, {LVB: true}, {Notify: true}} {
		name := e.name(t)
		holder := a.lock(t, name, dlm.EX, dlm.LockOptions{Notify: true})
		q := b.queue(t, name, dlm.EX, opts, holder)
		q.cancel()
		wantError(t, q.wait(t, e), context.Canceled)
		b.settled(t)
		must(t, holder.Unlock(e.ctx(t)))
		if l, err := a.Lock(e.ctx(t), name, dlm.EX, dlm.LockOptions{NoQueue: true}); err != nil {
			t.Fatalf("a request that was given up has left something: %v", err)
		} else {
			must(t, l.Unlock(e.ctx(t)))
		}
	}
	// At no moment, however badly chosen, is anything left.
	name := e.name(t)
	for i := range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*20*time.Microsecond)
		if l, err := b.Lock(ctx, name, dlm.EX, dlm.LockOptions{NoQueue: i%2 == 0}); err == nil {
			must(t, l.Unlock(e.ctx(t)))
		}
		cancel()
	}
	b.settled(t)
	if n := b.Stats().Locks; n != 0 {
		t.Fatalf("%d locks are left", n)
	}
	a.free(t, name)
}

func testConvert(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	x := a.lock(t, name, dlm.PR, dlm.LockOptions{})
	y := b.lock(t, name, dlm.PR, dlm.LockOptions{Notify: true})
	q := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return nil, x.Convert(ctx, dlm.EX, dlm.ConvertOptions{}) })
	q.queued(t, e, y)
	must(t, y.Convert(e.ctx(t), dlm.NL, dlm.ConvertOptions{}))
	must(t, q.wait(t, e))
	if x.Mode() != dlm.EX || y.Mode() != dlm.NL {
		t.Fatalf("modes are %v and %v", x.Mode(), y.Mode())
	}
	for m := dlm.EX; ; m-- { // down is always granted
		must(t, x.Convert(e.ctx(t), m, dlm.ConvertOptions{}))
		if m == dlm.NL {
			break
		}
	}
	must(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{NoQueue: true}))
	wantError(t, x.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{ReadLVB: true, NoQueue: true}), dlm.ErrBusy)
	wantError(t, x.Convert(e.ctx(t), 9, dlm.ConvertOptions{}), dlm.ErrInvalid)
}

func testConvertCancel(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	for i, end := range []func(x *dlm.Lock, q *pending){
		func(x *dlm.Lock, q *pending) { must(t, x.Cancel(e.ctx(t))) },
		func(x *dlm.Lock, q *pending) { q.cancel() },
	} {
		name := e.name(t)
		x := a.lock(t, name, dlm.PR, dlm.LockOptions{})
		y := b.lock(t, name, dlm.PR, dlm.LockOptions{Notify: true})
		for range 3 { // a canceled lock is as good as new
			q := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) {
				return nil, x.Convert(ctx, dlm.EX, dlm.ConvertOptions{})
			})
			q.queued(t, e, y)
			end(x, q)
			want := []error{dlm.ErrCanceled, context.Canceled}[i]
			wantError(t, q.wait(t, e), want)
			m, err := x.Settle(e.ctx(t))
			must(t, err)
			if m != dlm.PR {
				t.Fatalf("after the cancel the mode is %v", m)
			}
			b.lock(t, name, dlm.CR, dlm.LockOptions{NoQueue: true})
			must(t, y.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{})) // the kernel sends one notice between two grants
		}
		must(t, x.Cancel(e.ctx(t))) // nothing to cancel
		must(t, y.Unlock(e.ctx(t)))
		must(t, x.Convert(e.ctx(t), dlm.PW, dlm.ConvertOptions{}))
	}
}

func testDeadlock(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	x := a.lock(t, name, dlm.PR, dlm.LockOptions{})
	y := b.lock(t, name, dlm.PR, dlm.LockOptions{Notify: true})
	q := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return nil, x.Convert(ctx, dlm.EX, dlm.ConvertOptions{}) })
	q.queued(t, e, y)
	wantError(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{}), dlm.ErrDeadlock)
	if y.Mode() != dlm.PR {
		t.Fatalf("after the refusal the mode is %v", y.Mode())
	}
	must(t, y.Unlock(e.ctx(t)))
	must(t, q.wait(t, e))
}

func testUnlockWhileConverting(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	x := a.lock(t, name, dlm.PR, dlm.LockOptions{})
	y := b.lock(t, name, dlm.PR, dlm.LockOptions{Notify: true})
	q := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return nil, x.Convert(ctx, dlm.EX, dlm.ConvertOptions{}) })
	q.queued(t, e, y)
	must(t, x.Unlock(e.ctx(t)))
	wantError(t, q.wait(t, e), dlm.ErrUnlocked)
	must(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{NoQueue: true}))
}

func testBlocking(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	x := a.lock(t, name, dlm.EX, dlm.LockOptions{Notify: true})
	b.held(t, name, dlm.PR) // which sends no notice
	q := b.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return b.Lock(ctx, name, dlm.PR, dlm.LockOptions{}) })
	select {
	case m := <-x.Blocking():
		if m != dlm.PR {
			t.Fatalf("the notice is for %v", m)
		}
	case <-time.After(e.Patience):
		t.Fatal("no notice")
	}
	must(t, x.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{})) // Notify lasts over a conversion
	must(t, q.wait(t, e))
	r := b.begin(t, func(ctx context.Context) (*dlm.Lock, error) {
		return nil, q.l.Convert(ctx, dlm.EX, dlm.ConvertOptions{})
	})
	r.queued(t, e, x)
	must(t, x.Unlock(e.ctx(t)))
	must(t, r.wait(t, e))
	if _, ok := <-x.Blocking(); ok {
		t.Fatal("a notice for a lock that is no more")
	}
	if x := a.lock(t, e.name(t), dlm.NL, dlm.LockOptions{}); x.Blocking() != nil {
		t.Fatal("a channel nobody asked for")
	}
}

func testNullIsNeverQueued(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	x := a.lock(t, name, dlm.EX, dlm.LockOptions{Notify: true})
	b.queue(t, name, dlm.EX, dlm.LockOptions{}, x)
	b.lock(t, name, dlm.NL, dlm.LockOptions{})
	b.lock(t, name, dlm.NL, dlm.LockOptions{NoQueue: true})
}

func testDeathReleases(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	held, asked := e.name(t), e.name(t)
	a.lock(t, held, dlm.EX, dlm.LockOptions{})
	x := b.lock(t, asked, dlm.EX, dlm.LockOptions{Notify: true})
	a.queue(t, asked, dlm.EX, dlm.LockOptions{}, x)
	a.kill(t)
	b.free(t, held)
	must(t, x.Unlock(e.ctx(t)))
	b.free(t, asked)
}

func testTwoNodesRace(t *testing.T, e *env) {
	const rounds = 30
	procs := make([]*process, len(e.Kernels))
	for i := range procs {
		procs[i] = e.process(t, i+1)
	}
	winners := 0
	for round := range rounds {
		name := fmt.Sprint(e.name(t), round%3)
		all := make([]*pending, len(procs))
		for i, p := range procs {
			all[i] = p.begin(t, func(ctx context.Context) (*dlm.Lock, error) {
				return p.Lock(ctx, name, dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
			})
		}
		var won []*dlm.Lock
		for _, q := range all {
			if err := q.wait(t, e); err == nil {
				won = append(won, q.l)
			} else {
				wantError(t, err, dlm.ErrBusy)
			}
		}
		if len(won) > 1 {
			t.Fatalf("%d nodes have an exclusive lock", len(won))
		}
		winners += len(won)
		for _, l := range won {
			must(t, l.Unlock(e.ctx(t)))
		}
	}
	// All may be refused now and then, each for what another has asked for a moment
	// before; but not always.
	if winners == 0 {
		t.Errorf("nobody got the lock in %d rounds", rounds)
	}
}
