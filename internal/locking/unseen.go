package locking

import (
	"errors"
	"slices"
)

// An owner whose process cannot be opened when its locks are taken back - the
// host may be short of descriptors at that moment - is not given up: it keeps
// its locks, and is looked for again until it is known whether it lives. From
// then on its death frees its locks, as that of every owner does.

// lockedUnseen notes an owner who has to be looked for again.
func (m *Manager) lockedUnseen(o *owner, start uint64) {
	o.start = start
	m.unseen = append(m.unseen, o)
	if len(m.unseen) == 1 && !m.closed {
		m.work.Go(m.lookAgain)
	}
}

// lockedSeen settles what became of unseen owners, now that it is known who has
// their pid: now, who has a process, or nobody if it is nil.
func (m *Manager) lockedSeen(pid int32, now *owner) {
	m.holding = holding{}
	m.unseen = slices.DeleteFunc(m.unseen, func(o *owner) bool {
		if o.pid != pid {
			return false
		}
		if m.owners[pid] == o {
			delete(m.owners, pid)
		}
		if now == nil || now.proc.StartTime() != o.start {
			m.lockedOwnerGone(o)
			return true
		}
		// It is the same. Nobody has registered as o: that would have opened the
		// process.
		if len(o.holds) > 0 && len(now.holds) > 0 {
			m.counts.owners.Add(-1)
		}
		for _, h := range o.holds {
			now.lockedAdd(h)
		}
		o.holds = nil
		o.close()
		return true
	})
}

// lookAgain looks for the unseen owners until there are none.
func (m *Manager) lookAgain() {
	m.every(sweepInterval, func() (done bool) {
		m.mu.Lock()
		pids := map[int32]bool{}
		for _, o := range m.unseen {
			pids[o.pid] = true
		}
		m.mu.Unlock()
		for pid := range pids {
			m.lookFor(pid)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.unseen) == 0
	})
}

func (m *Manager) lookFor(pid int32) {
	proc, err := m.procs.Open(pid)
	if err != nil && !errors.Is(err, ErrNoProcess) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.lockedSeen(pid, nil)
		return
	}
	o := &owner{pid: pid, proc: proc, forgotten: make(chan struct{})}
	if m.closed {
		o.close()
		return
	}
	m.lockedSeen(pid, o)
	if len(o.holds) == 0 {
		o.close() // a later process has the pid, or it was seen meanwhile
		return
	}
	m.owners[pid] = o
	m.work.Go(func() { m.watch(o) })
}
