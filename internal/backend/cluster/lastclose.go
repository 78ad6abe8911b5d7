package cluster

import (
	"context"
	"os"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

// LastClose sees to it that the device of the lockspace is not closed while the
// kernel still works for this process, however the process ends. Closing it then
// can crash Linux 6.1 (see package dlm).
type LastClose interface {
	// Earlier returns nil when no earlier process's device is open any more.
	Earlier(ctx context.Context) error
	// Keep is called with a descriptor of the device, which is closed afterwards,
	// before anything is asked of it.
	Keep(device *os.File) error
	// Release lets go of the device while nothing is under way.
	Release()
	// UnderWay is kept at how many requests are under way.
	UnderWay() *atomic.Int64
}

// earlierWithin is how long an attempt to join waits for an earlier process.
const earlierWithin = 2 * time.Second

// dlmOptions are those of every way into the lockspace.
func (b *Backend) dlmOptions() dlm.Options {
	if b.last == nil {
		return dlm.Options{}
	}
	return dlm.Options{UnderWay: b.last.UnderWay()}
}

// awaitEarlier waits until the device of an earlier process is closed, whose
// locks are orphans only then.
func (b *Backend) awaitEarlier(ctx context.Context) error {
	if b.last == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, earlierWithin)
	defer cancel()
	return b.last.Earlier(ctx)
}

// keepOpen has the device closed late if this process is killed.
func (b *Backend) keepOpen(space *dlm.Lockspace) {
	if b.last == nil {
		return
	}
	device, err := space.Duplicate()
	if err == nil {
		err = b.last.Keep(device)
		device.Close()
	}
	if err != nil {
		b.log.Warn("nothing is there to close the DLM's device in good order if this daemon is killed; the host's kernel may crash then", "dlm", b.name, "reason", err)
	}
}

// letGo ends what keepOpen began.
func (b *Backend) letGo() {
	if b.last != nil {
		b.last.Release()
	}
}
