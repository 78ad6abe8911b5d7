package dlm

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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
		open(l.cur) && l.cur.written || l.unlock != nil && l.unlock.written || l.owed != nil)
	if inKernel == (l.place != 0) {
		return
	}
	u := l.ls.underWay.Load()
	switch {
	case u == nil:
	case inKernel:
		l.place = u.begin(l.cookie, l.name)
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
// With nothing under way, or ErrNoLockspace from running, it returns at once, and with answers to all 50 ms after the last. When nothing has come for
// a second, it asks for NL locks on the resources in question and releases them: what was asked about them before is
// answered when the releases are. What has no answer, a node being silent, it waits for until nothing has come for a minute in which the
// lockspace ran.
//
// That a request is queued is an answer too. A conversion of a persistent lock should not be left queued (use NoQueue):
// a grant that comes while the device is closed is as dangerous as any answer.
func DrainFile(ctx context.Context, f *os.File, underWay *UnderWay, running func() (bool, error)) error {
	return drainFile(ctx, f, underWay, running, drainQuiet)
}

func drainFile(ctx context.Context, f *os.File, u *UnderWay, running func() (bool, error), quiet time.Duration) error {
	underWay, doubtful := u.Count()
	if underWay <= 0 {
		return nil
	}
	var buf [abi.ResultMax]byte
	d := newDrain(f, u)
	// How long nothing has come while this process looked. When it did not run, as on a host that stood still, there may
	// be results, and nobody has seen whether the lockspace ran.
	var silent time.Duration
	for ctx.Err() == nil {
		runs, err := running()
		if errors.Is(err, ErrNoLockspace) {
			return nil
		}
		runs = runs || err != nil
		if !runs {
			silent, d.barrier = 0, nil
		}
		limit := quiet
		switch {
		case d.answered(underWay):
			limit = drainEnough
		case d.unknown != nil && len(d.heard) >= underWay-doubtful:
			limit = min(drainDoubt, quiet)
		}
		if silent >= limit {
			return nil
		}
		if runs && silent >= drainDoubt && d.ask() {
			silent = 0
		}
		begin := time.Now()
		n, err := readSoon(f, buf[:], drainEnough)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
			silent += min(time.Since(begin), drainEnough)
			continue
		case err != nil:
			return fault("drain", "", "", err)
		}
		if d.take(buf[:n]) {
			silent = 0
		}
	}
	return ctx.Err()
}

// readSoon reads what comes within d. The error is os.ErrDeadlineExceeded only if nothing was there after that either: a
// read whose deadline passes before it begins does not look.
func readSoon(f *os.File, buf []byte, d time.Duration) (n int, err error) {
	if err := f.SetReadDeadline(time.Now().Add(d)); err != nil {
		return 0, err
	}
	if n, err = f.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	if err := c.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), buf)
		return true
	}); err != nil {
		return 0, err
	}
	switch {
	case failed == unix.EAGAIN:
		return 0, os.ErrDeadlineExceeded
	case failed != nil:
		return 0, failed
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
