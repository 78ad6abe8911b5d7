package dlm

import (
	"errors"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// This file is the life of one lock between us and the kernel. Everything in it runs with Lockspace.mu held: when a
// request is made or given up, when a write returns, and when a result is read, in whatever order those two come.
//
// Two properties of the kernel (fs/dlm/lock.c, Linux 6.1) shape it:
//
// An id of a lock is free for the next lock as soon as the last result about the old one is read. A release or a cancel
// by id must therefore never be on its way when the lock may end by itself. So a new request is not taken back with
// CANCEL, which may or may not end it, but with FORCEUNLOCK, which is the only thing that ends a lock that waits; and a
// NOQUEUE request, which can end by itself, is left alone until it has.
//
// CANCEL and unlock change the parameter that comes back with results. So that is one cookie for each lock, the same
// all its life, never used again; and at most one write about a lock is under way at a time, so that each result can
// belong to one request only.

// What the kernel gives back in a result's user_astaddr: which of the two kinds it is.
const (
	castAddr = 1
	bastAddr = 2
)

type requestKind uint8

const (
	reqLock requestKind = iota
	reqConvert
	reqUnlock
)

// request is something asked about a lock that has an outcome.
type request struct {
	kind  requestKind
	mode  Mode
	flags uint32
	lvb   LVB

	written   bool // the kernel has taken it; the outcome follows
	outcome   *outcome
	givenUp   bool // the caller has left
	cancel    bool // a conversion is to be canceled
	canceled  bool // and the cancel has been written
	ended     bool
	err       error         // of an ended request
	done      chan struct{} // closed at the end
	busyTries int
	patience  time.Duration // ConvertOptions.Patience
}

// outcome is a result that is not about a release.
type outcome struct {
	status  int32
	flags   uint8
	lvb     LVB
	withLVB bool
}

func newRequest(kind requestKind, mode Mode, flags uint32) *request {
	return &request{kind: kind, mode: mode, flags: flags, done: make(chan struct{})}
}

func (r *request) endLocked(err error) {
	if !r.ended {
		r.ended, r.err = true, err
		close(r.done)
	}
}

// stepLocked does what is to be done next for l, after anything has happened to it.
func (l *Lock) stepLocked() {
	ls := l.ls
	l.accountLocked() // what is written below counts before the kernel sees it
	if l.write == nil && l.retry == nil && !l.dead && !ls.gone {
		switch cur := l.cur; {
		case l.unlock != nil && !l.unlock.written && (cur == nil || cur.written):
			l.writeUnlockLocked()
		case cur != nil && !cur.written:
			l.writeRequestLocked(cur)
		case cur != nil && cur.cancel && !cur.canceled && l.unlock == nil: // a release ends it anyway, and the number with it
			l.writeCancelLocked(cur)
		}
	}
	if l.dead {
		l.endRequestsLocked(ErrUnlocked)
		if l.write == nil {
			l.forgetLocked()
		}
	}
	l.accountLocked()
}

// endRequestsLocked ends what is asked about a lock that is no more.
func (l *Lock) endRequestsLocked(err error) {
	if l.cur != nil {
		l.cur.endLocked(err)
		l.cur = nil
	}
	if l.unlock != nil && (l.write == nil || l.write.req != l.unlock) {
		l.unlock.endLocked(err)
		l.unlock = nil
	}
}

// forgetLocked ends the record of l. Its cookie is never used again.
func (l *Lock) forgetLocked() {
	if l.ls.locks.Get(l.cookie) != nil {
		l.ls.locks.Remove(l.cookie)
		if l.blocking != nil {
			close(l.blocking)
		}
	}
}

// accountLocked keeps the lockspace's counts of busy and unsettled locks.
func (l *Lock) accountLocked() {
	ls := l.ls
	busy := l.cur != nil || l.unlock != nil
	if busy != l.busy {
		if l.busy = busy; busy {
			ls.busy++
		} else {
			ls.busy--
		}
	}
	l.countLocked()
	open := l.cur != nil && l.cur.givenUp || l.unlock != nil && l.unlock.givenUp
	switch {
	case !open:
		delete(ls.unsettled, l)
	case ls.unsettled[l].IsZero():
		ls.unsettled[l] = time.Now()
	}
	ls.checkIdleLocked()
}

func (l *Lock) paramsLocked(mode Mode, flags uint32, lvb *LVB) abi.LockParams {
	p := abi.LockParams{
		Mode: uint8(mode), Flags: flags, Lkid: l.lkid,
		Castparam: l.cookie, Castaddr: castAddr, Bastparam: l.cookie, Lksb: l.cookie,
	}
	if l.blocking != nil {
		p.Bastaddr = bastAddr
	}
	if lvb != nil {
		p.Lvb = *lvb
	}
	return p
}

func (l *Lock) sendLocked(r *request, line int, buf []byte, done func(n int, err error)) {
	l.write = &write{buf: buf, line: line, lock: l, req: r, done: func(n int, err error) {
		l.write = nil
		done(n, err)
		l.stepLocked()
	}}
	l.ls.writeLocked(l.write)
}

func (l *Lock) writeRequestLocked(r *request) {
	name := ""
	if r.kind == reqLock {
		name = l.name
	}
	buf := abi.EncodeLock(abi.CmdLock, l.paramsLocked(r.mode, r.flags, &r.lvb), name)
	l.sendLocked(r, lineOther, buf, func(n int, err error) {
		switch {
		case err == nil:
			r.written = true
			if r.kind == reqLock {
				l.lkid = uint32(n)
			}
			if r.outcome != nil { // it was faster than the write's return
				l.applyLocked(r)
			} else if l.adopted && r.kind == reqConvert && r.flags&abi.FlagNoQueue != 0 {
				l.outwaitLocked(max(r.patience, lostAfter))
			}
		case r.kind == reqConvert && errors.Is(err, syscall.EBUSY) && !r.givenUp:
			// The answer to a cancel that came too late is still on its way from another node, or that to a conversion of the
			// process that the lock was adopted from. What has come meanwhile is not about r.
			r.outcome = nil
			r.busyTries++
			l.retryLocked(min(time.Millisecond<<min(r.busyTries, 8), 100*time.Millisecond))
		default:
			l.cur = nil
			l.dead = l.dead || r.kind == reqLock
			r.endLocked(err)
		}
	})
}

func (l *Lock) writeCancelLocked(r *request) {
	r.canceled = true
	buf := abi.EncodeLock(abi.CmdUnlock, l.paramsLocked(0, abi.FlagCancel, nil), "")
	// Whether the cancel came in time, too late, or failed: the conversion has an outcome all the same.
	l.sendLocked(r, lineRelease, buf, func(int, error) {})
}

func (l *Lock) writeUnlockLocked() {
	r := l.unlock
	if l.cur != nil { // it is queued in the kernel, which a plain release does not end
		r.flags |= abi.FlagForceUnlock
	}
	lvb := r.lvb
	if r.flags&abi.FlagValBlk == 0 {
		var keep bool
		if lvb, keep = l.releasedLVBLocked(); !keep {
			r.flags |= abi.FlagIvValBlk
		}
	}
	buf := abi.EncodeLock(abi.CmdUnlock, l.paramsLocked(0, r.flags, &lvb), "")
	l.sendLocked(r, lineRelease, buf, func(_ int, err error) {
		switch {
		case err == nil:
			r.written = true
			if l.dead {
				r.endLocked(nil)
			} else if l.adopted {
				l.outwaitLocked(lostAfter)
			}
		case errors.Is(err, syscall.EBUSY) && r.flags&abi.FlagForceUnlock == 0:
			r.flags |= abi.FlagForceUnlock // the answer to a late cancel is on its way; force does not mind
		case errors.Is(err, syscall.ENOENT):
			l.dead = true
			r.endLocked(err)
		case r.givenUp && !l.ls.gone:
			l.retryLocked(100 * time.Millisecond) // nobody else will
		default:
			l.unlock = nil
			r.endLocked(err)
		}
	})
}

// releasedLVBLocked is the LVB to send with a release that is to leave it alone. If the last request had VALBLK, the kernel still knows, and takes
// what comes with the release of a PW or EX lock for the new LVB. So that must be the one there is; and if that is not
// valid, or not known because the grant has not been read yet, it must not become valid that way (keep is false).
func (l *Lock) releasedLVBLocked() (lvb LVB, keep bool) {
	switch cur := l.cur; {
	case cur == nil:
		return l.lvb, !l.lvbAsked || l.mode < PW || l.lvbValid
	case cur.flags&abi.FlagValBlk == 0:
		return lvb, true
	case cur.kind == reqConvert && lvbTransfer(l.mode, cur.mode) == lvbWritten:
		return cur.lvb, true
	default:
		return lvb, cur.mode < PW && l.mode < PW
	}
}

// retryLocked makes the next step wait for d.
func (l *Lock) retryLocked(d time.Duration) {
	if l.ls.gone {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		l.ls.mu.Lock()
		defer l.ls.mu.Unlock()
		if l.retry == t {
			l.retry = nil
			l.stepLocked()
		}
	})
	l.retry = t
}

