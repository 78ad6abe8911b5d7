package dlm

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// Adoption names an orphan of this node that is to be adopted.
type Adoption struct {
	Name    string
	Mode    Mode
	Options LockOptions // Persistent, to stay one; Notify. NoQueue and LVB mean nothing here.
}

// Adopted is what came of an Adoption: one of the two is nil.
type Adopted struct {
	Lock *Lock
	Err  error // ErrNoOrphan, ErrOtherMode, or what kept it from being tried
}

type orphan struct {
	name string
	mode Mode
}

// Adopt makes an orphan of this node - a persistent lock whose process is gone - a lock of this process, by its name
// and mode. If there are several it is the oldest. An adopted lock is Persistent only if opts say so again, and it
// comes without its LVB.
//
// The error is ErrNoOrphan if there is none of that name, and ErrOtherMode if there is one in another mode.
//
// Adoption does not wait for a stopped lockspace. Should ctx end first all the same, the orphan, once adopted, is kept:
// the next Adopt of it with the same opts has it. It is not released, because an orphan is somebody's lock.
func (ls *Lockspace) Adopt(ctx context.Context, name string, mode Mode, opts LockOptions) (*Lock, error) {
	a := ls.AdoptAll(ctx, []Adoption{{Name: name, Mode: mode, Options: opts}})[0]
	return a.Lock, a.Err
}

