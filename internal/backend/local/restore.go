package local

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// restorers is how many locks are taken back at a time at most, so that a file
	// system that hangs does not keep those on others.
	restorers = 256
	// firstRestorers are enough where none hangs: each more needs memory that was never
	// touched before.
	firstRestorers = 2
	// moreRestorers is how long no lock must be taken back for there to be twice as many.
	moreRestorers = 5 * time.Millisecond
)

// Distrust makes Restore look at each descriptor also after NewSame: what the journal
// says of them may be wrong.
func (b *Backend) Distrust() { b.same = false }

// Restore takes back locks with the descriptors that the keeper had. Each is locked
// once more, which shows that it is still locked, or locks what its last process
// had just unlocked; if that was this process (NewSame), there is no doubt.
//
// What the keeper does not have is not locked: its last process ended before it was
// granted or after it was released, or the keeper ended with that process. In case of the
// last, the file is opened and locked anew if nobody else has done so. If that is
// not possible the error wraps locking.ErrNotHeld.
func (b *Backend) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	results := make([]locking.Restored, len(held))
	var rest []int
	for i := range held {
		if h := b.goOn(held[i]); h != nil {
			results[i].Handle = h
			continue
		}
		rest = append(rest, i)
	}
	eachInTime(rest, func(i int) {
		h, err := b.restore(ctx, held[i])
		if err != nil {
			results[i].Err = err
		} else {
			results[i].Handle = h // no nil *handle in an interface
		}
	})
	return results
}

// eachInTime calls f for each of list, in that order, and returns when all calls have.
// Those that hang keep no other waiting for long, unless there are restorers of them.
func eachInTime(list []int, f func(int)) {
	if len(list) == 0 {
		return
	}
	var begun, ended atomic.Int64
	var running sync.WaitGroup
	done := make(chan struct{})
	worker := func() {
		for {
			n := int(begun.Add(1))
			if n > len(list) {
				return
			}
			f(list[n-1])
			if int(ended.Add(1)) == len(list) {
				close(done)
			}
		}
	}
	workers := min(firstRestorers, len(list))
	for range workers {
		running.Go(worker)
	}
	tick := time.NewTicker(moreRestorers)
	defer tick.Stop()
	for last := int64(0); ; {
		select {
		case <-done:
			running.Wait() // nothing is left for them
			return
		case <-tick.C:
		}
		now := ended.Load()
		if now == last && int(begun.Load()) < len(list) {
			for range min(workers, restorers-workers) {
				workers++
				running.Go(worker)
			}
		}
		last = now
	}
}

// goOn goes on with a lock of this process; nil if there is none.
func (b *Backend) goOn(held locking.Held) *handle {
	if !b.same {
		return nil
	}
	path, err := pathOf("take back", held.Ref)
	if err != nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	fds := b.earlier[held.ID]
	if len(fds) == 0 {
		return nil
	}
	if len(fds) == 1 {
		delete(b.earlier, held.ID)
	} else {
		b.earlier[held.ID] = fds[1:]
	}
	b.restored[held.ID] = true
	return &handle{b: b, path: path, autocreate: held.Autocreate, id: held.ID, fd: fds[0], locked: true}
}

func (b *Backend) restore(ctx context.Context, held locking.Held) (*handle, error) {
	path, err := pathOf("take back", held.Ref)
	if err != nil {
		return nil, err
	}
	var refused error
	for {
		b.mu.Lock()
		fds := b.earlier[held.ID]
		if len(fds) == 0 {
			break
		}
		fd := fds[0]
		b.earlier[held.ID] = fds[1:]
		if len(fds) == 1 {
			delete(b.earlier, held.ID)
		}
		b.mu.Unlock()
		h := &handle{b: b, path: path, autocreate: held.Autocreate, fd: fd, locked: true}
		switch err := h.relock(ctx, held); {
		case err == nil:
			b.mu.Lock()
			b.restored[held.ID] = true
			b.mu.Unlock()
			return h, nil
		case errors.Is(err, locking.ErrBusy):
			// It is one that was unlocked, and of no use. Another of the same ID may be the one.
			refused = fmt.Errorf("%w: %w", locking.ErrNotHeld, err)
			h.Close()
		default:
			b.mu.Lock()
			b.doubtful[held.ID] = true
			b.earlier[held.ID] = append(b.earlier[held.ID], fd)
			b.mu.Unlock()
			return nil, err
		}
	}
	another := b.restored[held.ID]
	b.mu.Unlock()
	switch {
	case refused != nil:
		return nil, refused
	case another:
		return nil, locking.ErrNotHeld
	}
	h, err := b.lockAnew(ctx, held)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", locking.ErrNotHeld, err)
	}
	return h, nil
}

