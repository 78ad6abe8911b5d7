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
// came later less by up to a 64th of it.
type deadlines struct {
	timeout time.Duration // 0 or less: none

	mu     sync.Mutex         // guards all below
	parent context.Context    // whose requests share deadlines: the first that came, until it has ended
	shared context.Context    // of the latest of them
	cancel context.CancelFunc // of shared, which others use: so its timer ends it
	until  time.Time          // when the next one is made
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
	if d.parent == nil || d.parent != ctx && d.parent.Err() != nil {
		// Others may panic when they are compared with one of their kind.
		if ctx != context.Background() && reflect.TypeOf(ctx).Kind() != reflect.Pointer {
			return nil
		}
		d.parent, d.shared, d.until = ctx, nil, time.Time{}
	}
	if d.parent != ctx {
		return nil
	}
	if now := time.Now(); d.shared == nil || !now.Before(d.until) {
		d.shared, d.cancel = context.WithDeadline(ctx, now.Add(d.timeout))
		d.until = now.Add(d.timeout / sharedPart)
	}
	return d.shared
}
