package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// Distrust makes Restore look at each descriptor also after NewSame, and how it is locked:
// what the journal says of them may be wrong.
func (b *Backend) Distrust() { b.same, b.distrusted = false, true }

// Restore takes back locks with the descriptors that the keeper had. Each is locked
// once more, which shows that it is still locked, or locks what its last process
// had just unlocked; if that was this process (NewSame), there is no doubt.
//
// What the keeper does not have is not locked: its last process ended before it was
// granted or after it was released, or the keeper ended with that process. In case of the
// last, the file is opened and locked anew if nobody else has done so. If that is
// not possible the error wraps locking.ErrNotHeld.
//
// After Distrust, and of what is in held in both modes, one after the other, a descriptor
// that is locked in one mode is not taken for one of the other, which would change its
// lock: it stays, for DropOthers. Where the kernel does not say how it is locked, it is taken
// for what held has of its ID, in the strongest mode that it can have (Restored.Either).
func (b *Backend) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	results := make([]locking.Restored, len(held))
	var rest []int
	for i := 0; i < len(held); i += together(held[i:]) {
		if together(held[i:]) == 1 {
			if h := b.goOn(held[i]); h != nil {
				results[i].Handle = h
				continue
			}
		}
		rest = append(rest, i)
	}
	eachInTime(rest, func(i int) {
		n := together(held[i:])
		b.restore(ctx, held[i:i+n], results[i:i+n])
	})
	return results
}

// together is how many at the beginning of list are of one lock, in one of two modes.
// There can be two also when the doubt in which they were taken back is over.
func together(list []locking.Held) int {
	if len(list) > 1 && list[0].ID == list[1].ID && list[0].Mode != list[1].Mode {
		return 2
	}
	return 1
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

// restore takes back one lock. Of one in two modes the first has the result, unless it
// is certain that it is the other's.
func (b *Backend) restore(ctx context.Context, held []locking.Held, results []locking.Restored) {
	h, found, err := b.find(ctx, held)
	if err != nil {
		for i := range results {
			results[i].Err = err
		}
		return
	}
	at := 0
	for i := range results {
		results[i].Err = fmt.Errorf("%w: it is locked in the other mode", locking.ErrNotHeld)
		if !found.either && held[i].Mode == found.mode {
			at = i
		}
	}
	results[at] = locking.Restored{Handle: h, Either: found.either, Mode: found.mode}
}

// found is how a descriptor is locked.
type found struct {
	mode   locking.Mode
	either bool // it is not known how it was locked
}

var errOtherMode = errors.New("it is locked in another mode than the record says")

// find finds the descriptor of one lock, of which held has one mode or both.
func (b *Backend) find(ctx context.Context, held []locking.Held) (*handle, found, error) {
	id := held[0].ID
	path, err := pathOf("take back", held[0].Ref)
	if err != nil {
		return nil, found{}, err
	}
	var refused error
	var others []int // that are locked, for whom no record says
	putBack := func() {
		if len(others) > 0 {
			b.earlier[id] = append(others, b.earlier[id]...)
		}
	}
	for {
		b.mu.Lock()
		fds := b.earlier[id]
		if len(fds) == 0 {
			break
		}
		fd := fds[0]
		b.earlier[id] = fds[1:]
		if len(fds) == 1 {
			delete(b.earlier, id)
		}
		b.mu.Unlock()
		h := &handle{b: b, path: path, autocreate: held[0].Autocreate, fd: fd, locked: true}
		how, err := h.relock(ctx, held)
		switch {
		case err == nil:
			b.mu.Lock()
			putBack()
			b.restored[id] = true
			b.mu.Unlock()
			for _, l := range held[1:] {
				if l.Mode != how.mode {
					continue
				}
				if path, err := pathOf("take back", l.Ref); err == nil {
					h.path, h.autocreate = path, l.Autocreate
				}
			}
			return h, how, nil
		case errors.Is(err, errOtherMode):
			others = append(others, fd)
			refused = fmt.Errorf("%w: %w", locking.ErrNotHeld, err)
		case errors.Is(err, locking.ErrBusy):
			// It is one that was unlocked, and of no use. Another of the same ID may be the one.
			refused = fmt.Errorf("%w: %w", locking.ErrNotHeld, err)
			h.Close()
		default:
			b.mu.Lock()
			putBack()
			b.doubtful[id] = true
			b.earlier[id] = append(b.earlier[id], fd)
			b.mu.Unlock()
			return nil, found{}, err
		}
	}
	putBack()
	another := b.restored[id]
	b.mu.Unlock()
	switch {
	case refused != nil:
		return nil, found{}, refused
	case another:
		return nil, found{}, locking.ErrNotHeld
	}
	h, how, err := b.anyAnew(ctx, held)
	if err != nil {
		return nil, found{}, fmt.Errorf("%w: %w", locking.ErrNotHeld, err)
	}
	return h, how, nil
}

// relock locks what an earlier process has opened. ErrBusy says that it was not locked.
func (h *handle) relock(ctx context.Context, held []locking.Held) (found, error) {
	var how found
	err := h.b.call(ctx, h.path, func() error {
		takeBefore.Pass()
		st, err := h.b.sys.fstat(h.fd)
		if err != nil {
			return fmt.Errorf("fstat: %w", err)
		}
		if id := idOf(st); id != held[0].ID {
			return fmt.Errorf("a descriptor that was kept for %q is of %q", held[0].ID, id)
		}
		h.id = held[0].ID
		got := found{mode: held[0].Mode}
		if h.b.distrusted || len(held) > 1 {
			got, err = h.lockAsItIs(held)
		} else {
			err = h.b.sys.lock(h.fd, got.mode == locking.Shared)
		}
		if isBusy(err) {
			return h.busy(got.mode)
		}
		takeAfter.Pass()
		if err == nil {
			how = got
		}
		return err
	}, func() {}) // as it is: the keeper has it too, and the next Restore finds out
	if err != nil {
		return found{}, err // how may be written yet
	}
	return how, nil
}

func isBusy(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

// lockAsItIs locks once more what may be locked for somebody of whom no record tells,
// and takes nothing from it: a lock of one mode would replace that of the other.
func (h *handle) lockAsItIs(held []locking.Held) (found, error) {
	mode, known := h.b.sys.lockMode(h.fd)
	recorded := func() bool {
		return slices.ContainsFunc(held, func(l locking.Held) bool { return l.Mode == mode })
	}
	if known {
		if !recorded() {
			return found{}, errOtherMode
		}
		return found{mode: mode}, h.b.sys.lock(h.fd, mode == locking.Shared)
	}
	// Not locked, or in a file system that alone knows. Who has it exclusively gets that
	// again; after a refusal a shared lock is what it has, if it has one.
	mode = locking.Exclusive
	err := h.b.sys.lock(h.fd, false)
	if isBusy(err) {
		mode = locking.Shared
		if err = h.b.sys.lock(h.fd, true); err == nil && !recorded() {
			err = errOtherMode
		}
	}
	return found{mode: mode, either: true}, err
}

// anyAnew locks the file by its name, if need be in the weaker of two modes.
func (b *Backend) anyAnew(ctx context.Context, held []locking.Held) (h *handle, how found, err error) {
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		for _, l := range held {
			if l.Mode != mode {
				continue
			}
			if h, err = b.lockAnew(ctx, l); err == nil {
				return h, found{mode: mode, either: len(held) > 1}, nil
			}
		}
	}
	return nil, found{}, err
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
