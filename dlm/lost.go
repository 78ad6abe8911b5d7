package dlm

import "time"

// lostAfter is how long the result of an adopted lock's release, or of its conversion with NOQUEUE, is waited for at least.
// A node answers within milliseconds, unless it or this one has much to do.
const lostAfter = 200 * time.Millisecond

// outwaitLocked ends the release or the conversion of an adopted lock, which the kernel has taken, after d also without a
// result.
//
// A process may be killed while its request is on the way to another node. The kernel marks the request as an orphan's,
// and the grant that then arrives replaces the mark by the other node's flags (receive_flags_reply, fs/dlm/lock.c). So
// the kernel queues the grant for the process that is gone, and the lock, which remembers being in a queue, never gets
// into that of the process that adopts it. Everything else about it is in order. A release that was taken is carried
// out, at once or after a recovery of the lockspace, so nothing is wrong with not having heard of it: who asks for the
// lock too early is refused.
//
// A conversion that was taken is carried out or refused, likewise. Of that nothing more is known, and its result may come
// yet. So that it is not taken for another one's, it is owed from then on, also by the next program after a Handover: no
// other conversion is tried before it has come. It is what the conversion would have been told, so the lock's mode follows it.
//
// To ask again by the lock's number would be a way to know. But the number is another lock's as soon as a result has
// been read after all.
func (l *Lock) outwaitLocked(d time.Duration) {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		l.ls.mu.Lock()
		defer l.ls.mu.Unlock()
		if l.retry != t {
			return
		}
		l.retry = nil
		if r := l.cur; r != nil && !l.dead {
			l.cur, l.owed = nil, r
			r.endLocked(ErrNoResult)
		} else if r := l.unlock; r != nil && !l.dead {
			l.dead, l.unlock = true, nil
			r.endLocked(nil)
		}
		l.stepLocked()
	})
	l.retry = t
}