// relock locks what an earlier process has opened.
func (h *handle) relock(ctx context.Context, held locking.Held) error {
	return h.b.call(ctx, h.path, func() error {
		takeBefore.Pass()
		st, err := h.b.sys.fstat(h.fd)
		if err != nil {
			return fmt.Errorf("fstat: %w", err)
		}
		if id := idOf(st); id != held.ID {
			return fmt.Errorf("a descriptor that was kept for %q is of %q", held.ID, id)
		}
		h.id = held.ID
		err = h.b.sys.lock(h.fd, held.Mode == locking.Shared)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return h.busy(held.Mode)
		}
		takeAfter.Pass()
		return err
	}, func() {}) // as it is: the keeper has it too, and the next Restore finds out
}

// lockAnew opens and locks the file by its name.
func (b *Backend) lockAnew(ctx context.Context, held locking.Held) (*handle, error) {
	relockBefore.Pass()
	opened, err := b.Open(ctx, held.Ref, false)
	if err != nil {
		return nil, err
	}
	h := opened.(*handle)
	if id := h.ID(); id != held.ID {
		h.Close()
		return nil, fmt.Errorf("%w (%s)", locking.ErrStale, id)
	}
	if err := h.Lock(ctx, held.Mode); err != nil {
		h.Close()
		return nil, err
	}
	h.autocreate = held.Autocreate
	b.mu.Lock()
	b.restored[held.ID] = true
	b.mu.Unlock()
	relockAfter.Pass()
	if held.Told {
		b.log.Warn("a lock was taken anew, as the process that keeps files locked did not have it: meanwhile another program could have had it",
			"event", "lock-taken-anew", "lockspace", held.Ref.Lockspace, "name", held.Ref.Name)
	}
	return h, nil
}

// DropOthers releases what an earlier process held and Restore did not take, and
// returns how many descriptors that were. What a Restore was in doubt about stays
// locked. When ctx ends its error is returned, and what has not been released by
// then stays for another call.
func (b *Backend) DropOthers(ctx context.Context) (int, error) {
	b.mu.Lock()
	var others []*handle
	for id, fds := range b.earlier {
		if b.doubtful[id] {
			continue
		}
		for _, fd := range fds {
			others = append(others, &handle{b: b, path: id, fd: fd, locked: true})
		}
		delete(b.earlier, id)
	}
	// What is taken back is taken back. Emptied tables stay as large as they ever were.
	b.restored = map[string]bool{}
	if len(b.earlier) == 0 {
		b.earlier = map[string][]int{}
	}
	b.mu.Unlock()
	for i, h := range others {
		dropBefore.Pass()
		if err := h.Unlock(ctx); err != nil {
			b.mu.Lock()
			for _, left := range others[i+1:] { // this one goes on by itself
				b.earlier[left.path] = append(b.earlier[left.path], left.fd)
			}
			b.mu.Unlock()
			return i, err
		}
		dropAfter.Pass()
	}
	return len(others), nil
}

// Unsettled is how many calls were given up and may still change what is locked.
func (b *Backend) Unsettled() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int(b.unsettled.Load())
	for _, hanging := range b.hanging {
		n += hanging.calls
	}
	return n
}
