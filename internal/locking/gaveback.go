package locking

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// maxGivenBack bounds how many locks are remembered that living owners gave back. What is beyond
// that is not remembered. A virtual machine that is suspended has as many as disks.
const maxGivenBack = 65536

// Witness sees of owners what their requests do not tell.
type Witness interface {
	// Stamp tells versions of what is known of an owner apart: whoever gives a lock back writes nothing there until
	// it has the answer. The zero Stamp means that nothing is known, and then what that owner
	// gives back is not remembered. It must be quick.
	Stamp(Owner) Stamp
	// GaveBack is called, when GivenBack has got longer. It must be quick.
	GaveBack()
}

// Stamp is one version of a file that is never changed, but replaced by another.
type Stamp struct {
	Inode   uint64
	Written int64 // in nanoseconds since 1970
}

// GivenBack is a lock that an owner released, that lives and has not taken it since.
type GivenBack struct {
	Owner Owner
	Ref   Ref
	Mode  Mode
	Stamp Stamp // Witness.Stamp when it was released last
	seq   uint64
}

// gift is what is remembered of it. It does not change.
type gift struct {
	info       *Owner
	mode       Mode
	autocreate bool
	stamp      Stamp
	seq        uint64 // no two releases have the same
}

// ErrTaken is wrapped by what TakeAgain returns when there was nothing to take.
var ErrTaken = errors.New("this lock was taken or released again meanwhile, or its owner has ended")

// GivenBack lists what owners gave back who have registered and whose process lives, by
// owner and resource, until they take it again, end, or ForgetGivenBack. What was given back
// while Options.Witness knew nothing of the owner is not in it, nor what was before a restart of the daemon and Options.Gifts did not keep.
func (m *Manager) GivenBack() []GivenBack {
	m.mu.Lock()
	list := make([]GivenBack, 0, m.gifts)
	for o := range m.givers {
		for ref, g := range o.gave {
			list = append(list, GivenBack{Owner: *g.info, Ref: ref, Mode: g.mode, Stamp: g.stamp, seq: g.seq})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b GivenBack) int {
		return cmp.Or(cmp.Compare(a.Owner.PID, b.Owner.PID), cmp.Compare(a.Ref.Lockspace, b.Ref.Lockspace), cmp.Compare(a.Ref.Name, b.Ref.Name))
	})
	return list
}

// ForgetGivenBack says that its owner will not take it again without asking for it.
func (m *Manager) ForgetGivenBack(b GivenBack) {
	m.mu.Lock()
	if o, g := m.lockedGift(b); g != nil {
		m.lockedForgetGift(o, b.Ref)
		m.lockedUnkept(o.lockedTakeKept(b.Ref))
		m.lockedForgetOwner(o)
	}
	m.mu.Unlock()
	m.forgetKept()
}

// TakeAgain takes a lock for an owner that gave it back and uses it all the same, in the mode
// it had, also while the host is drained: it is not asked for more than there was. seen is the
// Stamp of what shows that; if there is another once the lock is there, the lock is given back. Observe is told of a
// TakenAgain, and not of a refusal.
//
// When the owner asks for the lock later it is granted, and is then like any other. It
// is nil if the owner has it now; every error is an *Error.
func (m *Manager) TakeAgain(ctx context.Context, b GivenBack, seen Stamp) error {
	start := time.Now()
	ctx, cancel := m.deadlines.of(ctx)
	defer cancel()
	m.mu.Lock()
	o, g := m.lockedGift(b)
	if g == nil || g.stamp == seen || o.isGone() || o.ending != nil {
		m.mu.Unlock()
		return &Error{Kind: KindUnavailable, Op: "take again", Ref: b.Ref, Err: ErrTaken}
	}
	o.registrations++
	r := &Registration{m: m, owner: o, info: g.info, again: &again{seen: seen, gift: g}}
	m.mu.Unlock()
	defer r.Close()
	err := r.tryAcquire(ctx, start, b.Ref, g.mode, g.autocreate)
	if err != nil {
		findHolders(ctx, err)
	}
	return err
}

// again is in a Registration by which a lock is taken again.
type again struct {
	seen Stamp
	gift *gift
	had  *gift // what was remembered when the lock was granted
}

