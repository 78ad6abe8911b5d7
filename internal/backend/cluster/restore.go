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
	space, why := b.lockspace()
	if space == nil {
		for i := range results {
			results[i].Err = fmt.Errorf("the DLM lockspace of the earlier process is not there: %w", why)
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

// Unsettled is how many requests the kernel has not answered whose callers have
// gone away.
func (b *Backend) Unsettled() int {
	space, _ := b.lockspace()
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
