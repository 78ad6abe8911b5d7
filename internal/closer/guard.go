package closer

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
)

// Guard is the closer of a daemon's lockspace, one after the other. Its methods
// are not called at the same time.
type Guard struct {
	dir, lockspace string
	count          *Count
	now            *Closer
}

// NewGuard makes a Guard. earlier is the PID of the closer that the program before
// this one in the same process has left, 0 if there is none.
func NewGuard(dir, lockspace string, earlier int) (*Guard, error) {
	c, err := NewCount()
	if err != nil {
		return nil, err
	}
	return &Guard{dir: dir, lockspace: lockspace, count: c, now: Earlier(earlier)}, nil
}

// Earlier waits for closers of earlier daemons (Wait).
func (g *Guard) Earlier(ctx context.Context) error { return Wait(ctx, g.dir, g.lockspace) }

// endWithin is how long Keep waits for the end of the closer before. That is not the
// last one that has the device, so it ends at once. A variable for tests.
var endWithin = time.Second

// Keep starts a closer for the device, and ends the one before it. ended is closed
// when the new one has ended, which is to be Keep's, Release's or Dismiss's doing.
func (g *Guard) Keep(device *os.File) (ended <-chan struct{}, err error) {
	before := g.now
	c, err := Start(g.dir, g.lockspace, device, g.count)
	if err != nil {
		return nil, err
	}
	g.now = c
	ctx, cancel := context.WithTimeout(context.Background(), endWithin)
	defer cancel()
	_ = before.End(ctx)
	return c.Ended(), nil
}

// Release ends the closer while nothing is under way (Closer.End).
func (g *Guard) Release(ctx context.Context) error { return g.now.End(ctx) }

// Dismiss lets the closer end when the kernel has answered (Closer.Dismiss).
func (g *Guard) Dismiss() { g.now.Dismiss() }

// Close forgets what the closer reads, which nobody may change any more: what is still under way
// must not go on in a Lockspace that has it. The closer goes on.
func (g *Guard) Close() {
	g.now.forget()
	_ = unix.Munmap(g.count.mem)
	_ = g.count.file.Close()
}

// UnderWay is what the closer reads.
func (g *Guard) UnderWay() *dlm.UnderWay { return g.count.UnderWay }

// PID is that of the closer; 0 if there is none.
func (g *Guard) PID() int { return g.now.PID() }
