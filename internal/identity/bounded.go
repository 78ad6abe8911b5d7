package identity

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxCalls bounds the look-ups under way. Each that hangs keeps a thread.
	maxCalls = 512
	// maxStuck bounds, for each mount, those whose callers have gone away. More are
	// refused until one of them returns: so one server that hangs does not use up
	// maxCalls.
	maxStuck = 16
)

// Resolver finds out which disk a path leads to. Each look-up has a goroutine of
// its own, their number is bounded, and nobody waits for one longer than his context
// allows. One that hangs on a mount is not waited for by those who ask for others.
type Resolver struct {
	host  kernel
	rules []Rule
	slots chan struct{}

	mu    sync.Mutex     // guards stuck
	stuck map[string]int // look-ups that hang and that nobody waits for, by mount
}

type outcome struct {
	id  Identity
	err error
}

func (r *Resolver) call(ctx context.Context, path string) (Identity, error) {
	if err := ctx.Err(); err != nil {
		return Identity{Path: path}, err
	}
	mount := r.mountOf(path)
	r.mu.Lock()
	stuck := r.stuck[mount]
	r.mu.Unlock()
	if stuck >= maxStuck {
		return Identity{Path: path}, fmt.Errorf("%d earlier look-ups below %s still hang in the kernel: is its file system's server reachable? (%w)", stuck, mount, unix.EAGAIN)
	}
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return Identity{Path: path}, fmt.Errorf("%d look-ups of paths hang in the kernel: %w", maxCalls, ctx.Err())
	}
	done := make(chan outcome, 1)
	var (
		mu        sync.Mutex // guards the two below
		finished  bool
		abandoned bool
	)
	go func() {
		id, err := r.resolve(path)
		mu.Lock()
		finished = true
		left := abandoned
		mu.Unlock()
		if left {
			r.count(mount, -1)
		}
		<-r.slots
		done <- outcome{id, err}
	}()
	select {
	case o := <-done:
		return o.id, o.err
	case <-ctx.Done():
	}
	mu.Lock()
	if finished {
		mu.Unlock()
		o := <-done
		return o.id, o.err
	}
	abandoned = true
	r.count(mount, 1)
	mu.Unlock()
	return Identity{Path: path}, fmt.Errorf("its file system or device has not answered: %w", ctx.Err())
}

func (r *Resolver) count(mount string, by int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stuck[mount] += by; r.stuck[mount] == 0 {
		delete(r.stuck, mount)
	}
}

// mountOf is the mount below which a path is, if no symbolic link leads elsewhere.
// It looks at no file. It need not be right: it is only by what calls are counted.
func (r *Resolver) mountOf(path string) string {
	t, err := r.host.mounts(false)
	if err != nil {
		return "/"
	}
	return t.above(path)
}
