package locking

import (
	"fmt"
	"slices"
)

// MaxTries is for tests of names that change without end.
const MaxTries = maxTries

// MaxTombstones is for tests of the memory for departed pids.
const MaxTombstones = maxTombstones

// MaxLockspaces is for the test of that bound.
const MaxLockspaces = maxLockspaces

// EndTimeout is how long an owner may take to end before that is reported.
const EndTimeout = endTimeout

// Sizes is how many entries the Manager's tables have.
type Sizes struct{ Resources, Names, Owners int }

// Sizes counts.
func (m *Manager) Sizes() Sizes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Sizes{m.resources.Len(), m.names.Len(), len(m.owners)}
}

// AddLockspaces fills the table as if clients had.
func (m *Manager) AddLockspaces(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range n {
		m.lockspaces[fmt.Sprint("/filler/", i)] = struct{}{}
	}
	m.counts.lockspaces.Store(int64(len(m.lockspaces)))
}

// TakenAgain counts what owners hold and have not asked for.
func (m *Manager) TakenAgain() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range m.resources.All() {
		for _, h := range r.holds {
			if h.again {
				n++
			}
		}
	}
	return n
}

// Departed counts the pids that are remembered.
func (m *Manager) Departed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(len(m.departed.set), len(m.departed.order))
}

// Check says what in the Manager's tables contradicts something else there.
func (m *Manager) Check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[Ref]*resource{}
	count, holders := Counts{Lockspaces: len(m.lockspaces)}, map[*owner]bool{}
	for r := range m.resources.All() {
		id := r.id
		if m.resources.Get(id) != r {
			return fmt.Errorf("resource %q is not found by its id", id)
		}
		if r.users == 0 && len(r.holds) == 0 {
			return fmt.Errorf("resource %q stays, and nobody needs it", id)
		}
		if len(r.holds) > 0 && (r.handle == nil) != r.notYet {
			return fmt.Errorf("resource %q is held without a handle, or has one too early", id)
		}
		if r.mode == Exclusive && len(r.holds) > 1 {
			return fmt.Errorf("resource %q is held exclusively by %d", id, len(r.holds))
		}
		for _, h := range r.holds {
			names[h.ref] = r
			holders[h.owner] = true
			if r.mode == Shared {
				count.Shared++
			} else {
				count.Exclusive++
			}
			if r.lost != nil {
				count.Lost++
			}
			if h.of != r || int(h.at) >= len(h.owner.holds) || h.owner.holds[h.at] != h {
				return fmt.Errorf("an owner of %q, pid %d, does not know of it", id, h.owner.pid)
			}
		}
	}
	count.Owners = len(holders)
	if got := m.Counts(); got != count {
		return fmt.Errorf("counted %+v, and there are %+v", got, count)
	}
	for h := range m.names.All() {
		if h.of == nil || names[h.ref] != h.of || !slices.Contains(h.of.holds, h) || m.names.Get(h.ref) != h {
			return fmt.Errorf("name %v leads to %+v, where nobody holds it", h.ref, h.of)
		}
	}
	if len(names) != m.names.Len() {
		return fmt.Errorf("%d names are held and %d are known", len(names), m.names.Len())
	}
	gifts := 0
	for o := range m.givers {
		if m.owners[o.pid] != o || len(o.gave) == 0 {
			return fmt.Errorf("owner %d is said to have given something back, and is not there or has not", o.pid)
		}
		gifts += len(o.gave)
		for ref := range o.gave {
			if r := m.lockedNamed(ref); r != nil && slices.ContainsFunc(r.holds, func(h *hold) bool { return h.owner == o && h.ref == ref }) {
				return fmt.Errorf("owner %d has %v, which it is said to have given back", o.pid, ref)
			}
		}
	}
	if gifts != m.gifts {
		return fmt.Errorf("%d locks were given back, and %d are counted", gifts, m.gifts)
	}
	for pid, o := range m.owners {
		if o.pid != pid || o.gone {
			return fmt.Errorf("owner %d is filed under %d (gone: %v)", o.pid, pid, o.gone)
		}
		if o.registrations == 0 && len(o.holds) == 0 && len(o.gave) == 0 && o.ending == nil {
			return fmt.Errorf("owner %d stays, and nobody needs it", pid)
		}
		for ref := range o.kept {
			if o.gave[ref] == nil && m.lockedTakenAgain(o, ref) == nil {
				return fmt.Errorf("%v is kept as given back by owner %d, who has not, or was not taken again", ref, pid)
			}
		}
		for _, h := range o.holds {
			if h.owner != o || h.of == nil || !slices.Contains(h.of.holds, h) {
				return fmt.Errorf("owner %d is said to hold %v and does not", pid, h.ref)
			}
		}
	}
	return nil
}
