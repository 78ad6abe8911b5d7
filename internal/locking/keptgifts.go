package locking

import "errors"

// GiftJournal keeps for the next process what living owners gave back, and what TakeAgain took for them and they have not
// asked for since. When a method returns nil its record is there, or gone, at whatever instruction this process is killed.
// What it does not keep is forgotten by a restart, and nothing else comes of that: so no release fails for it. Methods may
// be called from many goroutines.
type GiftJournal interface {
	// Add keeps one, and returns the Seq by which to Forget it, which is never 0.
	Add(Kept) (seq uint64, err error)
	Forget(seq uint64) error
}

// Kept is a lock that an owner gave back, as the next process finds it.
type Kept struct {
	Seq        uint64
	Owner      Owner
	OwnerStart uint64 // Process.StartTime, never 0
	Ref        Ref
	Mode       Mode
	Autocreate bool
	Stamp      Stamp // GivenBack.Stamp
}

// noGifts is for a Manager that forgets with its end.
type noGifts struct{}

func (noGifts) Add(Kept) (uint64, error) { return 0, errNotKept }
func (noGifts) Forget(uint64) error      { return nil }

var errNotKept = errors.New("nothing is kept")

// keep writes a gift of o down; 0 if it is not kept.
func (m *Manager) keep(o *owner, ref Ref, g *gift) uint64 {
	seq, err := m.giftJournal.Add(Kept{Owner: *g.info, OwnerStart: o.proc.StartTime(), Ref: ref, Mode: g.mode, Autocreate: g.autocreate, Stamp: g.stamp})
	if err != nil {
		return 0
	}
	return seq
}

// keepAnew writes down what is remembered by now, and not what was before: libvirt may have written something between
// two releases, and that must not seem to be written after the last of them.
func (m *Manager) keepAnew(o *owner, ref Ref) {
	m.mu.Lock()
	g := o.gave[ref]
	m.mu.Unlock()
	if g == nil {
		return
	}
	seq := m.keep(o, ref, g)
	m.mu.Lock()
	if o.gave[ref] == g {
		m.lockedKept(o, ref, seq)
	} else {
		m.lockedUnkept(seq) // somebody was faster
	}
	m.mu.Unlock()
	m.forgetKept()
}

// lockedKept notes by what o's gift is kept from now on; 0 if it is not.
func (m *Manager) lockedKept(o *owner, ref Ref, seq uint64) {
	m.lockedUnkept(o.lockedTakeKept(ref))
	if seq == 0 {
		return
	}
	if o.kept == nil {
		o.kept = map[Ref]uint64{}
	}
	o.kept[ref] = seq
}

// lockedTakeKept returns by what it was kept, which nobody knows any more then.
func (o *owner) lockedTakeKept(ref Ref) uint64 {
	seq := o.kept[ref]
	if delete(o.kept, ref); len(o.kept) == 0 {
		o.kept = nil
	}
	return seq
}

// lockedUnkept notes that forgetKept has to forget something, which may be 0 for nothing.
func (m *Manager) lockedUnkept(seq uint64) {
	if seq != 0 {
		m.unkept = append(m.unkept, seq)
		m.anyUnkept.Store(true)
	}
}

// forgetKept is for the end of whatever has called lockedUnkept: nobody who waits for m.mu is to wait for a file.
func (m *Manager) forgetKept() {
	if !m.anyUnkept.Load() {
		return
	}
	m.mu.Lock()
	list := m.unkept
	m.unkept = nil
	m.anyUnkept.Store(false)
	m.mu.Unlock()
	for _, seq := range list {
		_ = m.giftJournal.Forget(seq) // RestoreGivenBack sees that there is no need of it, in all cases but rare ones
	}
}

// RestoreGivenBack remembers what owners gave back to earlier processes of this host, and returns how many locks that are. It
// must be called after Restore and before the Manager is used. It forgets what is of owners who have ended, or cannot be looked at.
//
// What its owner holds was taken again: by TakeAgain, or by an owner who was not told of it, or it is of a
// release that was not carried out. In each of these cases the owner may ask for it once more.
func (m *Manager) RestoreGivenBack(list []Kept) (n int) {
	m.mu.Lock()
	owners := map[ownerKey]*owner{}
	for _, k := range list {
		key := ownerKey{k.Owner.PID, k.OwnerStart}
		o, ok := owners[key]
		if !ok {
			o = m.lockedGiver(key)
			owners[key] = o
		}
		if o == nil {
			m.lockedUnkept(k.Seq)
			continue
		}
		if r := m.lockedNamed(k.Ref); r != nil {
			if h := r.lockedHoldOf(o, k.Ref); h != nil && h.owner == o {
				h.again = true
				m.lockedKept(o, k.Ref, k.Seq)
				continue
			}
		}
		// A kill may have left two of one lock: the later version of what is known of the owner says less.
		if had := o.gave[k.Ref]; had != nil && had.stamp.Written > k.Stamp.Written {
			m.lockedUnkept(k.Seq)
			continue
		}
		g := &gift{info: o.lockedInfo(k.Owner), mode: k.Mode, autocreate: k.Autocreate, stamp: k.Stamp}
		if m.lockedRemember(o, k.Ref, g) {
			m.lockedKept(o, k.Ref, k.Seq)
		} else {
			m.lockedUnkept(k.Seq)
		}
	}
	for _, o := range owners {
		if o != nil {
			m.lockedForgetOwner(o) // if nothing was remembered of it
		}
	}
	n = m.gifts
	m.mu.Unlock()
	m.forgetKept()
	return n
}

// lockedGiver finds or makes an owner whose process lives; nil if it does not.
func (m *Manager) lockedGiver(key ownerKey) *owner {
	if o := m.owners[key.pid]; o != nil && o.proc != nil {
		if o.proc.StartTime() != key.start || o.isGone() {
			return nil
		}
		return o
	}
	proc, err := m.procs.Open(key.pid)
	if err != nil {
		return nil
	}
	o := &owner{pid: key.pid, proc: proc, forgotten: make(chan struct{})}
	if key.start == 0 || proc.StartTime() != key.start || o.isGone() || m.owners[key.pid] != nil {
		proc.Close()
		return nil
	}
	m.owners[key.pid] = o
	m.work.Go(func() { m.watch(o) })
	return o
}
