package dlmtest

import (
	"container/list"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// none is the mode of what is not granted or not requested (DLM_LOCK_IV).
const none int8 = -1

type state uint8

const (
	off state = iota // on no queue
	granted
	converting
	waiting
)

func (s state) String() string {
	return [...]string{"off", "granted", "converting", "waiting"}[s]
}

// lock is what the kernel calls a lkb.
type lock struct {
	m    *member
	proc *proc // nil when the process is gone
	r    *resource
	id   uint32
	ua   abi.LockParams // the last cookies and addresses the program gave

	state    state
	gr, rq   int8
	flags    uint32 // of the last request
	sbFlags  uint8
	status   int32
	hasLVB   bool
	lvb      [abi.LVBLen]byte
	lvbSeq   uint64
	highBast int8 // the strongest mode a notice was sent for since the last grant

	orphan    bool
	dead      bool // its process is gone and it is not an orphan
	ended     bool // no request about it is accepted any more
	inProc    *list.Element
	inOrphans *list.Element

	callbacks []callback
	queued    *list.Element // in proc.results
	lastCast  *callback
	gate      *Gate // holds results back
}

type callback struct {
	bast    bool
	mode    int8
	status  int32
	sbFlags uint8
}

func compat(a, b int8) bool {
	return a == none || b == none || dlm.Mode(a).Compatible(dlm.Mode(b))
}

// LVB transfers (dlm_lvb_operations).
const (
	lvbKept = iota
	lvbToLock
	lvbToResource
)

func lvbTransfer(gr, rq int8) int {
	const pw, ex = int8(dlm.PW), int8(dlm.EX)
	switch {
	case gr == ex, gr == pw && rq != ex:
		return lvbToResource
	case rq >= gr:
		return lvbToLock
	}
	return lvbKept
}

// cast queues the result of a request.
func (l *lock) cast(status int32) {
	l.deliver(callback{mode: l.gr, status: status, sbFlags: l.sbFlags})
}

// bast queues a notice that somebody wants the resource in that mode.
func (l *lock) bast(mode int8) {
	l.deliver(callback{bast: true, mode: mode})
}

// deliver gives a callback to the process, now or when what holds it back is over.
func (l *lock) deliver(cb callback) {
	if l.m.dead || l.proc == nil {
		return
	}
	if l.gate != nil && l.gate.then(func() {
		l.m.node.c.mu.Lock()
		defer l.m.node.c.mu.Unlock()
		l.gate = nil
		l.deliver(cb)
	}) {
		return
	}
	if l.m.stopped() { // results come of messages, which a stopped lockspace keeps
		l.m.held = append(l.m.held, func() { l.deliver(cb) })
		return
	}
	p := l.proc
	if cb.bast && l.ua.Bastaddr == 0 {
		return
	}
	if !cb.bast && endsLock(cb) {
		l.ended = true
		if l.inProc != nil {
			p.locks.Remove(l.inProc)
			l.inProc = nil
		}
	}
	if cb.bast && len(l.callbacks) > 0 {
		// A notice right after one for the same or more is left out, PR and CW being neither more nor less.
		if last := l.callbacks[len(l.callbacks)-1]; last.bast && (last.mode == cb.mode || last.mode > cb.mode && last.mode > int8(dlm.PR)) {
			return
		}
	}
	l.callbacks = append(l.callbacks, cb)
	if l.queued == nil {
		l.queued = p.results.PushBack(l)
		p.readable.Broadcast()
	}
}

// endsLock reports whether a result is the last one about its lock.
func endsLock(cb callback) bool {
	return cb.status == abi.StatusUnlock || cb.status != 0 && cb.mode == none
}

// nextResult takes the next callback and makes a result of it, or nil if the callback has become needless.
func (d *proc) nextResult(size int) []byte {
	l := d.results.Front().Value.(*lock)
	cb := l.callbacks[0]
	l.callbacks = l.callbacks[1:]
	if len(l.callbacks) == 0 {
		d.results.Remove(l.queued)
		l.queued = nil
		if l.ended {
			l.m.freeID(l.id)
		}
	}
	if cb.bast && l.lastCast != nil && compat(cb.mode, l.lastCast.mode) {
		return nil // the lock is not in the way any more
	}
	res := abi.LockResult{UserLksb: l.ua.Lksb}
	var lvb *[abi.LVBLen]byte
	if cb.bast {
		res.UserAstaddr, res.UserAstparam, res.BastMode = l.ua.Bastaddr, l.ua.Bastparam, uint8(cb.mode)
	} else {
		res.UserAstaddr, res.UserAstparam = l.ua.Castaddr, l.ua.Castparam
		old := int8(dlm.NL)
		if l.lastCast != nil {
			old = l.lastCast.mode
		}
		if cb.status == 0 && l.hasLVB && lvbTransfer(old, cb.mode) != lvbToResource && size >= abi.ResultMax {
			lvb = &l.lvb
		}
		l.status, l.lastCast = cb.status, &cb
	}
	res.Lksb = abi.Lksb{Status: l.status, Lkid: l.id, Flags: cb.sbFlags}
	return abi.EncodeResult(res, lvb)
}
