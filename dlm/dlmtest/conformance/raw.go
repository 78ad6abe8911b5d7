package conformance

import (
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// raw is a device without package dlm between.
type raw struct {
	dlm.Device
	e       *env
	results chan abi.LockResult
}

func (e *env) raw(t testing.TB) *raw {
	t.Helper()
	k := e.Kernels[0]
	minor, err := k.Minor(e.lockspace)
	must(t, err)
	d, err := k.Lockspace(e.lockspace, minor)
	must(t, err)
	r := &raw{d, e, make(chan abi.LockResult, 100)}
	go func() {
		defer close(r.results)
		var buf [abi.ResultMax]byte
		for {
			n, err := d.Read(buf[:])
			if err != nil {
				return
			}
			res, _, err := abi.DecodeResult(buf[:n])
			if err != nil {
				t.Error(err)
				return
			}
			r.results <- res
		}
	}()
	t.Cleanup(func() {
		d.Close()
		for range r.results {
		}
	})
	return r
}

func (r *raw) write(t testing.TB, cmd uint8, p abi.LockParams, name string, want error) uint32 {
	t.Helper()
	if p.Castaddr == 0 {
		p.Castaddr, p.Lksb = 1, 1
	}
	n, err := r.Write(abi.EncodeLock(cmd, p, name))
	if err != want {
		t.Fatalf("the write returned %d, %v; want %v", n, err, want)
	}
	return uint32(n)
}

func (r *raw) result(t testing.TB, param uint64, status int32) abi.LockResult {
	t.Helper()
	select {
	case res := <-r.results:
		if res.UserAstparam != param || res.Lksb.Status != status {
			t.Fatalf("the result is %+v, want status %d for %d", res, status, param)
		}
		return res
	case <-time.After(r.e.Patience):
		t.Fatalf("no result, want status %d for %d", status, param)
	}
	panic("unreachable")
}

// none requires that no result is waiting: a request that has one is made, and its is the first.
func (r *raw) none(t testing.TB) {
	t.Helper()
	id := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.NL), Castparam: 1000}, r.e.name(t), nil)
	r.result(t, 1000, 0)
	r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: id, Castparam: 1001}, "", nil)
	r.result(t, 1001, abi.StatusUnlock)
}

// What comes back with which parameter; what has no result at all.
func testRawResults(t *testing.T, e *env) {
	r := e.raw(t)
	name := e.name(t)
	x := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Castparam: 1}, name, nil)
	if res := r.result(t, 1, 0); res.Lksb.Lkid != x || res.UserLksb != 1 || res.UserAstaddr != 1 {
		t.Fatalf("the result of lock %d is %+v", x, res)
	}
	// There is nothing to cancel: no error, no result, though the parameter is replaced.
	r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: x, Flags: abi.FlagCancel, Castparam: 2}, "", nil)
	r.none(t)
	// A waiting request that is canceled is no more, and its result has the parameter of the cancel.
	y := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Castparam: 3}, name, nil)
	r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: y, Flags: abi.FlagCancel, Castparam: 4}, "", nil)
	r.result(t, 4, abi.StatusCancel)
	// So is one that is released by force, which ends a waiting request as a plain release does not always.
	y = r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Castparam: 5}, name, nil)
	r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: y, Flags: abi.FlagForceUnlock, Castparam: 6}, "", nil)
	r.result(t, 6, abi.StatusUnlock)
	// A request that must not wait has its result, and is no more.
	y = r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Flags: abi.FlagNoQueue, Castparam: 7}, name, nil)
	r.result(t, 7, -int32(syscall.EAGAIN))
	if y == 0 {
		t.Fatal("a refused request has no number")
	}
	// A conversion that waits and is canceled, twice.
	z := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.NL), Castparam: 8}, name, nil)
	r.result(t, 8, 0)
	for range 2 {
		r.write(t, abi.CmdLock, abi.LockParams{Lkid: z, Mode: uint8(dlm.PR), Flags: abi.FlagConvert, Castparam: 9}, "", nil)
		r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: z, Flags: abi.FlagCancel, Castparam: 10}, "", nil)
		r.result(t, 10, abi.StatusCancel)
		r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: z, Flags: abi.FlagCancel, Castparam: 11}, "", syscall.EINVAL)
	}
	r.none(t)
}

