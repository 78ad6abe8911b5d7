package conformance

import (
	"crypto/rand"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// A persistent request that waits when its process dies is canceled, but something stays: it is found under the name,
// in no mode that could be adopted, and it is in nobody's way. A purge would now crash the kernel, which this test
// leaves at that; leaving the lockspace by force cleans up.
func testOrphanOfRequest(t *testing.T, e *env) {
	own := &env{Site: e.Site, lockspace: e.Prefix + rand.Text()[:8]}
	k := e.Kernels[0]
	ls, err := dlm.Create(e.ctx(t), k, own.lockspace, dlm.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, ls.Leave(e.ctx(t), true)) })

	name := own.name(t)
	a := own.process(t, 1)
	x := a.lock(t, name, dlm.EX, dlm.LockOptions{Notify: true})
	r := own.raw(t)
	r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Flags: abi.FlagPersistent, Castparam: 1}, name, nil)
	must(t, r.Close())
	for m := dlm.NL; m <= dlm.EX; m++ {
		_, err := a.Adopt(e.ctx(t), name, m, persistent)
		wantError(t, err, dlm.ErrOtherMode)
	}
	must(t, x.Unlock(e.ctx(t)))
	a.free(t, name)
	_, err = a.Adopt(e.ctx(t), name, dlm.EX, persistent)
	wantError(t, err, dlm.ErrOtherMode)
}

// Package dlm does not do that: what dies while it waits leaves nothing, and what was granted is persistent.
func testQueuedPersistent(t *testing.T, e *env) {
	name := e.name(t)
	b, p, q := e.process(t, 2), e.process(t, 1), e.process(t, 1)
	x := b.lock(t, name, dlm.EX, dlm.LockOptions{Notify: true})
	first := p.queue(t, name, dlm.EX, dlm.LockOptions{Persistent: true, LVB: true}, x)
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{}))
	q.queue(t, name, dlm.PR, dlm.LockOptions{Persistent: true}, x)
	q.kill(t)
	must(t, x.Unlock(e.ctx(t)))
	must(t, first.wait(t, e))
	p.kill(t)
	b.held(t, name, dlm.CR)
	a := e.process(t, 1)
	y, err := a.Adopt(e.ctx(t), name, dlm.EX, persistent)
	must(t, err)
	must(t, y.Unlock(e.ctx(t)))
	_, err = a.Adopt(e.ctx(t), name, dlm.PR, persistent)
	wantError(t, err, dlm.ErrNoOrphan)
	must(t, a.Purge(e.ctx(t), 0))
	b.free(t, name)
}
