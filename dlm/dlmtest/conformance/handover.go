package conformance

import (
	"context"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
)

// replaced hands the lockspace over to another program of the same process, through bytes as a real one gets them.
func (p *process) replaced(t testing.TB) (*process, []*dlm.Lock) {
	t.Helper()
	h, err := p.Handover(p.e.ctx(t))
	must(t, err)
	must(t, p.Close(p.e.ctx(t)))
	b, err := h.MarshalBinary()
	must(t, err)
	h = &dlm.Handover{}
	must(t, h.UnmarshalBinary(b))
	ls, locks, err := dlm.Resume(p.e.ctx(t), p.k, h, dlm.Options{})
	must(t, err)
	next := &process{Lockspace: ls, e: p.e, k: p.k}
	t.Cleanup(func() { next.end(t) })
	return next, locks
}

// Locks stay what they are across a handover, and do all that locks do.
func testHandover(t *testing.T, e *env) {
	names := []string{e.name(t), e.name(t), e.name(t), e.name(t)}
	p, b := e.process(t, 1), e.process(t, 2)
	one := dlm.LVB{0: 'o'}
	ex := p.lock(t, names[0], dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true, LVB: true, Notify: true})
	must(t, ex.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	p.lock(t, names[1], dlm.PR, persistent)
	p.lock(t, names[2], dlm.EX, dlm.LockOptions{NoQueue: true}) // ends with the process, not with the program
	gone := p.lock(t, names[3], dlm.EX, persistent)
	must(t, gone.Unlock(e.ctx(t)))
	ids := []uint32{ex.ID()}

	for range 2 {
		next, locks := p.replaced(t)
		_, err := p.Lock(e.ctx(t), names[3], dlm.EX, persistent)
		wantError(t, err, dlm.ErrClosed)
		p = next
		if len(locks) != 3 {
			t.Fatalf("%d locks were handed over", len(locks))
		}
		for i, mode := range []dlm.Mode{dlm.EX, dlm.PR, dlm.EX} {
			l := locks[i]
			if l.Name() != names[i] || l.Mode() != mode || l.Persistent() != (i < 2) || l.ID() == 0 {
				t.Fatalf("lock %d is %q in %v, persistent %v, id %d", i, l.Name(), l.Mode(), l.Persistent(), l.ID())
			}
		}
		if ex = locks[0]; ex.ID() != ids[0] {
			t.Fatalf("the id was %d and is %d", ids[0], ex.ID())
		}
		if lvb, valid := ex.LVB(); lvb != one || !valid {
			t.Fatalf("the LVB is %q, %v", lvb[:4], valid)
		}
		for i, mode := range []dlm.Mode{dlm.CR, dlm.EX, dlm.CR} {
			b.held(t, names[i], mode)
		}
		// It is no orphan.
		_, err = p.Adopt(e.ctx(t), names[0], dlm.EX, persistent)
		wantError(t, err, dlm.ErrNoOrphan)
	}
	// Written, converted with notices, released.
	two := dlm.LVB{0: 't'}
	must(t, ex.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &two}))
	b.readLVB(t, names[0], two, true)
	q := b.queue(t, names[0], dlm.PR, dlm.LockOptions{}, ex)
	must(t, ex.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{}))
	must(t, q.wait(t, e))
	must(t, q.l.Unlock(e.ctx(t)))
	must(t, ex.Unlock(e.ctx(t)))
	b.free(t, names[0])

	// A notice that nobody has received is handed over too, as is one that comes in between.
	x := p.lock(t, names[0], dlm.EX, dlm.LockOptions{NoQueue: true, Notify: true})
	q = b.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return b.Lock(ctx, names[0], dlm.PR, dlm.LockOptions{}) })
	eventually(t, e, "no notice came", func() bool { return len(x.Blocking()) == 1 })
	p, locks := p.replaced(t)
	x = locks[len(locks)-1]
	q.queued(t, e, x)
	must(t, x.Unlock(e.ctx(t)))
	must(t, q.wait(t, e))
	// New locks are told from old ones.
	p.lock(t, names[3], dlm.EX, persistent)
	b.held(t, names[3], dlm.CR)
	for _, l := range locks[:len(locks)-1] {
		must(t, l.Unlock(e.ctx(t)))
	}
	b.free(t, names[1])
	b.free(t, names[2])
}

// The death of the process after a handover is the death of the program that had the locks: what is persistent is an
// orphan, what is not is gone.
func testHandoverAndDeath(t *testing.T, e *env) {
	b := e.process(t, 2)
	for _, resumed := range []bool{true, false} {
		kept, gone := e.name(t), e.name(t)
		p := e.process(t, 1)
		p.lock(t, kept, dlm.EX, persistent)
		p.lock(t, gone, dlm.EX, dlm.LockOptions{})
		if resumed {
			p, _ = p.replaced(t)
			p.kill(t)
		} else { // by a program that does not want them
			h, err := p.Handover(e.ctx(t))
			must(t, err)
			must(t, h.Discard(e.ctx(t), p.k))
		}
		b.free(t, gone)
		b.held(t, kept, dlm.CR)
		a := e.process(t, 1)
		x, err := a.Adopt(e.ctx(t), kept, dlm.EX, persistent)
		must(t, err)
		must(t, x.Unlock(e.ctx(t)))
		b.free(t, kept)
	}
}

// What cannot be resumed leaves orphans.
func testHandoverRefused(t *testing.T, e *env) {
	name := e.name(t)
	p := e.process(t, 1)
	p.lock(t, name, dlm.EX, persistent)
	h, err := p.Handover(e.ctx(t))
	must(t, err)
	other := *h
	other.Lockspace = "nosuch"
	_, _, err = dlm.Resume(e.ctx(t), p.k, &other, dlm.Options{})
	wantError(t, err, dlm.ErrNoLockspace)
	closed := *h
	closed.FD += 1 << 16 // its own is closed by now, and the process may have got the number for something else
	_, _, err = dlm.Resume(e.ctx(t), p.k, &closed, dlm.Options{})
	wantError(t, err, dlm.ErrInvalid)
	a := e.process(t, 1)
	x, err := a.Adopt(e.ctx(t), name, dlm.EX, persistent)
	must(t, err)
	must(t, x.Unlock(e.ctx(t)))
	a.free(t, name)
}
