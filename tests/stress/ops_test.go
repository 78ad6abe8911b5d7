package stress

import (
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Operations for histories made by hand.

func at(i int) time.Duration { return time.Duration(i) * 10 * time.Microsecond }

func acq(owner int, mode locking.Mode) Op { return Op{Kind: Acquire, Owner: owner, Mode: mode} }

func busy(owner int, mode locking.Mode) Op {
	return Op{Kind: Acquire, Owner: owner, Mode: mode, Answer: Busy}
}

func rel(owner int) Op { return Op{Kind: Release, Owner: owner} }

func refused(owner int, how Answer) Op { return Op{Kind: Release, Owner: owner, Answer: how} }

func dies(owner int) Op { return Op{Kind: Death, Owner: owner} }

func unknown(o Op) Op { o.Answer = Unknown; return o }

func timedOut(o Op) Op { o.Answer = TimedOut; return o }

func gone(o Op) Op { o.Answer = OwnerGone; return o }

// during places an operation between the first of a history, at 0, and the next.
func during(o Op, call, ret int) Op {
	o.Call, o.Return = at(1)+time.Duration(call)*time.Microsecond, at(1)+time.Duration(ret)*time.Microsecond
	return o
}

// open is for an operation after one other.
func open(o Op) Op { o.Call, o.Return = at(1), never; return o }

// killed ends the daemon of a node in the middle of an operation of h, and has
// the next one serve when that operation is over.
func killed(node, op int, h *History) *History {
	h.addOutage(Outage{Node: node, From: at(op) + 5*time.Microsecond, Until: at(op+1) - 1})
	return h
}
