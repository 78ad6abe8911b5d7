package dlmtest

import (
	"syscall"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// known are the flags the simulation knows; others are ENOSYS, so that no test believes in what is not there.
const known = abi.FlagNoQueue | abi.FlagCancel | abi.FlagConvert | abi.FlagValBlk | abi.FlagQueCvt | abi.FlagIvValBlk |
	abi.FlagPersistent | abi.FlagExpedite | abi.FlagNoQueueBast | abi.FlagOrphan | abi.FlagForceUnlock

// check is what the kernel looks at first (set_lock_args).
func check(p *abi.LockParams, name string) error {
	f := p.Flags
	if f&^known != 0 {
		return syscall.ENOSYS
	}
	bad := p.Mode > uint8(dlm.EX) ||
		p.Castaddr == 0 || p.Lksb == 0 ||
		len(name) > dlm.MaxResourceName ||
		f&abi.FlagCancel != 0 ||
		f&abi.FlagQueCvt != 0 && f&abi.FlagConvert == 0 ||
		f&abi.FlagExpedite != 0 && (f&(abi.FlagConvert|abi.FlagQueCvt|abi.FlagNoQueue) != 0 || p.Mode != uint8(dlm.NL)) ||
		f&abi.FlagConvert != 0 && p.Lkid == 0
	if bad {
		return syscall.EINVAL
	}
	return nil
}

func (d *proc) request(p *abi.LockParams, name string, f Fault) (int, error) {
	if err := check(p, name); err != nil {
		return 0, err
	}
	if len(d.m.locks) >= maxLocks {
		return 0, syscall.ENOMEM
	}
	r := d.m.s.resources[name]
	if r == nil {
		r = &resource{s: d.m.s, name: name, master: d.m}
		r.s.resources[name] = r
	}
	l := &lock{
		m: d.m, proc: d, r: r, id: d.m.newID(), ua: *p, gr: none, rq: int8(p.Mode), highBast: none,
		flags: p.Flags, hasLVB: p.Flags&abi.FlagValBlk != 0, gate: f.Result,
	}
	d.m.locks[l.id] = l
	l.inProc = d.locks.PushBack(l)
	switch {
	case r.grantable(l, true, false):
		r.grant(l)
	case p.Flags&abi.FlagNoQueue == 0:
		r.move(l, waiting)
		r.notify(l, r.granted)
	default:
		l.cast(-int32(syscall.EAGAIN))
		if p.Flags&abi.FlagNoQueueBast != 0 {
			r.notify(l, r.granted, r.converting)
		}
	}
	return int(l.id), nil
}

func (d *proc) convert(p *abi.LockParams, f Fault) error {
	l := d.m.locks[p.Lkid]
	if l == nil {
		return syscall.ENOENT
	}
	if p.Flags&abi.FlagValBlk != 0 {
		l.hasLVB = true
	}
	l.lvb = p.Lvb
	l.ua = *p
	if err := check(p, ""); err != nil {
		return err
	}
	if l.state != granted {
		return syscall.EBUSY
	}
	r := l.r
	l.flags, l.sbFlags, l.rq = p.Flags, 0, int8(p.Mode)
	if f.Result != nil {
		l.gate = f.Result
	}
	switch {
	case r.grantable(l, true, false):
		r.grant(l)
		r.grantPending(false)
	case p.Flags&abi.FlagNoQueue != 0:
		l.rq = none
		l.cast(-int32(syscall.EAGAIN))
		if p.Flags&abi.FlagNoQueueBast != 0 {
			l.rq = int8(p.Mode)
			r.notify(l, r.granted, r.converting)
			l.rq = none
		}
	case r.deadlocks(l):
		l.rq = none
		l.cast(-int32(syscall.EDEADLK))
	default:
		r.move(l, converting)
		r.notify(l, r.granted)
	}
	return nil
}

func (d *proc) adopt(p *abi.LockParams, name string) (int, error) {
	if p.Castaddr == 0 || p.Lksb == 0 {
		return 0, syscall.EINVAL
	}
	err := syscall.ENOENT
	for e := d.m.orphans.Front(); e != nil; e = e.Next() {
		l := e.Value.(*lock)
		if l.r.name != name {
			continue
		}
		if l.gr != int8(p.Mode) {
			err = syscall.EAGAIN
			continue
		}
		d.m.orphans.Remove(e)
		l.inOrphans, l.orphan, l.proc = nil, false, d
		l.flags, l.ua = p.Flags, *p
		l.inProc = d.locks.PushBack(l)
		return int(l.id), nil
	}
	return 0, err
}

func (d *proc) unlock(p *abi.LockParams, f Fault) error {
	const allowed = abi.FlagCancel | abi.FlagValBlk | abi.FlagIvValBlk | abi.FlagForceUnlock
	l := d.m.locks[p.Lkid]
	if l == nil {
		return syscall.ENOENT
	}
	cancel := p.Flags&abi.FlagCancel != 0
	if !cancel && l.hasLVB {
		l.lvb = p.Lvb
	}
	if p.Castparam != 0 {
		l.ua.Castparam = p.Castparam
	}
	l.ua.Lksb = p.Lksb
	if p.Flags&^allowed != 0 || cancel && p.Flags&abi.FlagForceUnlock != 0 {
		return syscall.EINVAL
	}
	if f.Result != nil {
		l.gate = f.Result
	}
	if cancel {
		return l.cancel()
	}
	return l.release(p.Flags)
}

// cancel takes back what l waits for.
func (l *lock) cancel() error {
	switch {
	case l.ended:
		return syscall.ENOENT
	case l.flags&abi.FlagCancel != 0:
		return syscall.EINVAL // once for each request
	case l.state == granted:
		return nil // there is nothing to cancel, and no result
	}
	l.flags |= abi.FlagCancel
	l.sbFlags = 0
	if l.r.revert(l) {
		l.cast(abi.StatusCancel)
		l.r.grantPending(false)
	}
	return nil
}

// release ends l.
func (l *lock) release(flags uint32) error {
	switch {
	case l.ended:
		return syscall.ENOENT
	case l.state == off, flags&l.flags&abi.FlagForceUnlock != 0:
		return syscall.EINVAL
	}
	l.flags |= flags
	l.sbFlags = 0
	if l.inProc != nil {
		l.proc.locks.Remove(l.inProc)
		l.inProc = nil
	}
	l.r.remove(l)
	l.cast(abi.StatusUnlock)
	l.r.grantPending(false)
	return nil
}

// clearLocks is the end of a process (dlm_clear_proc_locks).
func (d *proc) clearLocks() {
	for e := d.locks.Front(); e != nil; e = d.locks.Front() {
		l := d.locks.Remove(e).(*lock)
		l.inProc, l.proc = nil, nil
		l.dropResults(d)
		if l.flags&abi.FlagPersistent == 0 {
			l.dead = true
			_ = l.release(abi.FlagForceUnlock | abi.FlagIvValBlk)
			l.m.freeID(l.id)
			continue
		}
		// What was not granted stays among the orphans, without a mode, until it is purged.
		l.orphan = true
		l.inOrphans = l.m.orphans.PushBack(l)
		_ = l.cancel()
	}
	for _, l := range d.m.locks {
		if l.proc == d { // it has ended, and its last result was not read yet
			l.dropResults(d)
			l.proc, l.dead = nil, true
			l.m.freeID(l.id)
		}
	}
}

func (l *lock) dropResults(d *proc) {
	l.callbacks = nil
	if l.queued != nil {
		d.results.Remove(l.queued)
		l.queued = nil
	}
}

// purge ends the orphans of a node. As the kernel compares ids of threads, and the simulation has none, no orphan is
// anybody's. A request that never became a lock crashes the kernel here (a NULL pointer in del_lkb, seen on 6.1).
func (m *member) purge(nodeid, pid uint32) error {
	if nodeid != 0 && nodeid != m.node.id {
		m = m.s.members[nodeid]
		if m == nil || m.dead {
			return nil
		}
	}
	if pid != 0 {
		return nil
	}
	for e := m.orphans.Front(); e != nil; e = m.orphans.Front() {
		l := m.orphans.Remove(e).(*lock)
		l.inOrphans = nil
		if l.state == off {
			m.node.panic()
			return syscall.ESHUTDOWN
		}
		_ = l.release(abi.FlagForceUnlock | abi.FlagIvValBlk)
		m.freeID(l.id)
	}
	return nil
}
