package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

func testMembership(t *testing.T, e *env) {
	name := e.Prefix + rand.Text()[:8]
	k := e.Kernels[0]
	_, err := dlm.Open(e.ctx(t), k, name, dlm.Options{})
	wantError(t, err, dlm.ErrNoLockspace)
	wantError(t, dlm.Remove(e.ctx(t), k, name, false), dlm.ErrNoLockspace)

	first, err := dlm.Create(e.ctx(t), k, name, dlm.Options{})
	must(t, err)
	second, err := dlm.Create(e.ctx(t), k, name, dlm.Options{}) // there is one already: opened
	must(t, err)
	third, err := dlm.Open(e.ctx(t), k, name, dlm.Options{})
	must(t, err)
	l, err := first.Lock(e.ctx(t), "r", dlm.EX, dlm.LockOptions{})
	must(t, err)
	_, err = third.Lock(e.ctx(t), "r", dlm.EX, dlm.LockOptions{NoQueue: true})
	wantError(t, err, dlm.ErrBusy)
	must(t, second.Close(e.ctx(t)))
	must(t, second.Close(e.ctx(t)))
	_, err = second.Lock(e.ctx(t), "r", dlm.EX, dlm.LockOptions{})
	wantError(t, err, dlm.ErrClosed)
	must(t, third.Close(e.ctx(t)))
	must(t, first.Leave(e.ctx(t), false)) // the lock ends with the closing
	wantError(t, l.Unlock(e.ctx(t)), dlm.ErrClosed)
	_, err = dlm.Open(e.ctx(t), k, name, dlm.Options{})
	wantError(t, err, dlm.ErrNoLockspace)

	again, err := dlm.Create(e.ctx(t), k, name, dlm.Options{})
	must(t, err)
	must(t, again.Leave(e.ctx(t), false))
}

func testLeaveWithLocks(t *testing.T, e *env) {
	name := e.Prefix + rand.Text()[:8]
	k := e.Kernels[0]
	ls, err := dlm.Create(e.ctx(t), k, name, dlm.Options{})
	must(t, err)
	_, err = ls.Lock(e.ctx(t), "r", dlm.EX, persistent)
	must(t, err)
	wantError(t, ls.Leave(e.ctx(t), false), dlm.ErrLockspaceUse) // an orphan is in the way
	ls, err = dlm.Open(e.ctx(t), k, name, dlm.Options{})
	must(t, err)
	must(t, ls.Purge(e.ctx(t), 0))
	_, err = ls.Lock(e.ctx(t), "r", dlm.EX, persistent)
	must(t, err)
	must(t, ls.Leave(e.ctx(t), true)) // with force it ends
	ls, err = dlm.Create(e.ctx(t), k, name, dlm.Options{})
	must(t, err)
	l, err := ls.Lock(e.ctx(t), "r", dlm.EX, dlm.LockOptions{NoQueue: true})
	must(t, err)
	must(t, l.Unlock(e.ctx(t)))
	must(t, ls.Leave(e.ctx(t), false))
}

// The first node that asked for a lock keeps the books of the resource, and is in use by that alone; by force it can leave
// without harm to anyone.
func testLeaveAsMaster(t *testing.T, e *env) {
	name := e.Prefix + rand.Text()[:8]
	a, err := dlm.Create(e.ctx(t), e.Kernels[0], name, dlm.Options{})
	must(t, err)
	b, err := dlm.Create(e.ctx(t), e.Kernels[1], name, dlm.Options{})
	must(t, err)
	if at, told := changed(t, e.Kernels[0], name); told && at.IsZero() {
		t.Error("node 1 is not told that node 2 has joined")
	}
	const resources = 8 // who is asked first for the master of a resource depends on the name
	var locks []*dlm.Lock
	for i := range resources {
		x, err := a.Lock(e.ctx(t), fmt.Sprint(i), dlm.NL, dlm.LockOptions{})
		must(t, err)
		y, err := b.Lock(e.ctx(t), fmt.Sprint(i), dlm.EX, dlm.LockOptions{})
		must(t, err)
		must(t, x.Unlock(e.ctx(t)))
		locks = append(locks, y)
	}
	wantError(t, a.Leave(e.ctx(t), false), dlm.ErrLockspaceUse)
	must(t, dlm.Remove(e.ctx(t), e.Kernels[0], name, true))
	for i, y := range locks {
		_, err := b.Lock(e.ctx(t), fmt.Sprint(i), dlm.CR, dlm.LockOptions{NoQueue: true})
		wantError(t, err, dlm.ErrBusy)
		must(t, y.Convert(e.ctx(t), dlm.PR, dlm.ConvertOptions{}))
		must(t, y.Unlock(e.ctx(t)))
	}
	must(t, b.Leave(e.ctx(t), false))
}

