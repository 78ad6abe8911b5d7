package locking

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// HoldingProcess is a process that has locks.
type HoldingProcess struct {
	Owner Owner  // as it registered for the oldest of them
	Start uint64 // Process.StartTime; 0 if no process was found for it
}

// HostOnly is what a Backend may be as well.
type HostOnly interface {
	// OnlyHere reports whether what has that Handle.ID can be used on this host only, so
	// that a lock on it is as good when this host has lost all others. It returns at
	// once, also for a lock that has not been taken back yet.
	OnlyHere(id string) bool
}

// Prover is what a Handle may be as well.
type Prover interface {
	// Prove returns nil if whoever grants locks says at this moment that the handle's
	// lock is held. The lock stays held in any case.
	Prove(ctx context.Context) error
}

// Admitter is what a Handle may be as well.
type Admitter interface {
	// Admit returns nil if one more owner may share the lock that the handle holds. Its
	// backend says so itself when it is asked for a lock.
	Admit(ctx context.Context) error
}

// HoldingProcesses lists who has locks on what other hosts can use, and is not gone,
// in no order. A lock of which it is not known yet whether it can be taken back
// (ErrNotYet), or that could not be (Lost), is one: its owner uses the disk as before.
// The caller must not change the list, which is made anew only when it differs.
func (m *Manager) HoldingProcesses() []HoldingProcess {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holding.valid {
		return m.holding.list
	}
	list := []HoldingProcess{}
	seen := map[*owner]struct{}{}
	for r := range m.resources.All() {
		if m.onlyHere(r.id) {
			continue
		}
		for _, h := range r.holds {
			if _, ok := seen[h.owner]; ok || h.owner.gone {
				continue
			}
			seen[h.owner] = struct{}{}
			list = append(list, HoldingProcess{Owner: *h.info, Start: h.owner.lockedStart()})
		}
	}
	m.holding.list, m.holding.valid = list, true
	return list
}

// holding remembers HoldingProcesses until something changes.
type holding struct {
	valid bool
	list  []HoldingProcess
}

func (o *owner) lockedStart() uint64 {
	if o.proc != nil {
		return o.proc.StartTime()
	}
	return o.start
}

// Prove has the backend prove every lock of a process on what other hosts can use. It
// returns nil only if it has any, and all of them are held. The error may be that of
// ctx, or ErrNotYet, wrapped.
func (m *Manager) Prove(ctx context.Context, pid int32, start uint64) error {
	var list []*resource
	m.mu.Lock()
	for r := range m.resources.All() {
		if !m.onlyHere(r.id) && r.lockedHeldBy(pid, start) {
			r.users++
			list = append(list, r)
		}
	}
	m.mu.Unlock()
	if len(list) == 0 {
		return errors.New("it holds no lock any more")
	}
	var failed error
	for _, r := range list {
		if failed == nil {
			failed = m.proveOne(ctx, r, pid, start)
		}
		m.leave(r)
	}
	return failed
}

func (r *resource) lockedHeldBy(pid int32, start uint64) bool {
	return slices.ContainsFunc(r.holds, func(h *hold) bool { return h.owner.pid == pid && h.owner.lockedStart() == start })
}

func (m *Manager) proveOne(ctx context.Context, r *resource, pid int32, start uint64) error {
	if err := r.enter(ctx); err != nil {
		return fmt.Errorf("another operation on it has not ended: %w", err)
	}
	defer r.exit()
	m.mu.Lock()
	handle, lost, notYet, held := r.handle, r.lost, r.notYet, r.lockedHeldBy(pid, start)
	why := ErrNotYet // the reason may not be noted yet
	if m.later != nil {
		why = m.later.why
	}
	m.mu.Unlock()
	p, ok := handle.(Prover)
	switch {
	case !held:
		return errors.New("it was given back meanwhile")
	case notYet:
		return why
	case lost != nil:
		return lost
	case !ok:
		return errors.New("this backend cannot prove that a lock is held")
	}
	return p.Prove(ctx)
}