func testRawRefusals(t *testing.T, e *env) {
	r := e.raw(t)
	name := e.name(t)
	r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: 0x7ffffff0, Castparam: 1}, "", syscall.ENOENT)
	r.write(t, abi.CmdLock, abi.LockParams{Lkid: 0x7ffffff0, Flags: abi.FlagConvert, Castparam: 1}, "", syscall.ENOENT)
	r.write(t, abi.CmdLock, abi.LockParams{Castaddr: 1}, name, syscall.EINVAL)
	r.write(t, abi.CmdLock, abi.LockParams{Mode: 6}, name, syscall.EINVAL)
	r.write(t, abi.CmdLock, abi.LockParams{Mode: 5, Flags: abi.FlagExpedite}, name, syscall.EINVAL)
	r.write(t, abi.CmdLock, abi.LockParams{Mode: 0, Flags: abi.FlagExpedite | abi.FlagNoQueue}, name, syscall.EINVAL)
	short := abi.EncodePurge(0, 0)
	if n, err := r.Write(short[:abi.RequestSize-1]); err != syscall.EINVAL {
		t.Fatalf("a short write returned %d, %v", n, err)
	}
	short[0] = 7
	if n, err := r.Write(short); err != syscall.EBADE {
		t.Fatalf("a write of another version returned %d, %v", n, err)
	}
	if n, err := r.Write(abi.EncodeLspace(abi.CmdCreateLockspace, 0, 0, name)); err != syscall.EINVAL {
		t.Fatalf("creating a lockspace by the device of another returned %d, %v", n, err)
	}
	r.none(t)
}

// The release of an EX lock whose last request had VALBLK writes the LVB, though the release itself does not say so; a
// conversion without VALBLK ends that.
func testRawReleaseWritesLVB(t *testing.T, e *env) {
	r, a := e.raw(t), e.process(t, 1)
	for _, keep := range []bool{true, false} {
		name := e.name(t)
		a.lock(t, name, dlm.NL, dlm.LockOptions{})
		one, two := dlm.LVB{0: 'o'}, dlm.LVB{0: 't'}
		x := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Castparam: 1}, name, nil)
		r.result(t, 1, 0)
		r.write(t, abi.CmdLock, abi.LockParams{Lkid: x, Mode: uint8(dlm.EX), Flags: abi.FlagConvert | abi.FlagValBlk, Lvb: one, Castparam: 2}, "", nil)
		r.result(t, 2, 0)
		want := two
		if keep {
			r.write(t, abi.CmdLock, abi.LockParams{Lkid: x, Mode: uint8(dlm.EX), Flags: abi.FlagConvert, Castparam: 2}, "", nil)
			r.result(t, 2, 0)
			want = one
		}
		r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: x, Lvb: two, Castparam: 3}, "", nil)
		r.result(t, 3, abi.StatusUnlock)
		a.readLVB(t, name, want, true)
	}
}

// The kernel gives the number of a lock to the next one as soon as its last result is read; package dlm relies on
// nothing else, but must be safe against it.
func testNumbersAreReused(t *testing.T, e *env) {
	r := e.raw(t)
	name := e.name(t)
	x := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Castparam: 1}, name, nil)
	r.result(t, 1, 0)
	r.write(t, abi.CmdUnlock, abi.LockParams{Lkid: x, Castparam: 2}, "", nil)
	r.result(t, 2, abi.StatusUnlock)
	y := r.write(t, abi.CmdLock, abi.LockParams{Mode: uint8(dlm.EX), Castparam: 3}, name, nil)
	r.result(t, 3, 0)
	t.Logf("the first lock had number %d, the second one has %d", x, y)
}
