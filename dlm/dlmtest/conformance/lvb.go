package conformance

import (
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
)

// readLVB requires what the LVB of a resource is.
func (p *process) readLVB(t testing.TB, name string, want dlm.LVB, wantValid bool) {
	t.Helper()
	lvb, valid, err := p.ReadLVB(p.e.ctx(t), name)
	must(t, err)
	if lvb != want || valid != wantValid {
		t.Fatalf("the LVB is %q (valid: %v), want %q (valid: %v)", lvb[:4], valid, want[:4], wantValid)
	}
}

func testLVB(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	b.readLVB(t, name, dlm.LVB{}, true) // nobody has it
	x := a.lock(t, name, dlm.EX, dlm.LockOptions{LVB: true})
	if lvb, valid := x.LVB(); lvb != (dlm.LVB{}) || !valid {
		t.Fatalf("the LVB of a new resource is %x (valid: %v)", lvb, valid)
	}
	one, two, three := dlm.LVB{0: 'o', 31: '1'}, dlm.LVB{0: 't', 31: '2'}, dlm.LVB{0: 'd', 31: '3'}
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	b.readLVB(t, name, one, true)
	a.readLVB(t, name, one, true)
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{})) // without: as it was
	b.readLVB(t, name, one, true)
	must(t, x.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{WriteLVB: &two}))
	// A conversion to a lesser mode is done when it was sent; the node that keeps the books may hear of it later.
	eventually(t, e, "nobody else reads what a conversion to PR has written", func() bool {
		lvb, valid, err := b.ReadLVB(e.ctx(t), name)
		must(t, err)
		return lvb == two && valid
	})
	wantError(t, x.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{WriteLVB: &one}), dlm.ErrInvalid)

	y := b.lock(t, name, dlm.NL, dlm.LockOptions{}) // an LVB can be asked for later
	must(t, y.Convert(e.ctx(t), dlm.CR, dlm.ConvertOptions{ReadLVB: true}))
	if lvb, valid := y.LVB(); lvb != two || !valid {
		t.Fatalf("the LVB after a conversion is %x (valid: %v)", lvb, valid)
	}
	must(t, x.Convert(e.ctx(t), dlm.NL, dlm.ConvertOptions{}))
	must(t, y.Convert(e.ctx(t), dlm.PW, dlm.ConvertOptions{ReadLVB: true}))
	must(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{ReadLVB: true}))
	wantError(t, y.Convert(e.ctx(t), dlm.NL, dlm.ConvertOptions{ReadLVB: true}), dlm.ErrInvalid)
	must(t, y.Convert(e.ctx(t), dlm.PW, dlm.ConvertOptions{}))
	must(t, y.Convert(e.ctx(t), dlm.PW, dlm.ConvertOptions{WriteLVB: &three}))
	a.readLVB(t, name, three, true)
	must(t, y.Unlock(e.ctx(t)))
	a.readLVB(t, name, three, true) // x keeps it
}

// The LVB becomes invalid when a process that may have written it dies, and valid by being written again.
func testLVBOfTheDead(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	keeper := b.lock(t, name, dlm.NL, dlm.LockOptions{})
	one := dlm.LVB{0: 'o'}
	x := a.lock(t, name, dlm.EX, dlm.LockOptions{LVB: true})
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	a.kill(t)
	y := b.lock(t, name, dlm.EX, dlm.LockOptions{LVB: true})
	if lvb, valid := y.LVB(); lvb != one || valid {
		t.Fatalf("after its writer's death the LVB is %q (valid: %v)", lvb[:4], valid)
	}
	two := dlm.LVB{0: 't'}
	must(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &two}))
	b.readLVB(t, name, two, true)
	must(t, y.Unlock(e.ctx(t)))
	b.readLVB(t, name, two, true)
	must(t, keeper.Unlock(e.ctx(t)))
}