// changed is when a kernel says that the members of a lockspace have changed, if it is one that does.
func changed(t testing.TB, k dlm.Kernel, lockspace string) (at time.Time, told bool) {
	t.Helper()
	mk, told := k.(dlm.MembersKernel)
	if !told {
		return at, false
	}
	at, err := mk.MembersChanged(lockspace)
	if errors.Is(err, dlm.ErrNoState) {
		return at, false // it is a simulation's, elsewhere
	}
	must(t, err)
	return at, true
}

func (e *env) suspend(t testing.TB) (resume func()) {
	t.Helper()
	if e.Suspend == nil || e.Resume == nil {
		t.Skip("the site cannot stop a lockspace")
	}
	e.Suspend(t, e.lockspace)
	on := false
	resume = func() {
		if !on {
			on = true
			e.Resume(t, e.lockspace)
		}
	}
	t.Cleanup(resume)
	return resume
}

// stuck begins what must get stuck in the kernel as the nth request there, and gives it up when it is.
func (p *process) stuck(t testing.TB, n int, f func(context.Context) error) {
	t.Helper()
	q := p.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return nil, f(ctx) })
	eventually(t, p.e, fmt.Sprintf("request %d is not stuck in the kernel", n), func() bool { return p.Stats().InFlight == n })
	q.cancel()
	wantError(t, q.wait(t, p.e), context.Canceled)
}

func testStopped(t *testing.T, e *env) {
	left, other := e.name(t), e.name(t)
	e.orphan(t, left, dlm.EX)
	a := e.process(t, 1)
	held := a.lock(t, e.name(t), dlm.EX, dlm.LockOptions{})
	released := a.lock(t, e.name(t), dlm.EX, dlm.LockOptions{})
	resume := e.suspend(t)

	a.stuck(t, 1, func(ctx context.Context) error {
		_, err := a.Lock(ctx, other, dlm.EX, persistent)
		return err
	})
	a.stuck(t, 2, func(ctx context.Context) error {
		_, err := a.Lock(ctx, other, dlm.EX, dlm.LockOptions{})
		return err
	})
	a.stuck(t, 3, func(ctx context.Context) error { return held.Convert(ctx, dlm.PR, dlm.ConvertOptions{}) })
	a.stuck(t, 4, released.Unlock)
	x, err := a.Adopt(e.ctx(t), left, dlm.EX, persistent) // alone does not wait
	must(t, err)
	if s := a.Stats(); s.InFlight != 4 || s.Unsettled != 4 || s.OldestWrite <= 0 || s.OldestUnsettled <= 0 {
		t.Fatalf("four requests are stuck, but %+v", s)
	}
	resume()
	a.settled(t)
	m, err := held.Settle(e.ctx(t))
	must(t, err)
	if m != held.Mode() || m != dlm.PR && m != dlm.EX {
		t.Fatalf("the mode is %v", m)
	}
	must(t, held.Unlock(e.ctx(t)))
	wantError(t, released.Unlock(e.ctx(t)), dlm.ErrUnlocked)
	must(t, x.Unlock(e.ctx(t)))
	b := e.process(t, 2)
	b.free(t, other)
	b.free(t, left)
	b.free(t, released.Name())
	if n := a.Stats().Locks; n != 0 {
		t.Fatalf("%d locks are left", n)
	}
}