// lockedOvertaken is why TakeAgain must not even ask: what it was told of is not what is remembered any more. Above all
// its owner may have asked for the lock and have it: then it would be refused for that owner's own sake.
func (g *Registration) lockedOvertaken(ref Ref) error {
	if g.again == nil || g.owner.gave[ref] == g.again.gift {
		return nil
	}
	return &Error{Kind: KindUnavailable, Op: "take again", Ref: ref, Err: ErrTaken}
}

// stands says whether what TakeAgain was told still holds, with the lock granted.
func (m *Manager) stands(g *Registration) bool {
	return g.again.had == g.again.gift && m.witness.Stamp(*g.info) == g.again.seen
}

// stamp is asked before a release, as whoever releases waits until it is over.
func (m *Manager) stamp(g *Registration) Stamp {
	if m.witness == nil || g.owner.proc == nil {
		return Stamp{}
	}
	return m.witness.Stamp(*g.info)
}

// lockedGift finds what is remembered; nil if it is not any more, or was released once more.
func (m *Manager) lockedGift(b GivenBack) (*owner, *gift) {
	o := m.owners[b.Owner.PID]
	if o == nil {
		return nil, nil
	}
	if g := o.gave[b.Ref]; g != nil && g.seq == b.seq {
		return o, g
	}
	return nil, nil
}

// lockedRemember notes that o has released a lock, unless it shares it once more under that name, and says whether
// it is noted.
func (m *Manager) lockedRemember(o *owner, ref Ref, g *gift) bool {
	if !m.lockedWorth(o, ref, g.stamp, nil) {
		return false
	}
	if m.owners[o.pid] != o {
		return false // the session ended during the release, with nobody left to watch the owner: this would stay for ever
	}
	if o.gave == nil {
		o.gave = map[Ref]*gift{}
		m.givers[o] = struct{}{}
	}
	if o.gave[ref] == nil {
		m.gifts++
	}
	if g.seq == 0 {
		m.giftSeq++
		g.seq = m.giftSeq
	}
	o.gave[ref] = g
	return true
}

// lockedWorth says whether it can be remembered that o releases a lock, by this hold or, with nil, by one that is over.
func (m *Manager) lockedWorth(o *owner, ref Ref, stamp Stamp, by *hold) bool {
	if stamp == (Stamp{}) || o.gone || o.proc == nil || m.gifts >= maxGivenBack && o.gave[ref] == nil {
		return false
	}
	r := m.lockedNamed(ref)
	return r == nil || !slices.ContainsFunc(r.holds, func(h *hold) bool { return h != by && h.owner == o && h.ref == ref })
}

// lockedReleasedAgain notes that o has released what it did not have any more: it is known from now on
// that it does not use it, or that it soon will not. It says whether that is news.
func (m *Manager) lockedReleasedAgain(o *owner, ref Ref, stamp Stamp) bool {
	old := o.gave[ref]
	return old != nil && stamp != (Stamp{}) && m.lockedRemember(o, ref, &gift{info: old.info, mode: old.mode, autocreate: old.autocreate, stamp: stamp})
}

// lockedForgetGift returns what was remembered.
func (m *Manager) lockedForgetGift(o *owner, ref Ref) *gift {
	g := o.gave[ref]
	if g == nil {
		return nil
	}
	m.gifts--
	if delete(o.gave, ref); len(o.gave) == 0 {
		o.gave = nil
		delete(m.givers, o)
	}
	return g
}

// lockedForgetGifts is for an owner who has ended.
func (m *Manager) lockedForgetGifts(o *owner) {
	m.gifts -= len(o.gave)
	o.gave = nil
	for _, seq := range o.kept {
		m.lockedUnkept(seq)
	}
	o.kept = nil
	delete(m.givers, o)
}

// lockedTakenAgain is the hold by which o has ref without having asked for it since it released it; nil if
// there is none.
func (m *Manager) lockedTakenAgain(o *owner, ref Ref) *hold {
	if r := m.lockedNamed(ref); r != nil && r.lost == nil {
		if h := r.lockedHoldOf(o, ref); h != nil && h.owner == o && h.again {
			return h
		}
	}
	return nil
}
