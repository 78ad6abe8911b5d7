package closer

import (
	"context"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
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

// Keep starts a closer for the device, and ends the one before it.
func (g *Guard) Keep(device *os.File) error {
	before := g.now
	c, err := Start(g.dir, g.lockspace, device, g.count)
	if err != nil {
		return err
	}
	g.now = c
	before.End()
	return nil
}

// Release ends the closer.
func (g *Guard) Release() { g.now.End() }

// Close forgets the number, which nobody changes any more. The closer goes on.
func (g *Guard) Close() {
	_ = unix.Munmap(g.count.mem)
	_ = g.count.file.Close()
}

// UnderWay is the number that the closer reads.
func (g *Guard) UnderWay() *atomic.Int64 { return g.count.Value() }

// PID is that of the closer; 0 if there is none.
func (g *Guard) PID() int { return g.now.PID() }
