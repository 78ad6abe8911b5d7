package locktest

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// state is what a handle is in. A handle whose Lock or Unlock was given up is
// closed for its user; the lock itself may be held a while longer.
type state uint8

const (
	stateOpen state = iota
	stateLocked
	stateFailed // Lock failed: only Close is left
	stateClosed
)

func (s state) String() string {
	return [...]string{"open", "locked", "failed to lock", "closed"}[s]
}

type handle struct {
	b    *Backend
	ref  locking.Ref
	file *file
	busy atomic.Bool // a method is running

	// Guarded by Backend.mu.
	state     state
	mode      locking.Mode
	described *Description
}

// Description is what a handle was told about whom it holds the lock for.
type Description struct {
	Owner locking.Owner
	Since time.Time
}

// Describe implements locking.Describer.
func (h *handle) Describe(o locking.Owner, since time.Time) {
	defer h.enter("Describe")()
	h.expect("Describe", stateLocked)
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	if h.described != nil {
		h.b.t.Errorf("a handle of %s is described twice", h.file.id)
	}
	h.described = &Description{o, since}
}

// Described is what the handles that hold locks were told, by ID.
func (b *Backend) Described() map[string]Description {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]Description{}
	for h := range b.handles {
		if h.state == stateLocked && h.described != nil {
			all[h.file.id] = *h.described
		}
	}
	return all
}

// enter is the check that methods are not called at the same time.
func (h *handle) enter(method Op) func() {
	if !h.busy.CompareAndSwap(false, true) {
		h.b.t.Errorf("%s of a handle of %s while another method runs", method, h.file.id)
		return func() {}
	}
	return func() { h.busy.Store(false) }
}

func (h *handle) expect(method Op, want ...state) {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	if !slices.Contains(want, h.state) {
		h.b.t.Errorf("%s of a handle of %s that is %s", method, h.file.id, h.state)
	}
}

// ID implements locking.Handle.
func (h *handle) ID() string { return h.file.id }

// Note implements locking.Noter.
func (h *handle) Note() string { return "note of " + h.file.id }

// Lock implements locking.Handle.
func (h *handle) Lock(ctx context.Context, mode locking.Mode) error {
	defer h.enter(OpLock)()
	h.expect(OpLock, stateOpen)
	b := h.b
	gaveUp := false
	err := b.serve(ctx, Call{Op: OpLock, Ref: h.ref, ID: h.file.id}, func() error {
		if b.files[h.ref] != h.file {
			return fmt.Errorf("lock: %w", locking.ErrStale)
		}
		if out, ok := b.outside[h.file.id]; ok && (mode == locking.Exclusive || out == locking.Exclusive) {
			return fmt.Errorf("%w (another host)", locking.ErrBusy)
		}
		for _, o := range b.locked[h.file.id] {
			if mode == locking.Exclusive || o.mode == locking.Exclusive {
				return fmt.Errorf("%w (a handle of this host)", locking.ErrBusy)
			}
		}
		b.locked[h.file.id] = append(b.locked[h.file.id], h)
		h.mode = mode
		if !gaveUp {
			h.state = stateLocked
		}
		return nil
	}, h.lockedDrop)
	if err != nil {
		b.mu.Lock()
		gaveUp = true
		h.state = stateFailed
		b.mu.Unlock()
	}
	return err
}

// Admit implements locking.Admitter.
func (h *handle) Admit(ctx context.Context) error {
	defer h.enter(OpAdmit)()
	h.expect(OpAdmit, stateLocked)
	return h.b.serve(ctx, Call{Op: OpAdmit, Ref: h.ref, ID: h.file.id}, func() error { return nil }, func() {})
}

// Prove implements locking.Prover.
func (h *handle) Prove(ctx context.Context) error {
	defer h.enter(OpProve)()
	h.expect(OpProve, stateLocked)
	return h.b.serve(ctx, Call{Op: OpProve, Ref: h.ref, ID: h.file.id}, func() error { return nil }, func() {})
}

// Unlock implements locking.Handle.
func (h *handle) Unlock(ctx context.Context) error {
	defer h.enter(OpUnlock)()
	h.expect(OpUnlock, stateLocked)
	b := h.b
	err := b.serve(ctx, Call{Op: OpUnlock, Ref: h.ref, ID: h.file.id}, func() error {
		h.lockedDrop()
		_, outside := b.outside[h.file.id]
		if h.file.created && b.files[h.ref] == h.file && len(b.locked[h.file.id]) == 0 && !outside {
			delete(b.files, h.ref)
		}
		h.lockedClose()
		return nil
	}, nil)
	if err != nil && ctx.Err() != nil && err == ctx.Err() {
		b.mu.Lock()
		h.lockedClose()
		b.mu.Unlock()
	}
	return err
}

// Close implements locking.Handle.
func (h *handle) Close() {
	defer h.enter("Close")()
	h.expect("Close", stateOpen, stateFailed)
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	h.lockedClose()
}

func (h *handle) lockedClose() {
	h.state = stateClosed
	delete(h.b.handles, h)
}

// lockedDrop takes the lock from the handle.
func (h *handle) lockedDrop() {
	b, id := h.b, h.file.id
	b.locked[id] = slices.DeleteFunc(b.locked[id], func(o *handle) bool { return o == h })
	if len(b.locked[id]) == 0 {
		delete(b.locked, id)
	}
}
