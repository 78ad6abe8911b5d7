package dlm

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// The last descriptor of a lockspace's device must not be closed while a request made with it is on its way to another
// node: the answer then finds no process. Kernels up to 6.1 at least crash over that now and then (see the package's
// comment), and lose the result of the lock's next operation. The kernel closes the files of a process that is killed,
// whatever it was doing. So a process whose sudden end must not harm the host has another one, which does nothing else,
// keep the file of Duplicate open, and call DrainFile when the first one has ended.

const (
	// drainEnough is how long nothing may come once as many results have come as requests were under way. A notice or
	// the result of a cancel may have been among them.
	drainEnough = 50 * time.Millisecond
	// drainDoubt is how long nothing may come when the process ended in the middle of a write or a read, so that the
	// count may be too high by as many.
	drainDoubt = time.Second
	// drainQuiet is how long nothing may come otherwise. A node that is cut off or stands still is silent before the
	// others notice, while the lockspace runs: for corosync's token and consensus timeouts, which are 6.6 s by default
	// and 27 s with 16 nodes (corosync.conf(5): token 3 s and 650 ms for each node from the third on, consensus 1.2
	// times that), and after that the lockspace is stopped until its requests are answered, or sent again. The bound is
	// for results that the kernel loses (see lost.go).
	drainQuiet = time.Minute
)

// doubt notes that the count may be too high by n more than before.
func (ls *Lockspace) doubt(n int64) {
	if u := ls.underWay.Load(); u != nil {
		u.doubt(n)
	}
}

// countLocked keeps Options.UnderWay. A result may be read before the write of its request has returned.
func (l *Lock) countLocked() {
	open := func(r *request) bool { return r != nil && r.outcome == nil }
	inKernel := !l.dead && (l.write != nil && l.write.place == nil && open(l.write.req) ||
		open(l.cur) && l.cur.written || l.unlock != nil && l.unlock.written)
	if inKernel == (l.place != 0) {
		return
	}
	u := l.ls.underWay.Load()
	switch {
	case u == nil:
	case inKernel:
		l.place = u.begin(l.name)
	default:
		u.end(l.place)
		l.place = 0
	}
}

// Duplicate returns a descriptor of the lockspace's open device. Locks live for as long as any descriptor of it is open,
// in any process. Nobody but DrainFile may read from it. The error is ErrNoHandover if the Kernel has no such files.
func (ls *Lockspace) Duplicate() (*os.File, error) {
	const op = "duplicate"
	d, ok := ls.dev.(interface{ Duplicate() (*os.File, error) })
	if !ok {
		return nil, ls.fault(op, "", ErrNoHandover)
	}
	f, err := d.Duplicate()
	return f, ls.fault(op, "", err)
}

// DrainFile reads and drops the results that come for a process that has ended, until the kernel works on none of its
// requests any more. f is what Duplicate returned in that process, underWay what it had in Options.UnderWay, and
// running says whether the lockspace runs (State.Running); while it does not, and that may be for long, no result is
// expected. DrainFile does not close f. The error is ctx's, or that of a read that failed.
//
// With nothing under way it returns at once, and with answers to all 50 ms after the last. When nothing has come for
// a second, it asks for NL locks on the resources in question and releases them: what was asked about them before is
// answered when those are. What has no answer, a node being silent, it waits for until nothing has come for a minute in which the
// lockspace ran.
func DrainFile(ctx context.Context, f *os.File, underWay *UnderWay, running func() (bool, error)) error {
	return drainFile(ctx, f, underWay, running, drainQuiet)
}

func drainFile(ctx context.Context, f *os.File, u *UnderWay, running func() (bool, error), quiet time.Duration) error {
	underWay, doubtful := u.Count()
	if underWay <= 0 {
		return nil
	}
	// What is under way now stays so: the results are for a process that has ended.
	names, unknown := u.names()
	var buf [abi.ResultMax]byte
	var results int
	var asked uint64
	var b *barrier
	quietSince := time.Now()
	for ctx.Err() == nil {
		runs, err := running()
		runs = runs || err != nil
		if !runs {
			quietSince, b = time.Now(), nil
		}
		limit := quiet
		switch {
		case results >= underWay || b != nil && b.passed():
			limit = drainEnough
		case results >= underWay-doubtful:
			limit = min(drainDoubt, quiet)
		}
		silent := time.Since(quietSince)
		if silent >= limit {
			return nil
		}
		if b == nil && unknown == nil && runs && silent >= drainDoubt {
			b = newBarrier(f, names, 1+asked)
			asked += uint64(len(names))
		}
		if err := f.SetReadDeadline(time.Now().Add(drainEnough)); err != nil {
			return fault("drain", "", "", err)
		}
		n, err := f.Read(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
			continue
		case err != nil:
			return fault("drain", "", "", err)
		}
		quietSince = time.Now()
		res, _, err := abi.DecodeResult(buf[:n])
		switch {
		case err != nil:
		case res.UserAstaddr == castAddr:
			results++
		case res.UserAstaddr == barrierAddr && b != nil:
			b.take(&res)
		}
	}
	return ctx.Err()
}
