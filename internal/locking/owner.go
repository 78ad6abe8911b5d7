package locking

import (
	"errors"
	"fmt"
	"sync"
)

// maxReleases bounds how many locks of one owner are released at once: one that
// hangs must not hold up the others, and an owner may have thousands.
const maxReleases = 32

// owner is one process that owns locks or has registered. A later process with
// the same pid is another owner.
type owner struct {
	pid  int32
	proc Process // nil if there was no such process when it registered: unverified
	// start is the Process.StartTime of an owner in Manager.unseen, and otherwise 0.
	start uint64

	closing   sync.Once
	forgotten chan struct{} // closed when nobody needs to watch the process any more

	// Guarded by Manager.mu.
	gone          bool        // its process is proven gone: it gets nothing any more
	nobody        bool        // it stands for an owner who does not need its lock any more, whether gone or not
	info          *Owner      // as registered last, for holds to share
	registrations int         // and acquires under way: who needs it although it holds nothing
	holds         []*hold     // in no order
	ending        *ending     // nil if it is not being ended
	returning     map[Ref]int // what it gave back since the drain began, and may take again
	gave          map[Ref]*gift
	kept          map[Ref]uint64 // by what Manager.giftJournal keeps what is in gave, or was taken again by TakeAgain
}

// Registration is a session's right to speak for an owner.
type Registration struct {
	m     *Manager
	owner *owner
	info  *Owner // never changed
	again *again // nil for those of sessions
	once  sync.Once
}

// Register notes that a session speaks for an owner, and watches the owner's
// process from now on. The session must Close what it gets.
//
// A pid that no process has is accepted, as virtlockd accepts it, unless a
// process with that pid was an owner and has ended. It is an error (KindSystem)
// if the process cannot be watched.
func (m *Manager) Register(info Owner) (*Registration, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, m.closedError("register owner", Ref{Name: info.Name})
	}
	o := m.lockedFindOwner(info.PID)
	if o != nil && (o.proc != nil || info.PID <= 0) {
		o.registrations++
		g := &Registration{m: m, owner: o, info: o.lockedInfo(info)}
		m.mu.Unlock()
		return g, nil
	}
	m.mu.Unlock()
	// An unverified owner is looked for again: its pid may be a process's by now,
	// which must be watched, and which is not the one that was never seen.
	var proc Process
	if info.PID > 0 {
		var err error
		proc, err = m.procs.Open(info.PID)
		if err != nil && !errors.Is(err, ErrNoProcess) {
			return nil, &Error{Kind: KindSystem, Op: fmt.Sprintf("watch process %d of owner", info.PID), Ref: Ref{Name: info.Name}, Err: err}
		}
	}
	fresh := &owner{pid: info.PID, proc: proc, registrations: 1, forgotten: make(chan struct{})}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		fresh.close()
		return nil, m.closedError("register owner", Ref{Name: info.Name})
	}
	if proc == nil {
		m.lockedSeen(info.PID, nil)
	}
	if o = m.lockedFindOwner(info.PID); o != nil && (o.proc != nil || proc == nil) {
		o.registrations++
		g := &Registration{m: m, owner: o, info: o.lockedInfo(info)}
		m.mu.Unlock()
		fresh.close()
		return g, nil
	}
	departed := proc == nil && m.departed.has(info.PID)
	if departed {
		fresh.gone = true
	} else {
		m.owners[info.PID] = fresh
	}
	if proc != nil {
		m.lockedSeen(info.PID, fresh)
		m.work.Go(func() { m.watch(fresh) })
	}
	g := &Registration{m: m, owner: fresh, info: fresh.lockedInfo(info)}
	m.mu.Unlock()
	if proc == nil && info.PID > 0 && !departed {
		m.observe(Event{Kind: OwnerUnverified, Owner: info})
	}
	return g, nil
}

// lockedInfo is what a session says of the owner. Sessions of one owner say the
// same, and then have it in common.
func (o *owner) lockedInfo(info Owner) *Owner {
	if o.info == nil || *o.info != info {
		o.info = &info
	}
	return o.info
}

// RegisterAgain is Register for a session that registered in an earlier process
// of the daemon, when the owner's process had this Process.StartTime; 0 means that
// it had none. An owner that has ended meanwhile gets nothing, also if another
// process has its pid now.
func (m *Manager) RegisterAgain(info Owner, start uint64) (*Registration, error) {
	if start != 0 {
		proc, err := m.procs.Open(info.PID)
		same := err == nil && proc.StartTime() == start
		if err == nil {
			proc.Close()
		}
		if err == nil && !same || errors.Is(err, ErrNoProcess) {
			o := &owner{pid: info.PID, gone: true, registrations: 1, forgotten: make(chan struct{})}
			return &Registration{m: m, owner: o, info: o.lockedInfo(info)}, nil
		}
	}
	return m.Register(info)
}

// lockedFindOwner finds the owner that has this pid now. One whose process has
// ended is not it; if the watch has not come to that yet, it is done here, so
// that Register sees a pid that has departed and not one that never was.
func (m *Manager) lockedFindOwner(pid int32) *owner {
	o := m.owners[pid]
	if o != nil && o.isGone() {
		m.lockedOwnerGone(o)
		return nil
	}
	return o
}

