package locking

import "sync/atomic"

// Counts says how much there is at a moment. The numbers are read one after the
// other, so that they may belong to different moments.
type Counts struct {
	Exclusive, Shared int // what owners hold; two who share a resource count as two
	Lost              int // those of them that could not be taken back after a restart
	Owners            int // who have at least one of them
	Lockspaces        int // with the default one
}

// Counts waits for nobody, whatever the Manager is doing.
func (m *Manager) Counts() Counts {
	c := &m.counts
	return Counts{
		Exclusive:  int(c.held[Exclusive].Load()),
		Shared:     int(c.held[Shared].Load()),
		Lost:       int(c.lost.Load()),
		Owners:     int(c.owners.Load()),
		Lockspaces: int(c.lockspaces.Load()),
	}
}

// counts are written with Manager.mu held.
type counts struct {
	held                     [2]atomic.Int64 // by mode
	lost, owners, lockspaces atomic.Int64
}

// changed notes that h is a hold of r's from now on (1), or will be none in a
// moment (-1).
func (c *counts) changed(r *resource, h *hold, by int64) {
	c.held[r.mode].Add(by)
	if r.lost != nil {
		c.lost.Add(by)
	}
	if len(h.owner.holds) == 1 {
		c.owners.Add(by)
	}
}