func (l *Lock) stopRetryLocked() {
	if l.retry != nil {
		l.retry.Stop()
		l.retry = nil
	}
}

// castLocked takes the result of a request.
func (l *Lock) castLocked(res *abi.LockResult, lvb []byte) {
	if res.Lksb.Status == abi.StatusUnlock {
		l.dead = true
		if l.unlock != nil && l.unlock.written {
			l.unlock.endLocked(nil)
			l.unlock = nil
		}
		l.stepLocked()
		return
	}
	r := l.cur
	if r == nil && l.owed != nil {
		r, l.owed = l.owed, nil // nothing else was asked meanwhile but the release
	}
	if r == nil || r.outcome != nil || !r.written && (l.write == nil || l.write.req != r || l.write.place != nil) {
		// The kernel has nothing of r, or its word already: this is about something that an earlier process asked.
		l.ls.stray++
		l.countLocked()
		return
	}
	if r == l.cur && r.written {
		l.stopRetryLocked() // it need not be outwaited
	}
	r.outcome = &outcome{status: res.Lksb.Status, flags: res.Lksb.Flags}
	if lvb != nil {
		r.outcome.withLVB = true
		copy(r.outcome.lvb[:], lvb)
	}
	if r.written {
		l.applyLocked(r)
		l.stepLocked()
	} else {
		l.countLocked()
	}
}

