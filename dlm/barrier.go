package dlm

import (
	"errors"
	"fmt"
	"os"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// barrier finds out that the kernel works on no request of a process that has ended, although not as many results have
// come as were expected: the process may have been killed just before a write, and results get lost (see lost.go).
//
// It asks for a NL lock on each of their resources, which is granted whoever has it, and releases it. What is asked
// about a resource goes the same way to the same node, and is answered, in order: a request waits for the node that
// keeps the resource's books to be known in a list that is worked off from its head (res_lookup), messages to a node are
// sent and received in order (lowcomms), and each is answered when it is processed (receive_request, receive_convert,
// receive_unlock, receive_cancel; fs/dlm/lock.c). So with its answer there the answers to all earlier ones are.
//
// A recovery of the lockspace sends again what has no answer, in another order (recover_waiters_post). So what was
// asked before does not count then, and it is asked again.
type barrier struct {
	f       *os.File
	waiting map[uint64]struct{} // by what comes back with a result
	failed  error
}

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
	if _, err := (&hostDevice{b.f}).Write(buf); err != nil {
		b.failed = errors.Join(b.failed, err)
	}
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
