// Package locktest has the ports of package locking in memory, for tests: a
// Backend whose files, other hosts, failures and delays a test decides on, and
// Processes that a test starts and ends. Both watch how they are used, and report
// to the test when package locking breaks what its ports promise to those who
// fill them.
//
// All of it may be used from many goroutines, inside and outside of the bubbles
// of testing/synctest. Nothing here waits for time to pass.
package locktest

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Reporter is told of broken promises. *testing.T is one, and so is *rapid.T.
type Reporter interface {
	Errorf(format string, args ...any)
}

// Op is a call that a Backend or a Handle gets.
type Op string

// The calls.
const (
	OpCreateLockspace Op = "CreateLockspace"
	OpCreateResource  Op = "CreateResource"
	OpDeleteResource  Op = "DeleteResource"
	OpOpen            Op = "Open"
	OpLock            Op = "Lock"
	OpUnlock          Op = "Unlock"
	OpProve           Op = "Prove"
	OpAdmit           Op = "Admit"
)

// Call is one call as rules see it.
type Call struct {
	Op  Op
	Ref locking.Ref
	ID  string // of Lock and Unlock
}

// file is what a name leads to. Two names that lead to one *file are aliases.
type file struct {
	id      string
	created bool // by Open with autocreate
}

// Backend is a locking.Backend in memory. Make it with NewBackend.
type Backend struct {
	t     Reporter
	calls atomic.Int64

	mu         sync.Mutex // guards all below and every handle's state
	lockspaces map[string]bool
	files      map[locking.Ref]*file
	locked     map[string][]*handle // by ID: who holds the lock, in one mode
	outside    map[string]locking.Mode
	handles    map[*handle]struct{} // open ones
	rules      []*rule
	gates      []*Gate
	made       int
	late       int // calls whose callers went away and that have not ended
}

var _ locking.Backend = (*Backend)(nil)

// NewBackend makes a Backend in which nothing exists and nothing is locked.
func NewBackend(t Reporter) *Backend {
	return &Backend{
		t:          t,
		lockspaces: map[string]bool{"": true},
		files:      map[locking.Ref]*file{},
		locked:     map[string][]*handle{},
		outside:    map[string]locking.Mode{},
		handles:    map[*handle]struct{}{},
	}
}

// Point makes a name lead to what has this ID, from now on. Two names with one
// ID are aliases.
func (b *Backend) Point(ref locking.Ref, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.files {
		if f.id == id {
			b.files[ref] = f
			return
		}
	}
	b.files[ref] = &file{id: id}
}

// Leads returns the ID that a name leads to, or "" if it leads nowhere.
func (b *Backend) Leads(ref locking.Ref) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.files[ref]; f != nil {
		return f.id
	}
	return ""
}

// Outside makes another host hold id, or give it back if held is false.
func (b *Backend) Outside(id string, mode locking.Mode, held bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !held {
		delete(b.outside, id)
		return
	}
	b.outside[id] = mode
}

// Locked is a snapshot of what is locked in the backend, in which mode.
func (b *Backend) Locked() map[string]locking.Mode {
	b.mu.Lock()
	defer b.mu.Unlock()
	locked := map[string]locking.Mode{}
	for id, hs := range b.locked {
		locked[id] = hs[0].mode
	}
	return locked
}

// OnlyHere implements locking.HostOnly: it is so for IDs that begin with "here".
func (b *Backend) OnlyHere(id string) bool { return strings.HasPrefix(id, "here") }

// Calls counts the calls so far, those of handles included.
func (b *Backend) Calls() int64 { return b.calls.Load() }

