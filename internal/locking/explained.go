package locking

import (
	"errors"
	"fmt"
)

var errRestoring = errors.New("locks from before the lock daemon's restart are still being taken back")

// AllTakenBack is nil once each lock that the entries given to Restore tell of has been
// taken back or has ended, and stays nil from then on. Before that the backend may
// have one of them for which there is no Handle yet, and which it cannot tell from what
// nobody explains. The error, of KindUnavailable, says what is waited for and what to do.
func (m *Manager) AllTakenBack() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	why := m.lockedNotTakenBack()
	if why == nil {
		return nil
	}
	return &Error{Kind: KindUnavailable, Err: why}
}

// lockedNotTakenBack is why not. Only Restore makes a resource lost, so that once it
// is over there are no more of them.
func (m *Manager) lockedNotTakenBack() error {
	switch {
	case m.later != nil:
		return fmt.Errorf("%w: wait until 'vmlockctl status' does not say that any more", m.later.why)
	case !m.restored:
		return fmt.Errorf("%w: try again in a moment", errRestoring)
	case m.counts.lost.Load() == 0:
		return nil
	}
	var holders []Holder
	for r := range m.resources.All() {
		if r.lost != nil {
			holders = append(holders, r.lockedHolders()...)
		}
	}
	return fmt.Errorf("there are records of locks that could not be taken back after the lock daemon's restart and may still be there, of %s: "+
		"end these virtual machines; what 'vmlockctl ls' then still lists of them 'vmlockctl release' gives back", someHolders(holders))
}
