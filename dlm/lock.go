package dlm

import (
	"context"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// Lock is a lock this process has, granted and not yet released. Its methods may be called from any goroutine; requests
// about one lock are made one after the other, in the order in which the calls got their turn.
//
// A process may have many thousands, so the small fields are together.
type Lock struct {
	ls       *Lockspace
	name     string
	cookie   uint64    // what the kernel sends back with everything about this lock
	blocking chan Mode // nil without LockOptions.Notify; closed when the lock has ended

	// Guarded by ls.mu.
	cur      *request // the request or conversion under way
	unlock   *request // the release under way
	write    *write   // the write about this lock that is under way; there is never a second one
	owed     *request // a conversion that ended without its result, which may come yet; see lost.go
	retry    *time.Timer
	lvb      LVB
	lkid     uint32
	place    int32 // in Options.UnderWay; 0 if this does not count there
	mode     Mode  // as granted last
	lvbValid bool
	lvbAsked bool // by the request that was granted last
	dead     bool // the kernel has said its last word
	adopted  bool // results about it may get lost, see lost.go
	busy     bool

	persistent bool // never changed
}

// LockOptions say how a lock is to be requested or adopted; the zero value waits for the grant, and the lock ends with
// the process.
type LockOptions struct {
	// NoQueue: do not wait; a conflict is ErrBusy.
	NoQueue bool
	// Persistent: the lock outlives the process, as an orphan of this node, which Adopt finds again. Without NoQueue it
	// becomes so only after the grant, by a conversion of its own, which doubles the cost: a persistent request that
	// waits when its process ends leaves something among the orphans that makes the kernel crash at the next purge.
	Persistent bool
	// LVB: read the lock value block with the grant. Adopt cannot, and ignores it.
	LVB bool
	// Notify: deliver notices when this lock is in the way of somebody's request; see Blocking.
	Notify bool
}

// Lock requests a lock on the resource called name (1 to MaxResourceName bytes of any kind; names that differ only in
// NUL bytes at the end are not safe to tell apart, so do not use them side by side) and returns when it is granted.
//
// A NL lock is granted at once, whoever waits for the resource.
//
// When ctx ends first, the error is ctx's and the lock is not had: the request is withdrawn, and if the kernel grants it
// all the same, however late, it is released at once. Stats counts requests in that state. The same goes for Close.
func (ls *Lockspace) Lock(ctx context.Context, name string, mode Mode, opts LockOptions) (*Lock, error) {
	const op = "lock"
	if err := checkLock(name, mode); err != nil {
		return nil, ls.fault(op, name, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, ls.fault(op, name, err)
	}
	var flags uint32
	if opts.LVB {
		flags |= abi.FlagValBlk
	}
	waits := false
	switch {
	case mode == NL:
		flags |= abi.FlagExpedite // which excludes NOQUEUE, and makes it needless
	case opts.NoQueue:
		flags |= abi.FlagNoQueue
	default:
		waits = true
	}
	if opts.Persistent && !waits {
		flags |= abi.FlagPersistent
	}
	r := newRequest(reqLock, mode, flags)

	ls.mu.Lock()
	if err := ls.stopErr; err != nil {
		ls.mu.Unlock()
		return nil, ls.fault(op, name, err)
	}
	l := ls.newLockLocked(name, opts)
	l.cur = r
	l.stepLocked()
	ls.mu.Unlock()

	err := l.await(ctx, r)
	if err == nil && opts.Persistent && waits {
		err = l.persist(ctx)
	}
	if err != nil {
		return nil, ls.fault(op, name, err)
	}
	return l, nil
}

// persist makes a lock persistent that has just been granted, or else gives it up.
func (l *Lock) persist(ctx context.Context) error {
	ls := l.ls
	ls.mu.Lock()
	if err := l.usableLocked(); err != nil {
		ls.mu.Unlock()
		return err
	}
	r := newRequest(reqConvert, l.mode, abi.FlagConvert|abi.FlagPersistent)
	l.cur = r
	l.stepLocked()
	ls.mu.Unlock()
	err := l.await(ctx, r)
	if err != nil {
		ls.mu.Lock()
		if !l.dead && l.unlock == nil {
			l.undoLocked()
			l.stepLocked()
		}
		ls.mu.Unlock()
	}
	return err
}

func checkLock(name string, mode Mode) error {
	if len(name) == 0 || len(name) > MaxResourceName {
		return fmt.Errorf("%w: a resource's name has 1 to %d bytes, not %d", ErrInvalid, MaxResourceName, len(name))
	}
	if !mode.valid() {
		return fmt.Errorf("%w: %v", ErrInvalid, mode)
	}
	return nil
}

func (ls *Lockspace) newLockLocked(name string, opts LockOptions) *Lock {
	ls.lastCookie++
	l := &Lock{ls: ls, name: name, cookie: ls.lastCookie, persistent: opts.Persistent}
	if opts.Notify {
		l.blocking = make(chan Mode, 1)
	}
	ls.locks.Put(l)
	return l
}

// await waits for the end of r, or gives r up when ctx ends or the lockspace is closed.
func (l *Lock) await(ctx context.Context, r *request) error {
	var why error
	select {
	case <-r.done:
	case <-ctx.Done():
		why = ctx.Err()
	case <-l.ls.stop:
	}
	l.ls.mu.Lock()
	defer l.ls.mu.Unlock()
	switch {
	case r.ended && !r.givenUp:
		return r.err // also when ctx ended at the same time: granted means granted
	case why == nil:
		why = l.ls.stopErr
	}
	l.giveUpLocked(r)
	l.stepLocked()
	return why
}

// Name is the resource's name.
func (l *Lock) Name() string { return l.name }

// Persistent reports whether the lock outlives the process.
func (l *Lock) Persistent() bool { return l.persistent }

// ID is the kernel's id of the lock, unique among this node's locks of the lockspace while the lock exists, and used
// again soon after.
func (l *Lock) ID() uint32 {
	l.ls.mu.Lock()
	defer l.ls.mu.Unlock()
	return l.lkid
}

// Mode is the mode that was granted last. While a conversion is under way that is the mode before it; Settle waits.
func (l *Lock) Mode() Mode {
	l.ls.mu.Lock()
	defer l.ls.mu.Unlock()
	return l.mode
}

// LVB is the lock value block as it was read or written last by this lock, and whether it is valid. The block of
// a resource nobody has written is all zero, and valid.
func (l *Lock) LVB() (lvb LVB, valid bool) {
	l.ls.mu.Lock()
	defer l.ls.mu.Unlock()
	return l.lvb, l.lvbValid
}

// Blocking delivers notices that this lock keeps others waiting, each with the strongest mode somebody wants. It holds
// one notice: while that is not received, later ones are merged into it. It is closed when the lock has ended. It is
// nil unless LockOptions.Notify was set. The kernel sends no notice for a NoQueue request.
func (l *Lock) Blocking() <-chan Mode { return l.blocking }

// ConvertOptions say how a lock is to be converted.
type ConvertOptions struct {
	// NoQueue: do not wait; a conflict is ErrBusy and leaves the lock as it was.
	NoQueue bool
	// ReadLVB: read the lock value block with the grant. Only a conversion that is not weaker can, and not one from EX,
	// nor from PW to PW.
	ReadLVB bool
	// WriteLVB: write the lock value block of the resource. Only a conversion from EX, or from PW to anything but EX, can. The
	// kernel does not wait for the node that keeps the books when the new mode is a lesser one (down_conversion in
	// fs/dlm/lock.c), so that other nodes may still read the block as it was for a moment after that.
	WriteLVB *LVB
	// Patience is how long a conversion with NoQueue of a lock that was adopted waits for its result, which may never
	// come; then it ends with ErrNoResult. It is 200 ms at least. A result that comes after that is not lost, see ErrNoResult.
	Patience time.Duration
}

// Convert changes the mode of the lock, or, with the mode it has, its LVB. Other calls of Convert and Unlock on the same
// lock wait.
//
// When ctx ends first, the error is ctx's and the conversion is canceled, which may come too late: the lock then has
// one of the two modes and remains the caller's. Settle tells which, as soon as it is known; Convert and Unlock wait
// for it by themselves.
func (l *Lock) Convert(ctx context.Context, mode Mode, opts ConvertOptions) error {
	const op = "convert"
	ls := l.ls
	if !mode.valid() {
		return ls.fault(op, l.name, fmt.Errorf("%w: %v", ErrInvalid, mode))
	}
	for {
		if _, err := l.Settle(ctx); err != nil {
			return ls.fault(op, l.name, err)
		}
		ls.mu.Lock()
		if err := l.usableLocked(); err != nil {
			ls.mu.Unlock()
			return ls.fault(op, l.name, err)
		}
		if l.cur == nil {
			break
		}
		ls.mu.Unlock()
	}
	r := newRequest(reqConvert, mode, abi.FlagConvert)
	r.patience = opts.Patience
	if l.persistent {
		r.flags |= abi.FlagPersistent // a conversion replaces the flags of the lock
	}
	if opts.NoQueue {
		r.flags |= abi.FlagNoQueue
	}
	var err error
	transfer := lvbTransfer(l.mode, mode)
	switch {
	case opts.ReadLVB && transfer != lvbRead, opts.WriteLVB != nil && transfer != lvbWritten:
		err = fmt.Errorf("%w: a conversion from %v to %v does not do that with an LVB", ErrInvalid, l.mode, mode)
	case opts.ReadLVB:
		r.flags |= abi.FlagValBlk
	case opts.WriteLVB != nil:
		r.flags |= abi.FlagValBlk
		r.lvb = *opts.WriteLVB
	}
	if err == nil && l.owed != nil {
		err = ErrNoResult
	}
	if err == nil {
		l.cur = r
		l.stepLocked()
	}
	ls.mu.Unlock()
	if err == nil {
		err = l.await(ctx, r)
	}
	return ls.fault(op, l.name, err)
}

// usableLocked is nil if requests about the lock can still be made.
func (l *Lock) usableLocked() error {
	if l.ls.stopErr != nil {
		return l.ls.stopErr
	}
	if l.dead || l.unlock != nil {
		return ErrUnlocked
	}
	return nil
}

// Settle waits until no request or conversion of the lock is under way and returns the mode it has then.
func (l *Lock) Settle(ctx context.Context) (Mode, error) {
	const op = "settle"
	for {
		l.ls.mu.Lock()
		cur, mode, err := l.cur, l.mode, l.usableLocked()
		l.ls.mu.Unlock()
		if err != nil || cur == nil {
			return mode, l.ls.fault(op, l.name, err)
		}
		select {
		case <-cur.done:
		case <-l.ls.stop:
		case <-ctx.Done():
			return mode, l.ls.fault(op, l.name, ctx.Err())
		}
	}
}

// Cancel ends a conversion that waits in the kernel, whose Convert then returns ErrCanceled - or nil, if the grant was
// faster. Cancel returns when that is known; the error is only that of ctx, or of a lock that is no more. Without a
// conversion, or with one that has NoQueue, there is nothing to cancel. (A request for a new lock is canceled by its context.)
func (l *Lock) Cancel(ctx context.Context) error {
	const op = "cancel"
	ls := l.ls
	ls.mu.Lock()
	err := l.usableLocked()
	r := l.cur
	if err == nil && r != nil && r.kind == reqConvert && r.flags&abi.FlagNoQueue == 0 && !r.givenUp {
		r.cancel = true
		l.stepLocked()
	}
	ls.mu.Unlock()
	if err != nil || r == nil {
		return ls.fault(op, l.name, err)
	}
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ls.fault(op, l.name, ctx.Err())
	}
}

// Unlock releases the lock. A conversion that is under way ends with ErrUnlocked. The second Unlock of a lock waits
// for the first; one that comes after it returns ErrUnlocked.
//
// When ctx ends first, the error is ctx's and the release goes on; calling Unlock again waits for it. Any other error
// but ErrUnlocked means that the lock is still held and the caller's.
func (l *Lock) Unlock(ctx context.Context) error {
	return l.release(ctx, newRequest(reqUnlock, 0, 0))
}

// UnlockLVB is Unlock, and writes the lock value block with it. Only the release of a PW or EX lock does, and only if
// that lock has had to do with the LVB before: asked for it, or written it, in this process or in one that it was
// adopted from. Otherwise the LVB stays as it is, or becomes all zero where another node keeps the resource's books.
func (l *Lock) UnlockLVB(ctx context.Context, lvb LVB) error {
	r := newRequest(reqUnlock, 0, abi.FlagValBlk)
	r.lvb = lvb
	return l.release(ctx, r)
}

// release makes the request r to release the lock, unless there is one already.
func (l *Lock) release(ctx context.Context, first *request) error {
	const op = "unlock"
	ls := l.ls
	ls.mu.Lock()
	r := l.unlock
	if r == nil {
		if err := l.usableLocked(); err != nil {
			ls.mu.Unlock()
			return ls.fault(op, l.name, err)
		}
		if cur := l.cur; cur != nil && !cur.written {
			l.withdrawLocked(cur, ErrUnlocked)
		}
		r = first
		l.unlock = r
		l.stepLocked()
	}
	ls.mu.Unlock()

	var err error
	select {
	case <-r.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if r.ended {
		err = r.err
	} else {
		r.givenUp = true
		l.stepLocked()
	}
	return ls.fault(op, l.name, err)
}

// ReadLVB reads the lock value block of a resource without waiting for anyone who has it locked: with a NL lock of a
// moment. The LVB of a resource that nobody has locked is all zero, and valid.
func (ls *Lockspace) ReadLVB(ctx context.Context, name string) (lvb LVB, valid bool, err error) {
	l, err := ls.Lock(ctx, name, NL, LockOptions{LVB: true})
	if err != nil {
		return lvb, false, err
	}
	lvb, valid = l.LVB()
	return lvb, valid, l.Unlock(ctx)
}

// What a conversion with VALBLK does with the LVB.
const (
	lvbKept = iota
	lvbRead
	lvbWritten
)

// lvbTransfer is the table dlm_lvb_operations of fs/dlm/lock.c for two modes.
func lvbTransfer(from, to Mode) int {
	switch {
	case from == EX, from == PW && to != EX:
		return lvbWritten
	case to >= from:
		return lvbRead
	}
	return lvbKept
}