func testLVBEndsWithTheLastLock(t *testing.T, e *env) {
	a := e.process(t, 1)
	name := e.name(t)
	x := a.lock(t, name, dlm.EX, dlm.LockOptions{})
	one := dlm.LVB{0: 'o'}
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	must(t, x.Unlock(e.ctx(t)))
	a.readLVB(t, name, dlm.LVB{}, true)
}

// A release can write the LVB, if its lock has had to do with it; also one that was adopted.
func testUnlockLVB(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	one, two := dlm.LVB{0: 'o'}, dlm.LVB{0: 't'}
	write := func(p *process, opts dlm.LockOptions) *dlm.Lock {
		t.Helper()
		name := e.name(t)
		b.lock(t, name, dlm.NL, dlm.LockOptions{}) // keeps the LVB
		x := p.lock(t, name, dlm.EX, opts)
		must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
		b.readLVB(t, name, one, true)
		return x
	}
	for _, p := range []*process{a, b} { // the second has the books of it
		x := write(p, dlm.LockOptions{})
		must(t, x.UnlockLVB(e.ctx(t), two))
		a.readLVB(t, x.Name(), two, true)
		b.free(t, x.Name())
	}
	x := write(a, dlm.LockOptions{})
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{})) // the last request had nothing to do with it
	must(t, x.UnlockLVB(e.ctx(t), dlm.LVB{}))
	b.readLVB(t, x.Name(), dlm.LVB{}, true)

	x = write(a, dlm.LockOptions{})
	must(t, x.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{}))
	must(t, x.UnlockLVB(e.ctx(t), two))
	b.readLVB(t, x.Name(), one, true)

	name := e.name(t)
	b.lock(t, name, dlm.NL, dlm.LockOptions{})
	y := a.lock(t, name, dlm.EX, dlm.LockOptions{})
	must(t, y.UnlockLVB(e.ctx(t), two))
	b.readLVB(t, name, dlm.LVB{}, true)

	c := e.process(t, 1)
	written, unwritten := write(c, persistent).Name(), e.name(t)
	b.lock(t, unwritten, dlm.NL, dlm.LockOptions{})
	c.lock(t, unwritten, dlm.EX, persistent)
	c.kill(t)
	b.readLVB(t, written, one, true) // an orphan is alive
	for _, name := range []string{written, unwritten} {
		var x *dlm.Lock
		eventually(t, e, "no orphan", func() bool {
			var err error
			x, err = a.Adopt(e.ctx(t), name, dlm.EX, persistent)
			return err == nil
		})
		must(t, x.UnlockLVB(e.ctx(t), dlm.LVB{}))
		b.readLVB(t, name, dlm.LVB{}, true)
		b.free(t, name)
	}
}

// What an adopted lock writes is known also when the node is lost that kept the books: see testNodeLoss. Until it has
// written, the LVB is that of the process before.
func testAdoptedWritesLVB(t *testing.T, e *env) {
	a, b := e.process(t, 1), e.process(t, 2)
	name := e.name(t)
	one, two := dlm.LVB{0: 'o'}, dlm.LVB{0: 't'}
	x := a.lock(t, name, dlm.EX, persistent)
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{NoQueue: true, WriteLVB: &one}))
	a.kill(t)
	c := e.process(t, 1)
	var y *dlm.Lock
	eventually(t, e, "no orphan", func() bool {
		var err error
		y, err = c.Adopt(e.ctx(t), name, dlm.EX, persistent)
		return err == nil
	})
	b.readLVB(t, name, one, true)
	must(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{NoQueue: true, WriteLVB: &two}))
	b.readLVB(t, name, two, true)
	c.kill(t) // it stays persistent
	b.held(t, name, dlm.CR)
	b.readLVB(t, name, two, true)
	d := e.process(t, 1)
	eventually(t, e, "no orphan", func() bool {
		var err error
		y, err = d.Adopt(e.ctx(t), name, dlm.EX, persistent)
		return err == nil
	})
	must(t, y.Unlock(e.ctx(t)))
}
