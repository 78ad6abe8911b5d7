package conformance

import (
	"context"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
)

var persistent = dlm.LockOptions{NoQueue: true, Persistent: true}

// orphan makes a lock that is left by its process on node 1.
func (e *env) orphan(t testing.TB, name string, mode dlm.Mode) {
	t.Helper()
	p := e.process(t, 1)
	p.lock(t, name, mode, persistent)
	p.kill(t)
}

func testOrphans(t *testing.T, e *env) {
	name := e.name(t)
	e.orphan(t, name, dlm.EX)
	a, b := e.process(t, 1), e.process(t, 2)
	b.held(t, name, dlm.CR)
	a.held(t, name, dlm.CR)

	_, err := a.Adopt(e.ctx(t), e.name(t), dlm.EX, persistent)
	wantError(t, err, dlm.ErrNoOrphan)
	_, err = a.Adopt(e.ctx(t), name, dlm.PR, persistent)
	wantError(t, err, dlm.ErrOtherMode)
	if len(e.Kernels) > 1 {
		_, err = b.Adopt(e.ctx(t), name, dlm.EX, persistent)
		wantError(t, err, dlm.ErrNoOrphan) // another node's orphans are out of reach
	}
	x, err := a.Adopt(e.ctx(t), name, dlm.EX, dlm.LockOptions{Persistent: true, Notify: true})
	must(t, err)
	if x.Mode() != dlm.EX || x.ID() == 0 || x.Name() != name {
		t.Fatalf("the adopted lock is %v %d of %q", x.Mode(), x.ID(), x.Name())
	}
	b.held(t, name, dlm.CR)
	_, err = a.Adopt(e.ctx(t), name, dlm.EX, persistent)
	wantError(t, err, dlm.ErrNoOrphan) // it is one no more

	// It does all that a lock does.
	one := dlm.LVB{0: 'o'}
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	b.readLVB(t, name, one, true)
	q := b.queue(t, name, dlm.PR, dlm.LockOptions{}, x)
	must(t, x.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{}))
	must(t, q.wait(t, e))
	must(t, q.l.Unlock(e.ctx(t)))

	// And again, in the mode it has now.
	a.kill(t)
	b.held(t, name, dlm.EX)
	c := e.process(t, 1)
	_, err = c.Adopt(e.ctx(t), name, dlm.EX, persistent)
	wantError(t, err, dlm.ErrOtherMode)
	x, err = c.Adopt(e.ctx(t), name, dlm.PR, persistent)
	must(t, err)
	must(t, x.Unlock(e.ctx(t)))
	b.free(t, name)
}

func testOrphansOldestFirst(t *testing.T, e *env) {
	name := e.name(t)
	p := e.process(t, 1)
	var ids []uint32
	for range 5 {
		ids = append(ids, p.lock(t, name, dlm.PR, persistent).ID())
	}
	p.kill(t)
	a := e.process(t, 1)
	adoptions := make([]dlm.Adoption, len(ids)+1)
	for i := range adoptions {
		adoptions[i] = dlm.Adoption{Name: name, Mode: dlm.PR}
	}
	for i, r := range a.AdoptAll(e.ctx(t), adoptions) {
		if i == len(ids) {
			wantError(t, r.Err, dlm.ErrNoOrphan)
			break
		}
		must(t, r.Err)
		if r.Lock.ID() != ids[i] {
			t.Errorf("adoption %d got lock %d, want %d of %v", i, r.Lock.ID(), ids[i], ids)
		}
	}
}

// A conversion that waits when its process dies is canceled.
func testOrphanOfConversion(t *testing.T, e *env) {
	name := e.name(t)
	p, b := e.process(t, 1), e.process(t, 2)
	x := p.lock(t, name, dlm.PR, persistent)
	y := b.lock(t, name, dlm.PR, dlm.LockOptions{Notify: true})
	q := p.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return nil, x.Convert(ctx, dlm.EX, dlm.ConvertOptions{}) })
	q.queued(t, e, y)
	p.kill(t)
	must(t, y.Unlock(e.ctx(t)))
	a := e.process(t, 1)
	x, err := a.Adopt(e.ctx(t), name, dlm.PR, persistent)
	must(t, err)
	b.lock(t, name, dlm.PR, dlm.LockOptions{})
	must(t, x.Unlock(e.ctx(t)))
}

func testOrphanKeepsPersistence(t *testing.T, e *env) {
	b := e.process(t, 2)
	for _, again := range []bool{true, false} {
		name := e.name(t)
		e.orphan(t, name, dlm.EX)
		a := e.process(t, 1)
		_, err := a.Adopt(e.ctx(t), name, dlm.EX, dlm.LockOptions{Persistent: again})
		must(t, err)
		a.kill(t)
		if again {
			b.held(t, name, dlm.CR)
			c := e.process(t, 1)
			x, err := c.Adopt(e.ctx(t), name, dlm.EX, dlm.LockOptions{})
			must(t, err)
			must(t, x.Unlock(e.ctx(t)))
		}
		b.free(t, name)
	}
}

func testConvertKeepsPersistence(t *testing.T, e *env) {
	name := e.name(t)
	p, b := e.process(t, 1), e.process(t, 2)
	x := p.lock(t, name, dlm.PR, persistent)
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{}))
	p.kill(t)
	b.held(t, name, dlm.CR)
	a := e.process(t, 1)
	x, err := a.Adopt(e.ctx(t), name, dlm.EX, dlm.LockOptions{})
	must(t, err)
	must(t, x.Unlock(e.ctx(t)))
}

func testPurge(t *testing.T, e *env) {
	kept, gone, held := e.name(t), e.name(t), e.name(t)
	b := e.process(t, 2)
	b.lock(t, gone, dlm.NL, dlm.LockOptions{}) // keeps the LVB
	one := dlm.LVB{0: 'o'}
	p := e.process(t, 1)
	p.lock(t, kept, dlm.EX, persistent)
	x := p.lock(t, gone, dlm.EX, persistent)
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	p.kill(t)
	b.readLVB(t, gone, one, true)

	a := e.process(t, 1)
	a.lock(t, held, dlm.EX, persistent)
	_, err := a.Adopt(e.ctx(t), kept, dlm.EX, persistent)
	must(t, err)
	must(t, a.Purge(e.ctx(t), 0))
	b.held(t, kept, dlm.CR)
	b.held(t, held, dlm.CR)
	b.free(t, gone)
	b.readLVB(t, gone, one, false)
	_, err = a.Adopt(e.ctx(t), gone, dlm.EX, persistent)
	wantError(t, err, dlm.ErrNoOrphan)
}

// Any node can have another one's orphans purged.
func testPurgeElsewhere(t *testing.T, e *env) {
	name := e.name(t)
	e.orphan(t, name, dlm.EX)
	b := e.process(t, 2)
	b.held(t, name, dlm.CR)
	must(t, b.Purge(e.ctx(t), 1))
	b.free(t, name)
}
