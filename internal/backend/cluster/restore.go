package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// Restore adopts the locks that an earlier process of this host left in the
// kernel. They are persistent, so that no death of a process releases one.
// Adoption does not wait for a stopped lockspace or for quorum. What an earlier
// Backend in this process has handed over needs none.
//
// Nothing is ever purged: every lock of this host has an entry in the journal,
// written before the kernel was asked, and PURGE can crash kernels up to 6.1 at
// least (see package dlm).
func (b *Backend) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	results := make([]locking.Restored, len(held))
	if len(held) == 0 {
		return results
	}
	b.beginRecall()
	defer func() {
		if !errors.Is(results[0].Err, locking.ErrNotYet) { // which is for all or none
			b.recall(b.remember(held, results))
		}
	}()
	space, err := b.earlier(ctx)
	if err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	var adoptions []dlm.Adoption
	var places []int
	if b.noneHanded() {
		adoptions, places = make([]dlm.Adoption, 0, len(held)), make([]int, 0, len(held))
	}
	for i, h := range held {
		if l := b.takeHanded(h.ID, modeOf(h.Mode)); l != nil {
			results[i].Handle = b.restored(h, l)
			continue
		}
		adoptions = append(adoptions, dlm.Adoption{Name: h.ID, Mode: modeOf(h.Mode), Options: dlm.LockOptions{Persistent: true}})
		places = append(places, i)
	}
	b.dropEmpty()
	if len(adoptions) == 0 {
		return results
	}
	beforeAdopt.Pass()
	adopted := adoptAll(ctx, space, adoptions)
	b.adoptLate(ctx, space, adoptions, adopted)
	afterAdopt.Pass()
	soon, cancel := context.WithTimeout(ctx, anewWithin)
	defer cancel()
	for at, a := range adopted {
		i := places[at]
		switch {
		case errors.Is(a.Err, errUnanswered):
			// It may be held, and the journal has to keep it until that is known.
			results[i].Err = a.Err
			results[i].Handle = &handle{b: b, ref: held[i].Ref, name: held[i].ID, late: &adoptions[at]}
			continue
		case errors.Is(a.Err, dlm.ErrNoOrphan), errors.Is(a.Err, dlm.ErrOtherMode):
			// In another mode: what a request leaves that was refused after its process
			// had ended. It holds nothing (see package dlm).
			results[i].Err = fmt.Errorf("%w: %w", locking.ErrNotHeld, a.Err)
			if held[i].Told && errors.Is(a.Err, dlm.ErrNoOrphan) {
				if h := b.takeAnew(soon, space, held[i]); h != nil {
					results[i].Handle = h
				}
			}
			continue
		case a.Err != nil:
			results[i].Err = a.Err
			continue
		}
		results[i].Handle = b.restored(held[i], a.Lock)
	}
	return results
}

// anewWithin bounds the wait for all locks that are taken anew, when all that was kept is adopted: what does not
// answer must not use up the time that the rest of a start has.
const anewWithin = 5 * time.Second

// takeAnew takes a lock that the kernel has lost although its owner counts on it, if nobody has it
// by now. Its virtual machine has been without it, which this does not undo: it stays lost, and
// is an alarm. But no other host gets the disk from now on.
func (b *Backend) takeAnew(ctx context.Context, space *dlm.Lockspace, held locking.Held) *handle {
	if running, _ := b.watch.runs(); !running {
		return nil
	}
	beforeLock.Pass()
	l, err := space.Lock(ctx, held.ID, modeOf(held.Mode), dlm.LockOptions{NoQueue: true, Persistent: true})
	afterLock.Pass()
	if err != nil {
		b.log.Warn("a lock that the kernel has lost could not be taken anew, so others may use the disk beside its virtual machine", "event", "lock-not-taken-anew",
			"lockspace", held.Ref.Lockspace, "name", held.Ref.Name, "reason", err)
		return nil
	}
	return &handle{b: b, ref: held.Ref, name: held.ID, mode: held.Mode, lock: l}
}

// adoptAll adopts all at once, or one by one if a test kills the process between two.
func adoptAll(ctx context.Context, space *dlm.Lockspace, list []dlm.Adoption) []dlm.Adopted {
	if !beforeAdoptOne.Armed() && !afterAdoptOne.Armed() {
		return space.AdoptAll(ctx, list)
	}
	var adopted []dlm.Adopted
	for i := range list {
		beforeAdoptOne.Pass()
		adopted = append(adopted, space.AdoptAll(ctx, list[i:i+1])...)
		afterAdoptOne.Pass()
	}
	return adopted
}

