package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// Restore adopts the locks that an earlier process of this host left in the
// kernel. They are persistent, so that no death of a process releases one.
// Adoption does not wait for a stopped lockspace or for quorum.
//
// Nothing is ever purged: every lock of this host has an entry in the journal,
// written before the kernel was asked, and PURGE can crash kernels up to 6.1 at
// least (see package dlm).
func (b *Backend) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	results := make([]locking.Restored, len(held))
	if len(held) == 0 {
		return results
	}
	space, err := b.earlier(ctx)
	if err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	adoptions := make([]dlm.Adoption, len(held))
	for i, h := range held {
		adoptions[i] = dlm.Adoption{Name: h.ID, Mode: modeOf(h.Mode), Options: dlm.LockOptions{Persistent: true}}
	}
	beforeAdopt.Pass()
	adopted := space.AdoptAll(ctx, adoptions)
	afterAdopt.Pass()
	for i, a := range adopted {
		switch {
		case errors.Is(a.Err, dlm.ErrNoOrphan), errors.Is(a.Err, dlm.ErrOtherMode):
			// In another mode: what a request leaves that was refused after its process
			// had ended. It holds nothing (see package dlm).
			results[i].Err = fmt.Errorf("%w: %w", locking.ErrNotHeld, a.Err)
			continue
		case a.Err != nil:
			results[i].Err = a.Err
			continue
		}
		results[i].Handle = &handle{b: b, ref: held[i].Ref, name: held[i].ID, lock: a.Lock}
	}
	return results
}

// earlier is the lockspace that this host was a member of. Opening it needs
// nobody else, so if it is there it is waited for.
func (b *Backend) earlier(ctx context.Context) (*dlm.Lockspace, error) {
	if space, _ := b.lockspace(); space != nil {
		return space, nil
	}
	if _, err := b.kernel.Minor(b.name); errors.Is(err, dlm.ErrNoLockspace) {
		return nil, fmt.Errorf("%w: this host is not in the DLM lockspace any more", locking.ErrNotHeld)
	}
	select {
	case <-b.joined:
	case <-ctx.Done():
	}
	space, why := b.lockspace()
	if space == nil {
		return nil, fmt.Errorf("the DLM lockspace cannot be opened: %w", why)
	}
	return space, nil
}

// Replaceable is nil if this process can be replaced by another program now. In
// a lockspace that is stopped, closing it and even ending would wait in the
// kernel for as long as that lasts.
func (b *Backend) Replaceable() error {
	if n := b.Unsettled(); n > 0 {
		return fmt.Errorf("the kernel has not answered %d requests", n)
	}
	if space, _ := b.lockspace(); space == nil {
		return errors.New("this host is joining the DLM lockspace")
	}
	if running, _ := b.watch.runs(); !running {
		return errors.New("the DLM lockspace is stopped")
	}
	return nil
}

// Unsettled is how many requests the kernel has not answered whose callers have
// gone away. Once the backend is being closed nobody learns of answers any more,
// so then there is always one: what is forgotten now is not found by the next
// process.
func (b *Backend) Unsettled() int {
	space, _ := b.lockspace()
	if b.ctx.Err() != nil {
		return 1
	}
	if space == nil {
		return 0
	}
	return space.Stats().Unsettled + b.givingBack()
}

func modeOf(m locking.Mode) dlm.Mode {
	if m == locking.Shared {
		return dlm.PR
	}
	return dlm.EX
}
