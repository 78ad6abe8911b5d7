package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vmlockd/vmlockd/dlm"
)

// Handover is Close for a process in which another Backend goes on: the lockspace
// stays open, so that no lock has to be adopted. It returns nil if that is not
// possible, as something is under way whose outcome is not known; then it has
// closed the lockspace, and the locks are orphans for the next Restore.
func (b *Backend) Handover(ctx context.Context) (*dlm.Handover, error) {
	space, unfinished, err := b.retire(ctx)
	if space == nil {
		return nil, err
	}
	why := error(nil)
	switch n := space.Stats().Unsettled; {
	case n > 0:
		why = fmt.Errorf("the kernel has not answered %d requests", n)
	case unfinished > 0:
		why = fmt.Errorf("%d locks are being given back", unfinished)
	}
	var h *dlm.Handover
	if why == nil {
		beforeHandover.Pass()
		h, why = space.Handover(ctx)
		afterHandover.Pass()
	}
	if why == nil {
		return h, nil
	}
	b.log.Warn("the DLM lockspace is closed and opened again, and each lock adopted", "dlm", b.name, "reason", why)
	return nil, b.closeSpace(ctx, space)
}

// goOn goes on with a lockspace that was handed over, and reports false if it has
// to be opened.
func (b *Backend) goOn(h *dlm.Handover) bool {
	if h == nil {
		return false
	}
	err := errors.New("the configuration names another lockspace now")
	var space *dlm.Lockspace
	var locks []*dlm.Lock
	// What is not closed cannot be adopted. Earlier sees to that afterwards, if there is
	// a LastClose, which has the device open too; otherwise nobody does.
	ctx := context.Background()
	if b.last != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, joinPatience)
		defer cancel()
	}
	if h.Lockspace == b.name {
		beforeResume.Pass()
		space, locks, err = dlm.Resume(ctx, b.kernel, h, b.dlmOptions())
		afterResume.Pass()
	} else if e := h.Discard(ctx, b.kernel); e != nil {
		err = errors.Join(err, e)
	}
	if err != nil {
		b.log.Warn("the earlier program's DLM lockspace is of no use, each lock is adopted", "dlm", b.name, "earlier", h.Lockspace, "reason", err)
		return false
	}
	b.handed = make(map[string]*dlm.Lock, len(locks))
	for _, l := range locks {
		if b.handed[l.Name()] != nil {
			b.handedMore = append(b.handedMore, l)
			continue
		}
		b.handed[l.Name()] = l
	}
	b.enter(space)
	return true
}

// takeHanded is a lock that was handed over, the oldest of that name and mode;
// nil if there is none. What nobody takes is for DropUnclaimed.
func (b *Backend) takeHanded(name string, mode dlm.Mode) *dlm.Lock {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.handed[name]; l != nil && l.Mode() == mode {
		delete(b.handed, name)
		return l
	}
	for i, l := range b.handedMore {
		if l.Name() == name && l.Mode() == mode {
			b.handedMore = slices.Delete(b.handedMore, i, i+1)
			return l
		}
	}
	return nil
}

// noneHanded reports whether everything has to be adopted.
func (b *Backend) noneHanded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.handed) == 0
}

// dropEmpty frees the table, which stays as large as it ever was, once all is taken.
func (b *Backend) dropEmpty() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.handed) == 0 {
		b.handed = nil
	}
}