// AdoptAll adopts several orphans, one after the other, and returns as many results in the same order. The kernel looks
// for an orphan from the oldest on, so the order in which the locks were had is by far the fastest. When ctx ends, up to
// 64 more are adopted and kept as with Adopt.
func (ls *Lockspace) AdoptAll(ctx context.Context, adoptions []Adoption) []Adopted {
	n := min(chunk, len(adoptions))
	b := &adoptBatch{ls: ls, todo: adoptions, results: make([]Adopted, len(adoptions)), done: make(chan struct{}),
		work: make([]attempt, n), writes: make([]write, n)}
	err := b.begin(ctx)
	if err == nil {
		select {
		case <-b.done:
		case <-ctx.Done():
			err = ctx.Err()
		case <-ls.stop:
		}
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if err == nil {
		err = ls.stopErr
	}
	b.left = true
	results := b.results
	for i := range results {
		if results[i] == (Adopted{}) {
			results[i].Err = ls.fault("adopt", adoptions[i].Name, err)
		}
	}
	b.results = nil
	return results
}

// adoptBatch is an AdoptAll under way. All its writes are done by one goroutine, because the order matters and each
// takes only a moment.
type adoptBatch struct {
	ls   *Lockspace
	todo []Adoption
	done chan struct{}

	// One chunk's, used again for each: many locks are adopted when a process has just
	// begun, and memory that was never touched before is what costs most then.
	work   []attempt
	writes []write

	// Guarded by ls.mu.
	results []Adopted
	left    bool // the caller has taken the results
}

func (b *adoptBatch) begin(ctx context.Context) error {
	ls := b.ls
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case ls.adoptTurn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-ls.stop:
		return nil // the caller finds out why
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.stopErr != nil {
		<-ls.adoptTurn
		return nil
	}
	ls.wg.Go(b.run)
	return nil
}

// chunk is how many adoptions are done between two looks at who waits for them. A look costs more than an adoption where
// locks and the clock are dear, and a chunk takes a few milliseconds.
const chunk = 64

func (b *adoptBatch) run() {
	defer close(b.done)
	defer func() { <-b.ls.adoptTurn }()
	for first := 0; first < len(b.todo); first += chunk {
		work := b.prepare(first, min(first+chunk, len(b.todo)))
		if work == nil {
			return
		}
		for i := range work {
			a := &work[i]
			if a.lock != nil {
				a.n, a.err = b.ls.dev.Write(a.w.buf)
			}
		}
		b.finish(first, work)
	}
}

// attempt is one adoption on its way.
type attempt struct {
	lock *Lock // nil if there is nothing to do for the kernel
	w    *write
	n    int
	err  error
}

// prepare makes the writes for todo[from:to]. It returns nil if nobody is left to do it for.
func (b *adoptBatch) prepare(from, to int) []attempt {
	ls := b.ls
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if b.left || ls.stopErr != nil {
		return nil
	}
	if ls.locks.Len() == 0 && len(b.todo) > chunk {
		ls.locks.Expect(len(b.todo))
	}
	work := b.work[:to-from]
	clear(work)
	now := time.Now()
	for i := range work {
		a := &b.todo[from+i]
		if err := checkLock(a.Name, a.Mode); err != nil {
			b.results[from+i].Err = ls.fault("adopt", a.Name, err)
			continue
		}
		if l := ls.takeLateLocked(a); l != nil {
			b.results[from+i].Lock = l
			continue
		}
		l := ls.newLockLocked(a.Name, a.Options)
		flags := uint32(abi.FlagOrphan)
		if a.Options.Persistent {
			flags |= abi.FlagPersistent
		}
		l.write = &b.writes[i]
		*l.write = write{buf: abi.EncodeLockInto(l.write.buf, abi.CmdLock, l.paramsLocked(a.Mode, flags, nil), a.Name), since: now}
		work[i] = attempt{lock: l, w: l.write}
		ls.adopting = l.write
	}
	return work
}

// takeLateLocked is the lock that a was about, if it was adopted after an earlier caller had left.
func (ls *Lockspace) takeLateLocked(a *Adoption) *Lock {
	key := orphan{a.Name, a.Mode}
	late := ls.late[key]
	if len(late) == 0 || late[0].persistent != a.Options.Persistent || (late[0].blocking != nil) != a.Options.Notify {
		return nil
	}
	if ls.late[key] = late[1:]; len(late) == 1 {
		delete(ls.late, key)
	}
	return late[0]
}

// finish gives the results of a chunk to the caller, or keeps the locks for the next one.
func (b *adoptBatch) finish(first int, work []attempt) {
	ls := b.ls
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.adopting = nil
	for i, done := range work {
		l, a := done.lock, &b.todo[first+i]
		if l == nil {
			continue
		}
		l.write = nil
		if done.err != nil {
			l.dead = true
		} else {
			l.lkid, l.mode, l.adopted = uint32(done.n), a.Mode, true
		}
		l.stepLocked()
		switch {
		case done.err != nil && !b.left:
			b.results[first+i].Err = ls.fault("adopt", a.Name, oneOf(done.err, ErrNoOrphan, ErrOtherMode))
		case done.err != nil || l.dead:
		case b.left:
			key := orphan{a.Name, a.Mode}
			ls.late[key] = append(ls.late[key], l)
		default:
			b.results[first+i].Lock = l
		}
	}
	ls.checkIdleLocked()
}

// Purge releases every orphan that the node nodeid (0 is this one) has in the lockspace and that nobody has adopted,
// and marks the LVB of what they held in PW or EX as not valid. For this node it returns when the kernel has done so;
// another node is only told.
//
// The kernel could also purge the orphans of one process alone, but what it compares is the id of the thread that made
// the request, which in a Go program is any thread; and if the number is that of the calling thread it releases the
// locks that are not orphans. So that is not offered.
//
// It may crash the kernel if there are orphans without a mode; see the package comment.
//
// When ctx ends first, the purge goes on.
func (ls *Lockspace) Purge(ctx context.Context, nodeid uint32) error {
	const op = "purge"
	if err := ctx.Err(); err != nil {
		return ls.fault(op, "", err)
	}
	done := make(chan error, 1)
	w := &write{buf: abi.EncodePurge(nodeid, 0), line: lineOther, done: func(_ int, err error) { done <- err }}
	ls.mu.Lock()
	if err := ls.stopErr; err != nil {
		ls.mu.Unlock()
		return ls.fault(op, "", err)
	}
	ls.writeLocked(w)
	ls.mu.Unlock()

	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-ls.stop:
		err = ErrClosed
	}
	if err != nil {
		ls.mu.Lock()
		if len(done) == 0 && ls.withdrawLocked(w) {
			err = fmt.Errorf("not begun: %w", err)
		}
		ls.mu.Unlock()
	}
	if err == syscall.ENOENT {
		err = ErrNoLockspace
	}
	return ls.fault(op, "", err)
}