// DropUnclaimed gives back what was handed over and Restore has not taken: no entry
// of the journal explains it, so nobody here was told of it. What is nobody's, a
// lock to read a value block or to ask (askEarlier), goes without a word. It is carried out in the
// background; the number is how many locks that may keep others out are given back.
func (b *Backend) DropUnclaimed() (n int) {
	b.mu.Lock()
	list := b.handedMore
	for _, l := range b.handed {
		list = append(list, l)
	}
	b.handed, b.handedMore = nil, nil
	b.mu.Unlock()
	for _, l := range list {
		h := &handle{b: b, name: l.Name(), mode: locking.Shared, lock: l}
		switch l.Mode() {
		case dlm.NL, dlm.CR, dlm.CW:
			b.finish(h)
			continue
		case dlm.EX:
			h.mode, h.written = locking.Exclusive, true
		}
		n++
		b.log.Warn("a lock that the earlier program had, and of which no record tells, is given back", "dlm", b.name, "dlm_resource", l.Name(), "mode", l.Mode().String())
		b.finish(h)
	}
	return n
}

// remember takes in what is noted of the locks, and returns those of which nothing is,
// and whose names are paths. What could not be taken back may be held all the same, so
// whoever comes by another path has to find it under its name, until it is known: the
// place of its handle has one that holds nothing.
func (b *Backend) remember(held []locking.Held, results []locking.Restored) (unknown []*handle) {
	if b.identify == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range results {
		if held[i].Ref.Lockspace != "" {
			continue
		}
		id := held[i].ID
		place := b.lost[id]
		h, ok := r.Handle.(*handle)
		switch {
		case r.Err != nil && !errors.Is(r.Err, locking.ErrNotHeld):
			// Of what no client was told (Told) nobody asks again.
			if place == nil && held[i].Told {
				b.lost[id] = &handle{b: b, ref: held[i].Ref, name: id}
				b.lockedRemember(b.lost[id], held[i].Note)
			}
			continue
		case ok && h.lock != nil && !b.lockedRemember(h, held[i].Note):
			unknown = append(unknown, h)
		}
		if place != nil {
			delete(b.lost, id)
			b.lockedEnd(place)
		}
	}
	return unknown
}

// restored is a handle of a lock that an earlier process took. It may have
// published an exclusive one.
func (b *Backend) restored(h locking.Held, l *dlm.Lock) *handle {
	return &handle{b: b, ref: h.Ref, name: h.ID, mode: h.Mode, lock: l, written: h.Mode == locking.Exclusive}
}

// earlier is the lockspace that this host was a member of. Opening it needs nobody
// else. But while the device of an earlier process is open its locks are not
// orphans, and the kernel may keep it open for as long as the lockspace is stopped:
// then the error is locking.ErrNotYet.
func (b *Backend) earlier(ctx context.Context) (*dlm.Lockspace, error) {
	if space, _ := b.lockspace(); space != nil {
		return space, nil
	}
	if _, err := b.kernel.Minor(b.name); errors.Is(err, dlm.ErrNoLockspace) {
		return nil, fmt.Errorf("%w: this host is not in the DLM lockspace any more", locking.ErrNotHeld)
	}
	space, why := b.lockspace()
	switch {
	case space != nil:
		return space, nil
	case b.ctx.Err() != nil:
		return nil, fmt.Errorf("the DLM lockspace cannot be opened: %w", why)
	}
	if _, known := errors.AsType[*earlierOpen](why); !known {
		// It is found out again every few seconds (awaitEarlier), which is enough for one
		// who asks several times a second, perhaps for hours.
		why = b.notJoined(ctx, why)
	}
	return nil, fmt.Errorf("%w: %w", locking.ErrNotYet, why)
}

// Replaceable is nil if this process can be replaced by another program now. In
// a lockspace that is stopped, closing it and even ending would wait in the
// kernel for as long as that lasts.
func (b *Backend) Replaceable() error {
	if n := b.Unsettled(); n > 0 {
		return fmt.Errorf("the kernel has not answered %d requests", n)
	}
	if space, _ := b.lockspace(); space == nil {
		return errors.New("this host is joining the DLM lockspace")
	}
	if running, _ := b.watch.runs(); !running {
		return errors.New("the DLM lockspace is stopped")
	}
	return nil
}

