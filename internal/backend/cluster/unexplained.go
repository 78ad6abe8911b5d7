package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vmlockd/vmlockd/dlm"
)

// Unexplained are the DLM resources of which an earlier Backend of this process has
// handed over a lock that Restore has not taken, sorted. Orphans that the kernel has
// besides cannot be listed: it gives one only to who knows its name.
func (b *Backend) Unexplained() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []string{}
	for name := range b.handed {
		list = append(list, name)
	}
	for _, l := range b.handedMore {
		list = append(list, l.Name())
	}
	slices.Sort(list)
	return list
}

// DropOthers releases every lock of this host that no Backend of this process has
// taken: what Unexplained lists, and all orphans. It returns how many of the former it
// has released. Nobody but an operator may decide that: without the records of a
// damaged journal these may be locks of running machines. Before all locks that there are
// records of have been taken back it must not be called: the kernel has them as
// orphans until then, and a purge spares none. And a purge of orphans can
// crash kernels up to 6.1 at least, when a daemon was killed with a request under way
// (see package dlm).
func (b *Backend) DropOthers(ctx context.Context) (int, error) {
	if err := b.Replaceable(); err != nil {
		return 0, err
	}
	space, why := b.lockspace()
	if space == nil {
		return 0, why
	}
	b.mu.Lock()
	var others []*dlm.Lock
	for _, l := range b.handed {
		others = append(others, l)
	}
	others = append(others, b.handedMore...)
	b.handed, b.handedMore = nil, nil
	b.mu.Unlock()
	n := 0
	var errs []error
	for _, l := range others {
		beforeDrop.Pass()
		err := l.Unlock(ctx)
		afterDrop.Pass()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Name(), err))
			b.mu.Lock()
			b.handedMore = append(b.handedMore, l)
			b.mu.Unlock()
			continue
		}
		n++
	}
	if err := errors.Join(errs...); err != nil {
		return n, err
	}
	beforePurge.Pass()
	defer afterPurge.Pass()
	return n, space.Purge(ctx, 0)
}
