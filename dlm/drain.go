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
	// drainQuiet is how long nothing may come otherwise: the count is of a moment, and may have been too high.
	drainQuiet = time.Second
)

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
// requests any more. f is what Duplicate returned in that process, underWay what Options.UnderWay was at its end, and
// running says whether the lockspace runs (State.Running); while it does not, and that may be for long, no result is
// expected. DrainFile does not close f. The error is ctx's, or that of a read that failed.
func DrainFile(ctx context.Context, f *os.File, underWay int64, running func() (bool, error)) error {
	if underWay <= 0 {
		return nil
	}
	var buf [abi.ResultMax]byte
	var results int64
	quietSince := time.Now()
	for ctx.Err() == nil {
		limit := drainQuiet
		if results >= underWay {
			limit = drainEnough
		}
		if runs, err := running(); err == nil && !runs {
			quietSince = time.Now()
		}
		if time.Since(quietSince) >= limit {
			return nil
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
		if res, _, err := abi.DecodeResult(buf[:n]); err == nil && res.UserAstaddr == castAddr {
			results++
		}
	}
	return ctx.Err()
}
