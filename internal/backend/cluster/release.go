package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// A release that cannot be carried out now - the lockspace is stopped - is
// finished in the background, and its caller is told so within a second. It is
// not given to the kernel before the lockspace runs: that would keep a thread in
// the kernel, and this process could not be killed.

// release gives the lock of h back.
func (b *Backend) release(ctx context.Context, h *handle) error {
	if h.late != nil {
		b.finish(h)
		return &locking.Error{Kind: locking.KindUnavailable, Op: "release", Ref: h.ref, Err: errUnanswered}
	}
	err := b.tryRelease(ctx, h)
	if err != nil && b.ctx.Err() != nil {
		// The kernel may have been asked or not: the next process finds out, and
		// must not take the lock for one that its owner still has.
		return &locking.Error{Kind: locking.KindUnavailable, Op: "release", Ref: h.ref,
			Err: fmt.Errorf("%w: %w (%w)", locking.ErrUnderway, errStopping, err)}
	}
	return err
}

func (b *Backend) tryRelease(ctx context.Context, h *handle) error {
	r := b.watch.begin(ctx, false)
	defer r.end()
	if running, _ := b.watch.runs(); running {
		err := b.unlock(r.ctx, h)
		if err == nil || r.ctx.Err() == nil {
			return err
		}
	}
	done := b.finish(h)
	select {
	case err := <-done:
		return err
	case <-r.ctx.Done():
	}
	why := r.why()
	if !errors.As(why, new(*stopped)) {
		return why
	}
	return &locking.Error{Kind: locking.KindUnavailable, Op: "release", Ref: h.ref,
		Err: fmt.Errorf("%w: %w", locking.ErrUnderway, why)}
}

// unlock gives the lock to the kernel, once its publication has ended that is
// under way. Whoever is granted the lock next finds no name of an earlier holder.
func (b *Backend) unlock(ctx context.Context, h *handle) error {
	written := b.publisher.withdraw(h)
	if written {
		if _, err := h.lock.Settle(ctx); err != nil && !errors.Is(err, dlm.ErrUnlocked) {
			return err
		}
	}
	beforeUnlock.Pass()
	defer afterUnlock.Pass()
	var err error
	if written {
		err = h.lock.UnlockLVB(ctx, dlm.LVB{})
	} else {
		err = h.lock.Unlock(ctx)
	}
	if errors.Is(err, dlm.ErrUnlocked) {
		return nil
	}
	return err
}

// finish releases h in the background as soon as that is possible, and delivers
// the outcome. Until then, or until the backend is closed, nobody can lock the
// resource here.
func (b *Backend) finish(h *handle) <-chan error {
	done := make(chan error, 1)
	ended := make(chan struct{})
	b.mu.Lock()
	// Of one resource there is another only after a restart, of requests that were
	// not answered to the earlier process.
	earlier := b.releasing[h.name]
	b.releasing[h.name] = ended
	b.mu.Unlock()
	finish := func() {
		if earlier != nil {
			<-earlier
		}
		err := b.finishNow(h)
		b.mu.Lock()
		if b.releasing[h.name] == ended {
			delete(b.releasing, h.name)
		}
		b.mu.Unlock()
		close(ended)
		if err != nil && b.ctx.Err() == nil {
			b.notGivenBack(h, err)
		}
		done <- err
	}
	if !b.work.start(finish) {
		done <- errStopping
	}
	return done
}

func (b *Backend) notGivenBack(h *handle, err error) {
	b.log.Error("a lock could not be given back", "event", "lock-not-given-back", "resource", h.ref.Name, "lockspace", h.ref.Lockspace, "dlm_resource", h.name, "reason", err)
}

func (b *Backend) finishNow(h *handle) error {
	if h.late != nil {
		return b.giveBackLate(b.ctx, h)
	}
	said := false
	for {
		running, changed := b.watch.runs()
		var again <-chan time.Time
		if running {
			err := b.unlock(b.ctx, h)
			if err == nil || b.ctx.Err() != nil || errors.Is(err, dlm.ErrBroken) || errors.Is(err, dlm.ErrClosed) {
				return err
			}
			// The kernel had no memory, or the like. Nobody else knows of the lock any more.
			if !said {
				said = true
				b.notGivenBack(h, err)
			}
			changed, again = nil, time.After(joinRetry)
		}
		select {
		case <-changed:
		case <-again:
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
}

// waitReleased waits until an earlier lock of the same resource on this host,
// whose owner was told already, is given back.
func (b *Backend) waitReleased(ctx context.Context, name string) error {
	for {
		b.mu.Lock()
		ended := b.releasing[name]
		b.mu.Unlock()
		if ended == nil {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// givingBack is how many releases go on by themselves.
func (b *Backend) givingBack() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.releasing)
}
