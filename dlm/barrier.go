package dlm

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// drain is what is known of the requests of a process that has ended.
type drain struct {
	f       *os.File
	names   []string            // of the resources
	open    map[uint64]struct{} // cookies of locks with a request, of which no result has come
	heard   map[uint64]struct{} // cookies that have come
	unknown error               // why names and open are not complete
	asked   uint64              // how many questions there were
	barrier *barrier            // nil while none is under way that counts
}

func newDrain(f *os.File, u *UnderWay) *drain {
	d := &drain{f: f, heard: map[uint64]struct{}{}}
	d.names, d.open, d.unknown = u.requests()
	return d
}

// answered reports whether the kernel works on none of the requests. A lock can have two results, that of a request and
// that of the release that followed; the second one is no danger.
func (d *drain) answered(underWay int) bool {
	if d.unknown != nil {
		return len(d.heard) >= underWay
	}
	return len(d.open) == 0 || d.barrier != nil && d.barrier.passed()
}

// ask begins to ask, if that can be done and is not. It reports whether it is to be begun anew, as a write was held up: the
// lockspace was stopped meanwhile.
func (d *drain) ask() (heldUp bool) {
	if d.barrier != nil || d.unknown != nil {
		return false
	}
	d.barrier = newBarrier(d.f, d.names, 1+d.asked)
	d.asked += uint64(len(d.names))
	return d.forget()
}

// take takes a result. It reports false for anything else, as a notice is.
func (d *drain) take(buf []byte) bool {
	res, _, err := abi.DecodeResult(buf)
	switch {
	case err != nil:
		return false
	case res.UserAstaddr == castAddr:
		d.heard[res.UserAstparam] = struct{}{}
		delete(d.open, res.UserAstparam)
	case res.UserAstaddr == barrierAddr && d.barrier != nil:
		d.barrier.take(&res)
		d.forget()
	default:
		return false
	}
	return true
}

// forget drops a barrier of which a write was held up.
func (d *drain) forget() (heldUp bool) {
	if heldUp = d.barrier.heldUp; heldUp {
		d.barrier = nil
	}
	return heldUp
}

// barrier finds out that the kernel works on no request of a process that has ended, although not as many results have
// come as were expected: the process may have been killed just before a write, and results get lost (see lost.go).
//
// It asks for a NL lock on each of their resources, which is granted whoever has it, and releases it. What is asked
// about a resource goes the same way to the same node, and is answered, in order: a request waits for the node that
// keeps the resource's books to be known in a list that is worked off from its head (res_lookup), messages to a node are
// sent and received in order (midcomms), and each is answered when it is processed (receive_request, receive_convert,
// receive_unlock, receive_cancel; fs/dlm/lock.c). So with the answer to its release there the answers to all earlier
// ones are. With the grant alone they may not be: a release by force of a request under way is sent only when that
// has been answered.
//
// A recovery of the lockspace sends again what has no answer, in another order (recover_waiters_post). So what was
// asked before does not count then, and it is asked again. A recovery is seen by the lockspace's state, or by a write that
// took long.
type barrier struct {
	f       *os.File
	waiting map[uint64]struct{} // by what comes back with a result
	failed  error
	heldUp  bool
}

// heldUpAfter is how long a write takes that the kernel has held up; others take microseconds.
const heldUpAfter = 250 * time.Millisecond

// barrierAddr is what comes back in UserAstaddr with the results of a barrier. The other process has used others.
const barrierAddr = 3

// newBarrier asks about each of the names. What comes back counts from first on, which is not 0: the kernel refuses that
// as no address. Where the lockspace has just been stopped, this takes as long as it is.
func newBarrier(f *os.File, names []string, first uint64) *barrier {
	b := &barrier{f: f, waiting: map[uint64]struct{}{}}
	for i, name := range names {
		cookie := first + uint64(i)
		p := abi.LockParams{Mode: uint8(NL), Flags: abi.FlagExpedite, Castparam: cookie, Castaddr: barrierAddr, Lksb: cookie}
		b.write(cookie, abi.EncodeLock(abi.CmdLock, p, name))
	}
	return b
}

func (b *barrier) write(cookie uint64, buf []byte) {
	b.waiting[cookie] = struct{}{}
	begin := time.Now()
	if _, err := (&hostDevice{b.f}).Write(buf); err != nil {
		b.failed = errors.Join(b.failed, err)
	}
	b.heldUp = b.heldUp || time.Since(begin) > heldUpAfter
}

// take takes a result, if it is its own.
func (b *barrier) take(res *abi.LockResult) {
	if _, ok := b.waiting[res.UserAstparam]; !ok {
		return
	}
	switch res.Lksb.Status {
	case 0:
		b.write(res.UserAstparam, abi.EncodeLock(abi.CmdUnlock, abi.LockParams{
			Lkid: res.Lksb.Lkid, Castparam: res.UserAstparam, Castaddr: barrierAddr, Lksb: res.UserAstparam,
		}, ""))
	case abi.StatusUnlock:
		delete(b.waiting, res.UserAstparam)
	default:
		b.failed = errors.Join(b.failed, fmt.Errorf("status %d", res.Lksb.Status))
	}
}

// passed reports whether all was answered. It never is if anything failed.
func (b *barrier) passed() bool { return b.failed == nil && len(b.waiting) == 0 }
