package locking

import (
	"context"
	"reflect"
	"sync"
	"time"
)

// sharedPart is the part of the timeout within which requests that begin get the same deadline.
const sharedPart = 64

// deadlines gives requests their deadlines. A context with a timer for each is a twentieth of what
// a request on a local file costs, and most of them ask with the same context, the server's: so
// those that begin shortly one after another share one. None has more than timeout, and one that
// came later less by up to a 64th of it. Where one waits for the other's turn on a resource, both
// may give up at the same moment: the one that waited has done nothing then, and its error says so.
type deadlines struct {
	timeout time.Duration // 0 or less: none

	mu     sync.Mutex      // guards all below
	parent context.Context // whose requests share shared
	shared context.Context // of the latest of them
	until  time.Time       // when the next request gets another, whosever it is
}

func (d *deadlines) of(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.timeout <= 0 {
		return ctx, func() {}
	}
	if c := d.sharedOf(ctx); c != nil {
		return c, func() {}
	}
	return context.WithTimeout(ctx, d.timeout)
}

// sharedOf is nil if requests with ctx share nothing.
func (d *deadlines) sharedOf(ctx context.Context) context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	current := d.parent != nil && now.Before(d.until) && d.shared.Err() == nil
	switch {
	case current && d.parent == ctx:
		return d.shared
	case current:
		return nil
	// Others may panic when they are compared with one of their kind.
	case ctx != context.Background() && reflect.TypeOf(ctx).Kind() != reflect.Pointer:
		return nil
	}
	d.parent, d.until = ctx, now.Add(d.timeout/sharedPart)
	shared, cancel := context.WithDeadline(ctx, now.Add(d.timeout))
	_ = cancel // no request may end what others use: its deadline does, or the end of ctx
	d.shared = shared
	return shared
}