// isGone asks the process. It is never true of an unverified owner.
func (o *owner) isGone() bool {
	if o.proc == nil {
		return false
	}
	select {
	case <-o.proc.Gone():
		return true
	default:
		return false
	}
}

// Owner is what was registered.
func (g *Registration) Owner() Owner { return *g.info }

// StartTime is that of the owner's process, for RegisterAgain; 0 if it has none.
func (g *Registration) StartTime() uint64 {
	if g.owner.proc == nil {
		return 0
	}
	return g.owner.proc.StartTime()
}

// Close says that the session no longer speaks for the owner. The owner keeps
// its locks. Nothing else may be called after it; calls under way are carried
// out.
func (g *Registration) Close() {
	g.once.Do(g.leave)
}

// leave ends a need of the owner: the session's or an acquire's.
func (g *Registration) leave() {
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	g.owner.registrations--
	g.m.lockedForgetOwner(g.owner)
}

// watch waits until the owner's process is gone, and then releases its locks.
func (m *Manager) watch(o *owner) {
	select {
	case <-o.proc.Gone():
		m.mu.Lock()
		m.lockedOwnerGone(o)
		m.mu.Unlock()
		m.forgetKept()
	case <-o.forgotten:
	case <-m.ctx.Done():
		m.mu.Lock()
		e := o.ending
		m.mu.Unlock()
		if e != nil { // SIGKILL goes through the descriptor that is closed here
			<-e.over
		}
		o.close()
	}
}

// lockedOwnerGone starts to release everything that an owner who is gone holds.
func (m *Manager) lockedOwnerGone(o *owner) {
	if o.gone {
		return
	}
	o.gone = true
	m.holding = holding{}
	delete(m.returners, o)
	m.lockedForgetGifts(o)
	if m.owners[o.pid] == o {
		delete(m.owners, o.pid)
	}
	m.departed.add(o.pid)
	o.close()
	if m.closed || len(o.holds) == 0 {
		return
	}
	type job struct {
		r *resource
		h *hold
	}
	jobs := make(chan job, len(o.holds))
	for _, h := range o.holds {
		h.of.users++
		jobs <- job{h.of, h}
	}
	close(jobs)
	event := Event{Kind: OwnerGone, Owner: o.lockedSaid(), Locks: len(jobs)}
	releases := &sync.WaitGroup{}
	if o.ending != nil {
		releases = &o.ending.releases
	}
	releases.Add(1)
	m.work.Go(func() {
		defer releases.Done()
		m.observe(event) // here, as m.mu is held there
		for range min(maxReleases, event.Locks) {
			releases.Add(1)
			m.work.Go(func() {
				defer releases.Done()
				for j := range jobs {
					m.releaseGone(j.r, j.h)
					m.leave(j.r)
				}
			})
		}
	})
}

// lockedSaid is what the session that acquired the oldest of o's locks said of it.
func (o *owner) lockedSaid() Owner {
	var oldest *hold
	for _, h := range o.holds {
		if oldest == nil || h.since.Before(oldest.since) {
			oldest = h
		}
	}
	if oldest == nil {
		return Owner{PID: o.pid}
	}
	return *oldest.info
}

func (m *Manager) releaseGone(r *resource, h *hold) { m.releaseHold(r, h, ReleasedGone) }

// releaseHold releases a hold that no request is about.
func (m *Manager) releaseHold(r *resource, h *hold, kind EventKind) {
	if r.enter(m.releases) != nil {
		return
	}
	defer r.exit()
	m.mu.Lock()
	held := h.of == r
	m.mu.Unlock()
	if held {
		// A failure was told to Observe; the hold stays and keeps others out, until
		// one of them has asked for the resource and the release has worked.
		_ = m.drop(m.releases, r, h, kind)
	}
}

// lockedForgetOwner drops an owner that nobody speaks for and that has nothing, and has given back
// nothing that is remembered.
// One that is being ended is watched to the end: it got its SIGTERM, and if that
// was not enough SIGKILL has to follow.
func (m *Manager) lockedForgetOwner(o *owner) {
	if o.registrations > 0 || len(o.holds) > 0 || len(o.gave) > 0 || o.gone || o.ending != nil {
		return
	}
	if m.owners[o.pid] == o {
		delete(m.owners, o.pid)
	}
	delete(m.returners, o)
	o.close()
}

func (o *owner) close() {
	o.closing.Do(func() {
		close(o.forgotten)
		if o.proc != nil {
			o.proc.Close()
		}
	})
}

// maxTombstones bounds the memory for pids of owners that have ended.
const maxTombstones = 4096

// tombstones remembers the latest pids whose owner has ended, so that a request
// in the name of one that comes a moment too late is not granted to nobody.
type tombstones struct {
	order []int32
	next  int
	set   map[int32]int // pid -> place in order
}

func (t *tombstones) has(pid int32) bool {
	_, ok := t.set[pid]
	return ok
}

func (t *tombstones) add(pid int32) {
	if t.set == nil {
		t.set = map[int32]int{}
	}
	if len(t.order) < maxTombstones {
		t.order = append(t.order, pid)
		t.set[pid] = len(t.order) - 1
		return
	}
	if at, ok := t.set[t.order[t.next]]; ok && at == t.next {
		delete(t.set, t.order[t.next])
	}
	t.order[t.next] = pid
	t.set[pid] = t.next
	t.next = (t.next + 1) % maxTombstones
}
