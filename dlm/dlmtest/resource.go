package dlmtest

import (
	"slices"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// resource is what locks are about. It exists as long as it has any.
type resource struct {
	s      *space
	name   string
	master *member // keeps its books; the first who asked for a lock

	granted, converting, waiting []*lock

	lvb        [abi.LVBLen]byte
	hasLVB     bool
	lvbSeq     uint64
	lvbInvalid bool
}

func (r *resource) queues() []*[]*lock {
	return []*[]*lock{&r.granted, &r.converting, &r.waiting}
}

// move puts l on the queue of state s, at its end, or on none.
func (r *resource) move(l *lock, s state) {
	queues := [...]*[]*lock{granted: &r.granted, converting: &r.converting, waiting: &r.waiting}
	if l.state != off {
		q := queues[l.state]
		*q = slices.DeleteFunc(*q, func(o *lock) bool { return o == l })
	}
	if l.state = s; s != off {
		*queues[s] = append(*queues[s], l)
	}
	if len(r.granted)+len(r.converting)+len(r.waiting) == 0 && r.s.resources[r.name] == r {
		delete(r.s.resources, r.name)
	}
}

// grantable reports whether l can have l.rq: now, when it is just requested, or later, when it is queued. After a
// recovery conversions have lost their order.
func (r *resource) grantable(l *lock, now, recovery bool) bool {
	if l.flags&abi.FlagExpedite != 0 {
		return true
	}
	for _, q := range [][]*lock{r.granted, r.converting} {
		for _, o := range q {
			if o != l && !compat(o.gr, l.rq) {
				return false
			}
		}
	}
	convert := l.gr != none
	switch {
	case convert && recovery:
		return true
	case convert && now:
		return l.flags&abi.FlagQueCvt == 0 || len(r.converting) == 0
	case convert:
		return r.converting[0] == l
	case now:
		return len(r.converting) == 0 && len(r.waiting) == 0
	}
	return len(r.converting) == 0 && r.waiting[0] == l
}

// deadlocks reports whether l, if its conversion were queued, would wait for one that waits for l.
func (r *resource) deadlocks(l *lock) bool {
	return slices.ContainsFunc(r.converting, func(o *lock) bool { return o != l && !compat(l.gr, o.rq) })
}

// grant gives l what it requests.
func (r *resource) grant(l *lock) {
	r.transferLVB(l)
	if l.gr != l.rq || l.state != granted {
		r.move(l, granted)
	}
	l.gr, l.rq, l.highBast = l.rq, none, none
	l.cast(0)
}

func (r *resource) transferLVB(l *lock) {
	with := l.hasLVB && l.flags&abi.FlagValBlk != 0
	switch lvbTransfer(l.gr, l.rq) {
	case lvbToLock:
		if !with || !r.hasLVB {
			return // and nothing is said about its being valid
		}
		l.lvb, l.lvbSeq = r.lvb, r.lvbSeq
	case lvbToResource:
		if l.flags&abi.FlagIvValBlk != 0 {
			r.lvbInvalid = true
			return
		}
		if !with {
			return
		}
		r.writeLVB(l)
	}
	if r.lvbInvalid {
		l.sbFlags |= abi.SbfValNotValid
	}
}

func (r *resource) writeLVB(l *lock) {
	r.lvbSeq++
	r.lvb, r.hasLVB, r.lvbInvalid = l.lvb, true, false
	l.lvbSeq = r.lvbSeq
}

// remove ends a lock on the resource, whatever it waits for.
func (r *resource) remove(l *lock) {
	if l.gr >= int8(dlm.PW) {
		switch {
		case l.flags&abi.FlagIvValBlk != 0:
			r.lvbInvalid = true
		case l.hasLVB && l.flags&abi.FlagValBlk != 0:
			r.writeLVB(l)
		}
	}
	r.move(l, off)
	l.gr, l.rq = none, none
}

// revert takes back what l waits for. It reports false if that is nothing.
func (r *resource) revert(l *lock) bool {
	l.rq = none
	switch l.state {
	case converting:
		r.move(l, granted)
		return true
	case waiting:
		r.move(l, off)
		return true
	}
	return false
}

// grantPending grants what has become possible, and sends notices to those who are in the way of the rest.
func (r *resource) grantPending(recovery bool) {
	high, cw := none, false
	for again := true; again; {
		again, high, cw = false, none, false
		for _, l := range slices.Clone(r.converting) {
			if r.grantable(l, false, recovery) {
				r.grant(l)
				again = true
				continue
			}
			high, cw = max(high, l.rq), cw || l.rq == int8(dlm.CW)
		}
	}
	for _, l := range slices.Clone(r.waiting) {
		if r.grantable(l, false, false) {
			r.grant(l)
			continue
		}
		high, cw = max(high, l.rq), cw || l.rq == int8(dlm.CW)
	}
	if high == none {
		return
	}
	const pr, ex = int8(dlm.PR), int8(dlm.EX)
	for _, l := range r.granted {
		switch {
		case l.gr == pr && cw:
			if l.highBast >= ex {
				continue
			}
		case l.highBast >= high || compat(l.gr, high):
			continue
		}
		mode := high
		if cw && high == pr && l.gr == pr {
			mode = int8(dlm.CW)
		}
		l.bast(mode)
		l.highBast = high
	}
}

// notify tells the locks on the queues that they are in the way of l.
func (r *resource) notify(l *lock, queues ...[]*lock) {
	const pr, cw = int8(dlm.PR), int8(dlm.CW)
	for _, q := range queues {
		for _, o := range q {
			if o == l || compat(o.gr, l.rq) {
				continue
			}
			limit := l.rq
			if o.gr == pr && l.rq == cw || o.gr == cw && l.rq == pr {
				limit = int8(dlm.EX)
			}
			if o.highBast < limit {
				o.bast(l.rq)
				o.highBast = l.rq
			}
		}
	}
}