func testStoppedClose(t *testing.T, e *env) {
	a := e.process(t, 1)
	name, kept := e.name(t), e.name(t)
	a.lock(t, kept, dlm.EX, persistent)
	resume := e.suspend(t)
	q := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return a.Lock(ctx, name, dlm.EX, dlm.LockOptions{}) })
	eventually(t, e, "no write is stuck", func() bool { return a.Stats().InFlight == 1 })
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	wantError(t, a.Close(short), context.DeadlineExceeded)
	wantError(t, q.wait(t, e), dlm.ErrClosed)
	_, err := a.Lock(e.ctx(t), name, dlm.EX, dlm.LockOptions{})
	wantError(t, err, dlm.ErrClosed)
	resume()
	if err := a.Close(e.ctx(t)); err != nil {
		wantError(t, err, dlm.ErrUnsettled)
	}
	a.Lockspace = e.process(t, 1).Lockspace // for the end of the test
	b := e.process(t, 2)
	b.free(t, name)
	b.held(t, kept, dlm.CR)
	c := e.process(t, 1)
	x, err := c.Adopt(e.ctx(t), kept, dlm.EX, persistent)
	must(t, err)
	must(t, x.Unlock(e.ctx(t)))
}

// What a node had ends with it, and what others wait for they get.
func testNodeLoss(t *testing.T, e *env) {
	last := len(e.Kernels)
	a := e.process(t, 1)
	k := &killable{Kernel: e.Kernels[last-1]}
	ls, err := dlm.Open(e.ctx(t), k, e.lockspace, dlm.Options{})
	must(t, err)
	b := &process{Lockspace: ls, e: e, k: k}
	t.Cleanup(func() { b.kill(t) })

	held, kept, written, lostMaster := e.name(t), e.name(t), e.name(t), e.name(t)
	one := dlm.LVB{0: 'o'}
	b.lock(t, held, dlm.EX, persistent)
	a.lock(t, kept, dlm.EX, dlm.LockOptions{})
	// The books of this one are kept by node 1: the LVB is known, and known to be doubtful.
	keeper := a.lock(t, written, dlm.NL, dlm.LockOptions{LVB: true})
	x := b.lock(t, written, dlm.EX, dlm.LockOptions{LVB: true})
	must(t, x.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	// Those of this one are lost, and with them the LVB.
	y := b.lock(t, lostMaster, dlm.EX, dlm.LockOptions{LVB: true})
	must(t, y.Convert(e.ctx(t), dlm.EX, dlm.ConvertOptions{WriteLVB: &one}))
	a.lock(t, lostMaster, dlm.NL, dlm.LockOptions{})

	q := a.begin(t, func(ctx context.Context) (*dlm.Lock, error) { return a.Lock(ctx, held, dlm.EX, dlm.LockOptions{}) })
	a.held(t, held, dlm.CR)
	before, told := changed(t, e.Kernels[0], e.lockspace)
	e.PowerOff(t)
	must(t, q.wait(t, e))
	if after, _ := changed(t, e.Kernels[0], e.lockspace); told && len(e.Kernels) > 2 && !after.After(before) {
		t.Errorf("the members have changed at %v, and after the loss of one at %v", before, after)
	}
	a.held(t, kept, dlm.CR)
	z := a.lock(t, written, dlm.EX, dlm.LockOptions{LVB: true})
	if lvb, valid := z.LVB(); valid {
		t.Errorf("after the loss of its writer the LVB is %q and valid", lvb[:4])
	}
	lvb, valid, err := a.ReadLVB(e.ctx(t), lostMaster)
	must(t, err)
	t.Logf("after the loss of writer and master the LVB is %q (valid: %v)", lvb[:4], valid)
	if lvb == one && valid {
		t.Error("the LVB of a lost node is still there")
	}
	must(t, keeper.Unlock(e.ctx(t)))
}
