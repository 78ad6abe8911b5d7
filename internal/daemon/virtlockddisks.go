package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// In a cluster virtlockd has locked nothing that other hosts could see. So its locks are taken
// like those from before a restart, but that there is nothing to adopt: each is asked for. What another
// host holds is lost, as it cannot be told whose the disk is: nobody here gets it before its owner has ended.

const (
	// takers is how many locks are asked for at a time at most.
	takers = 32
	// namePatience bounds how long it is found out which disk a path leads to, and that this host
	// joins the lockspace, which is needed for that.
	namePatience = time.Minute
)

// takingName is a file in run_dir that says that locks of a virtlockd are being asked for: a next start finds them
// in its journal, and not all of them in the kernel. It is gone when all were answered.
const takingName = "taking-over"

// taker takes locks in the place of taking them back.
type taker struct {
	backend
	path string // of the file called takingName
	// adopt: an earlier process of vmlockd has begun, and what it had got is taken back first.
	adopt   bool
	timeout time.Duration // for each
	log     *slog.Logger
	owners  map[string][]locking.Owner // by ID, for the log
	// begun: the guard runs, without which nothing is granted. Before, all are for later.
	begun atomic.Bool

	mu     sync.Mutex // guards what follows
	asked  map[takeKey]locking.Restored
	opened map[string]locking.Handle // by ID: handles that were not asked for yet
}

func newTaker(c config.Config, b backend, log *slog.Logger) *taker {
	return &taker{backend: b, path: filepath.Join(c.RunDir, takingName), timeout: time.Duration(c.RequestTimeout), log: log,
		owners: map[string][]locking.Owner{}, asked: map[takeKey]locking.Restored{}, opened: map[string]locking.Handle{}}
}

// goOnTaking returns what goes on where an earlier process has ended while it took locks of a virtlockd; nil
// if none has.
func goOnTaking(c config.Config, b backend, found *journal.Recovered, log *slog.Logger) *taker {
	if c.Backend == config.BackendLocal {
		return nil
	}
	t := newTaker(c, b, log)
	if _, err := os.Stat(t.path); err != nil {
		return nil
	}
	t.adopt = true
	t.own(found.Entries)
	log.Warn("an earlier vmlockd has ended while it took over what virtlockd had: what it had not locked yet is asked for")
	return t
}

// own notes whose the locks are.
func (t *taker) own(entries []locking.Entry) {
	for _, e := range entries {
		t.owners[e.ID] = append(t.owners[e.ID], e.Owner)
	}
}

type takeKey struct {
	id   string
	mode locking.Mode
}

// noteDisks has the journal explain what is taken next, and returns what takes it: nil if there
// is no virtlockd, or the backend is another one.
func (r *replaced) noteDisks(c config.Config, b backend, j *journal.Journal, found *journal.Recovered, log *slog.Logger) (*taker, error) {
	if r == nil || c.Backend == config.BackendLocal {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), namePatience)
	defer cancel()
	t := newTaker(c, b, log)
	var mu sync.Mutex // guards strongest, and opened of t, which nobody else has yet
	strongest := map[string]locking.Mode{}
	each(len(r.entries), func(n int) {
		e := &r.entries[n]
		h, err := openDisk(ctx, b, e.Ref)
		if err != nil {
			log.Error("it cannot be found out which disk a virtual machine of this host uses, so it is not locked for it", "event", "virtlockd-conflict",
				"name", e.Ref.Name, "lockspace", e.Ref.Lockspace, "mode", e.Mode.String(),
				"owner", e.Owner.Name, "uuid", locking.FormatUUID(e.Owner.UUID), "pid", e.Owner.PID, "reason", err)
			return
		}
		e.ID = h.ID()
		if d, ok := h.(locking.Noter); ok {
			e.Note = d.Note()
		}
		mu.Lock()
		defer mu.Unlock()
		// Of two paths to one disk the second has the name of the first as long as that is open.
		if t.opened[e.ID] == nil {
			t.opened[e.ID] = h
		} else {
			defer h.Close()
		}
		if mode, ok := strongest[e.ID]; !ok || mode == locking.Shared {
			strongest[e.ID] = e.Mode
		}
	})
	var known []locking.Entry
	for _, e := range r.entries {
		if e.ID != "" {
			e.Mode = strongest[e.ID]
			known = append(known, e)
		}
	}
	r.entries = known
	// In this order: a journal without it would be of locks that are lost.
	if err := os.WriteFile(t.path, nil, 0o600); err != nil {
		return nil, fmt.Errorf("note that locks of virtlockd are taken over: %w", err)
	}
	if err := r.note(j, found); err != nil {
		return nil, err
	}
	t.own(r.entries)
	return t, nil
}

