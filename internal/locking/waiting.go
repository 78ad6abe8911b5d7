package locking

import (
	"slices"
	"time"
)

// Waiter is a request for a lock that has not been answered yet. Nobody waits
// for another owner here: a request that takes long waits for storage, for the
// kernel, or for an operation on the same resource.
type Waiter struct {
	Owner Owner
	Ref   Ref
	Mode  Mode
	Since time.Time // when the request came
}

// Waiting lists the requests for locks that are under way, oldest first.
func (m *Manager) Waiting() []Waiter {
	m.mu.Lock()
	list := make([]Waiter, 0, len(m.underway))
	for w := range m.underway {
		list = append(list, *w)
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b Waiter) int { return a.Since.Compare(b.Since) })
	return list
}

// lockedBegin notes a request for a lock; ended has to be called for it. If the
// session ends meanwhile the owner must still be watched.
func (m *Manager) lockedBegin(g *Registration, ref Ref, mode Mode, start time.Time) *Waiter {
	g.owner.registrations++
	w := &Waiter{Owner: g.info, Ref: ref, Mode: mode, Since: start}
	m.underway[w] = struct{}{}
	return w
}

func (m *Manager) ended(g *Registration, w *Waiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.underway, w)
	g.owner.registrations--
	m.lockedForgetOwner(g.owner)
}
