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
	b.readLVB(t, name, two, true)
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