// openDisk waits for this host to join the lockspace, if the name of a disk depends on that.
func openDisk(ctx context.Context, b backend, ref locking.Ref) (h locking.Handle, err error) {
	for {
		if h, err = b.Open(ctx, ref, false); err == nil || ctx.Err() != nil {
			return h, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// takenPatience is how long nobody is served while what virtlockd had is not all taken. After that its
// disks are refused, and others served.
const takenPatience = time.Minute

// takeNow begins to ask for what virtlockd had, and waits for it. It reports whether all was answered.
func (t *taker) takeNow(m *locking.Manager, log *slog.Logger) bool {
	t.begun.Store(true)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		why := m.NotYet()
		if why == nil {
			if err := os.Remove(t.path); err != nil {
				log.Warn("that locks of virtlockd were taken over cannot be noted", "reason", err)
			}
			return true
		}
		if time.Since(begin) > takenPatience {
			log.Error("what virtlockd had is not locked in the cluster yet: do not stop this daemon before it is", "reason", why)
			return false
		}
	}
}

// each calls f for all up to n, some at a time, and returns when all calls have.
func each(n int, f func(int)) {
	var running sync.WaitGroup
	places := make(chan struct{}, takers)
	for i := range n {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			f(i)
		})
	}
	running.Wait()
}

// Restore asks for what is not had yet. As long as one cannot be had for another reason than that
// somebody has it, all are for later: their disks are refused, and others are served.
func (t *taker) Restore(ctx context.Context, held []locking.Held) []locking.Restored {
	out := make([]locking.Restored, len(held))
	var mu sync.Mutex // guards later
	var later error
	ask := held
	switch {
	case !t.begun.Load():
		later, ask = errors.New("the guard has not begun"), nil
	case t.adopt:
		if err := t.takeBack(ctx, held); err != nil {
			later, ask = err, nil
		}
	}
	each(len(ask), func(n int) {
		res, err := t.take(ctx, ask[n])
		out[n] = res
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			later = err
		}
	})
	if later != nil {
		for n := range out {
			out[n] = locking.Restored{Err: fmt.Errorf("%w: what virtlockd had cannot be locked in the cluster: %w", locking.ErrNotYet, later)}
		}
	}
	return out
}

// takeBack adopts what the earlier process had got, for take. What was told to nobody is not asked for.
func (t *taker) takeBack(ctx context.Context, held []locking.Held) (later error) {
	t.mu.Lock()
	var rest []locking.Held
	for _, h := range held {
		if _, ok := t.asked[takeKey{h.ID, h.Mode}]; !ok {
			rest = append(rest, h)
		}
	}
	t.mu.Unlock()
	if len(rest) == 0 {
		return nil
	}
	// What the earlier process had not asked for is no loss, to be taken anew without the guard: take does it.
	unasked := slices.Clone(rest)
	for n := range unasked {
		unasked[n].Told = false
	}
	results := t.backend.Restore(ctx, unasked)
	if err := results[0].Err; errors.Is(err, locking.ErrNotYet) { // which is for all or none
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, res := range results {
		if h := rest[n]; !h.Told || !errors.Is(res.Err, locking.ErrNotHeld) {
			t.asked[takeKey{h.ID, h.Mode}] = res
		}
	}
	return nil
}

// take takes one. later is why it is to be asked for again.
func (t *taker) take(ctx context.Context, held locking.Held) (res locking.Restored, later error) {
	key := takeKey{held.ID, held.Mode}
	t.mu.Lock()
	res, ok := t.asked[key]
	h := t.opened[held.ID]
	delete(t.opened, held.ID)
	t.mu.Unlock()
	if ok {
		return res, nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	var err error
	if h == nil {
		if h, err = t.Open(ctx, held.Ref, false); err != nil {
			return res, err
		}
	}
	if h.ID() != held.ID {
		h.Close()
		err = fmt.Errorf("%s leads to another disk now", held.Ref.Name)
	} else if err = h.Lock(ctx, held.Mode); err == nil {
		res.Handle = h
	}
	switch {
	case err == nil:
	case errors.Is(err, locking.ErrBusy):
		who := err.Error()
		if f, ok := errors.AsType[locking.HolderFinder](err); ok {
			for _, r := range f.FindHolders(ctx) {
				who += ", " + r.String()
			}
		}
		h.Close()
		for _, o := range t.owners[held.ID] {
			t.log.Error("a virtual machine of this host uses a disk that another one holds: end one of them", "event", "virtlockd-conflict",
				"name", held.Ref.Name, "lockspace", held.Ref.Lockspace, "mode", held.Mode.String(),
				"owner", o.Name, "uuid", locking.FormatUUID(o.UUID), "pid", o.PID, "reason", who)
		}
		res.Err = fmt.Errorf("%w: %s", locking.ErrNotHeld, who)
	case h.ID() != held.ID:
		res.Err = fmt.Errorf("%w: %w", locking.ErrNotHeld, err)
	default:
		h.Close()
		return res, err
	}
	t.mu.Lock()
	t.asked[key] = res
	t.mu.Unlock()
	return res, nil
}