// answerWithin bounds how long the answer to a request of the earlier process is
// waited for before anything is served. What has none by then is waited for in
// the background, and its resource is refused until then.
const answerWithin = time.Second

// errUnanswered is about a request of the earlier process that may be granted yet.
var errUnanswered = fmt.Errorf("%w: the kernel has not answered yet whether the earlier process got this lock", locking.ErrUnderway)

// adoptLate adopts what was granted after the first try. A request that was on
// its way to another node when its process ended looks like one that was refused,
// until the answer has come. The answers about one resource come in the order of
// the requests. So when another request for it has its answer, here for a mode
// that everybody gets, the earlier one has its own.
func (b *Backend) adoptLate(ctx context.Context, space *dlm.Lockspace, adoptions []dlm.Adoption, adopted []dlm.Adopted) {
	soon, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var again []dlm.Adoption
	var places []int
	answered := map[string]error{}
	for i, a := range adopted {
		if !errors.Is(a.Err, dlm.ErrOtherMode) {
			continue
		}
		name := adoptions[i].Name
		err, asked := answered[name]
		if !asked {
			err = b.awaitAnswers(soon, space, name)
			answered[name] = err
		}
		if err != nil {
			adopted[i].Err = fmt.Errorf("%w: %w", errUnanswered, err)
			continue
		}
		again, places = append(again, adoptions[i]), append(places, i)
	}
	if len(again) == 0 {
		return
	}
	for i, a := range adoptDue(ctx, space, again) {
		adopted[places[i]] = a
	}
}

// adoptDue adopts what may have been granted by now.
func adoptDue(ctx context.Context, space *dlm.Lockspace, list []dlm.Adoption) []dlm.Adopted {
	beforeAdoptDue.Pass()
	defer afterAdoptDue.Pass()
	return space.AdoptAll(ctx, list)
}

// giveBackLate gives back what an unanswered request of the earlier process got,
// if it got anything. A failed attempt is made again until ctx ends: nobody else
// would ever release that lock.
func (b *Backend) giveBackLate(ctx context.Context, h *handle) error {
	for {
		err := b.tryGiveBackLate(ctx, h)
		if err == nil {
			return nil
		}
		b.log.Debug("a request of the earlier process is not settled yet", "dlm_resource", h.name, "reason", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(joinRetry):
		}
	}
}

func (b *Backend) tryGiveBackLate(ctx context.Context, h *handle) error {
	space, why := b.lockspace()
	if space == nil {
		return why
	}
	if h.lock == nil {
		if err := b.awaitAnswers(ctx, space, h.name); err != nil {
			return err
		}
		switch a := adoptDue(ctx, space, []dlm.Adoption{*h.late})[0]; {
		case errors.Is(a.Err, dlm.ErrNoOrphan), errors.Is(a.Err, dlm.ErrOtherMode):
			return nil // it was refused
		case a.Err != nil:
			return a.Err
		default:
			h.lock = a.Lock
		}
	}
	return b.unlock(ctx, h)
}

// awaitAnswers waits until all earlier requests for a resource have been answered.
func (b *Backend) awaitAnswers(ctx context.Context, space *dlm.Lockspace, name string) error {
	for {
		running, changed := b.watch.runs()
		if running {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the DLM lockspace is stopped: %w", ctx.Err())
		}
	}
	beforeAdoptLate.Pass()
	l, err := space.Lock(ctx, name, dlm.NL, dlm.LockOptions{NoQueue: true})
	afterAdoptLate.Pass()
	if err != nil {
		return err
	}
	beforeLateEnd.Pass()
	defer afterLateEnd.Pass()
	return l.Unlock(ctx)
}

// Unsettled is how many requests the kernel has not answered whose callers have
// gone away. Once the backend is being closed nobody learns of answers any more,
// so then there is always one: what is forgotten now is not found by the next
// process.
func (b *Backend) Unsettled() int {
	space, _ := b.lockspace()
	if b.ctx.Err() != nil {
		return 1
	}
	if space == nil {
		return 0
	}
	return space.Stats().Unsettled + b.givingBack()
}

func modeOf(m locking.Mode) dlm.Mode {
	if m == locking.Shared {
		return dlm.PR
	}
	return dlm.EX
}