// applyLocked gives the current request its outcome.
func (l *Lock) applyLocked(r *request) {
	l.cur = nil
	o := r.outcome
	if o.status == 0 {
		wrote := r.kind == reqConvert && lvbTransfer(l.mode, r.mode) == lvbWritten
		l.mode = r.mode
		l.lvbAsked = r.flags&abi.FlagValBlk != 0
		switch {
		case !l.lvbAsked:
		case wrote:
			l.lvb, l.lvbValid = r.lvb, true
		default:
			if o.withLVB {
				l.lvb = o.lvb
			}
			l.lvbValid = o.flags&abi.SbfValNotValid == 0
		}
		if r.kind == reqLock && r.givenUp && l.unlock == nil {
			l.undoLocked()
		}
		r.endLocked(nil)
		return
	}
	l.dead = l.dead || r.kind == reqLock
	switch {
	case o.status == abi.StatusCancel:
		r.endLocked(ErrCanceled)
	case o.status < 0 && o.status > -4096:
		r.endLocked(oneOf(syscall.Errno(-o.status), ErrBusy, ErrDeadlock))
	default:
		l.ls.malformed++
		r.endLocked(syscall.EPROTO)
	}
}

// bastLocked notes that the lock is in the way of a request for mode m.
func (l *Lock) bastLocked(m Mode) {
	if !m.valid() || l.blocking == nil {
		l.ls.malformed++
		return
	}
	select {
	case l.blocking <- m:
		return
	default:
	}
	// One notice waits already: leave the one that asks for more. Nobody else sends, so there is room after the receive.
	select {
	case old := <-l.blocking:
		m = max(m, old)
	default:
	}
	l.blocking <- m
}

// undoLocked asks for the release of a lock nobody will have.
func (l *Lock) undoLocked() {
	l.unlock = newRequest(reqUnlock, 0, 0)
	l.unlock.givenUp = true
}

// giveUpLocked notes that nobody waits for r any more, and sees to its being undone. The caller then calls stepLocked.
func (l *Lock) giveUpLocked(r *request) {
	if r.ended || r.givenUp {
		return
	}
	if r.kind != reqUnlock && !r.written && l.withdrawLocked(r, ErrCanceled) {
		r.givenUp = true
		return
	}
	r.givenUp = true
	if r.flags&abi.FlagNoQueue != 0 {
		return // it ends by itself
	}
	switch r.kind {
	case reqLock:
		if l.unlock == nil {
			l.undoLocked()
		}
	case reqConvert:
		r.cancel = true
	}
}

// withdrawLocked ends r, with err, if the kernel has not seen it yet; otherwise it reports false.
func (l *Lock) withdrawLocked(r *request, err error) bool {
	queued := l.write != nil && l.write.req == r && l.ls.withdrawLocked(l.write)
	if queued {
		l.write = nil
	}
	if !queued && l.retry == nil {
		return false
	}
	l.stopRetryLocked()
	l.cur = nil
	l.dead = l.dead || r.kind == reqLock
	r.endLocked(err)
	return true
}