// CheckQuiet reports handles that are open without holding a lock, and locks
// beyond those in want, at a moment when no call is under way.
func (b *Backend) CheckQuiet(want map[string]locking.Mode) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.late != 0 {
		b.t.Errorf("%d calls whose callers went away are still under way", b.late)
	}
	for h := range b.handles {
		if h.state != stateLocked {
			b.t.Errorf("a handle of %s is leaked: it is %s", h.file.id, h.state)
		}
	}
	for id, hs := range b.locked {
		mode, ok := want[id]
		switch {
		case !ok:
			b.t.Errorf("%s is still locked", id)
		case len(hs) != 1:
			b.t.Errorf("%s is locked by %d handles", id, len(hs))
		case hs[0].mode != mode:
			b.t.Errorf("%s is locked %v, want %v", id, hs[0].mode, mode)
		}
	}
	for id := range want {
		if len(b.locked[id]) == 0 {
			b.t.Errorf("%s is not locked any more", id)
		}
	}
}

// CreateLockspace implements locking.Backend.
func (b *Backend) CreateLockspace(ctx context.Context, path string) error {
	if path == "" {
		b.t.Errorf("CreateLockspace of the default lockspace")
	}
	return b.serve(ctx, Call{Op: OpCreateLockspace, Ref: locking.Ref{Lockspace: path}}, func() error {
		b.lockspaces[path] = true
		return nil
	}, nil)
}

// CreateResource implements locking.Backend.
func (b *Backend) CreateResource(ctx context.Context, ref locking.Ref) error {
	return b.serve(ctx, Call{Op: OpCreateResource, Ref: ref}, func() error {
		b.lockedMake(ref, false)
		return nil
	}, nil)
}

// DeleteResource implements locking.Backend.
func (b *Backend) DeleteResource(ctx context.Context, ref locking.Ref) error {
	return b.serve(ctx, Call{Op: OpDeleteResource, Ref: ref}, func() error {
		for h := range b.handles {
			if h.state == stateLocked && h.file == b.files[ref] {
				b.t.Errorf("DeleteResource of %v, which is locked", ref)
			}
		}
		delete(b.files, ref)
		return nil
	}, nil)
}

// Open implements locking.Backend. Without autocreate a missing name is
// fs.ErrNotExist.
func (b *Backend) Open(ctx context.Context, ref locking.Ref, autocreate bool) (locking.Handle, error) {
	var h *handle
	err := b.serve(ctx, Call{Op: OpOpen, Ref: ref}, func() error {
		if b.files[ref] == nil {
			if !autocreate {
				return fmt.Errorf("open: %w", fs.ErrNotExist)
			}
			b.lockedMake(ref, true)
		}
		h = &handle{b: b, ref: ref, file: b.files[ref]}
		b.handles[h] = struct{}{}
		return nil
	}, func() {
		if h != nil {
			delete(b.handles, h)
		}
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (b *Backend) lockedMake(ref locking.Ref, created bool) {
	if !b.lockspaces[ref.Lockspace] {
		b.t.Errorf("%v is used, and its lockspace was never created", ref)
	}
	if b.files[ref] == nil {
		b.made++
		b.files[ref] = &file{id: fmt.Sprintf("made %d", b.made), created: created}
	}
}

// serve carries out a call: do, with mu held, once the rules let it. If the
// caller's context ends before that, the caller gets its error, and do is still
// carried out when the rules let it, followed by undo.
func (b *Backend) serve(ctx context.Context, c Call, do func() error, undo func()) error {
	b.calls.Add(1)
	if b.ended(ctx, c) {
		return ctx.Err()
	}
	r := b.match(c)
	if r == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		return do()
	}
	if r.err != nil {
		return r.err
	}
	r.gate.arrive(c)
	select {
	case <-r.gate.opened:
		b.mu.Lock()
		defer b.mu.Unlock()
		if r.gate.err != nil {
			return r.gate.err
		}
		return do()
	case <-r.gate.patience(ctx):
	}
	b.mu.Lock()
	b.late++
	b.mu.Unlock()
	go func() {
		<-r.gate.opened
		b.mu.Lock()
		defer b.mu.Unlock()
		b.late--
		if r.gate.err == nil && do() == nil && undo != nil {
			undo()
		}
	}()
	return ctx.Err()
}

// ended says whether a call is too late to begin. An Unlock is not: whoever
// gives up on it leaves it to the backend.
func (b *Backend) ended(ctx context.Context, c Call) bool {
	return c.Op != OpUnlock && ctx.Err() != nil
}
