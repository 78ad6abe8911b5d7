package locking

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/table"
)

// maxLockspaces bounds the table that CREATE_LOCKSPACE fills. libvirt makes one
// lockspace for each directory in its configuration and one for each <lease>
// lockspace.
const maxLockspaces = 65536

// Options are the parts a Manager works with.
type Options struct {
	Backend   Backend
	Processes Processes
	// Observe is told of everything that happens, in the goroutine in which it
	// happens, so it must be quick. It may be nil.
	Observe func(Event)
	// RequestTimeout bounds each Acquire, Release, CreateLockspace,
	// CreateResource and DeleteResource. 0 means no bound but the caller's context.
	RequestTimeout time.Duration
	// AnyLockspace makes every lockspace exist without being created, for
	// backends in which it is only a part of names: libvirt's plug-in creates none
	// for a <lease>.
	AnyLockspace bool
	// Journal may be nil, for locks that end with the Manager.
	Journal Journal
	// Witness may be nil: then nothing that owners give back is remembered.
	Witness Witness
	// Gifts may be nil: then that is remembered until the Manager ends.
	Gifts GiftJournal
	// Later is told when locks of an earlier process cannot be taken back yet: of how
	// many entries that is so, and why. It is told again, with no reason and how long
	// it took, when they have been settled; each lock was then told to Observe. It must
	// be quick, and may be nil.
	Later func(entries int, why error, took time.Duration)
}

// Manager knows all lockspaces, resources and owners of this host.
type Manager struct {
	backend   Backend
	procs     Processes
	observe   func(Event)
	tellLater func(int, error, time.Duration)
	deadlines deadlines
	// onlyHere is HostOnly.OnlyHere of the backend, or always false.
	onlyHere func(id string) bool
	// anyLockspace is Options.AnyLockspace.
	anyLockspace bool
	journal      Journal
	witness      Witness // nil if there is none
	giftJournal  GiftJournal

	ctx      context.Context // ends when Close begins; for watching owners
	cancel   context.CancelFunc
	endings  context.Context // ends when Close waits no longer for owners that are being ended
	giveUp   context.CancelFunc
	releases context.Context // ends when Close has no more time; for releases that no request waits for
	abandon  context.CancelFunc
	work     sync.WaitGroup // all of that

	mu         sync.Mutex // guards all below, and every field of resource, hold and owner that says so
	closed     bool
	lockspaces map[string]struct{}
	resources  table.Table[string, resource] // by Handle.ID, for as long as it is held or worked on
	names      table.Table[Ref, hold]        // the names under which resources are held, with one hold of each
	owners     map[int32]*owner
	ending     map[*ending]struct{}
	underway   map[*Waiter]struct{} // requests for locks
	draining   bool
	holding    holding             // for HoldingProcesses
	returners  map[*owner]struct{} // who has something in returning
	givers     map[*owner]struct{} // who has something in gave
	gifts      int                 // all of that
	giftSeq    uint64              // of the last
	unkept     []uint64            // what giftJournal is to forget
	unseen     []*owner            // who could not be looked at after a restart, and may be alive or gone
	departed   tombstones
	uncertain  []uint64      // journal entries of requests that were given up
	unsettled  func() int    // Restorer.Unsettled; nil until Restore
	later      *laterRestore // nil unless something is to be taken back yet
	restored   bool          // Restore is over, and all that it left for later

	counts    counts      // written with mu held, read without
	anyUnkept atomic.Bool // there is something in unkept; the same
}

// timed gives what f is told a time. f may be nil.
func timed(f func(Event)) func(Event) {
	if f == nil {
		return func(Event) {}
	}
	return func(e Event) {
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		f(e)
	}
}

// New makes a Manager that holds nothing and knows only the default lockspace.
func New(o Options) *Manager {
	m := &Manager{
		backend:      o.Backend,
		procs:        o.Processes,
		observe:      timed(o.Observe),
		deadlines:    deadlines{timeout: o.RequestTimeout},
		anyLockspace: o.AnyLockspace,
		witness:      o.Witness,
		lockspaces:   map[string]struct{}{"": {}},
		resources:    table.New(func(r *resource) string { return r.id }),
		names:        table.New(func(h *hold) Ref { return h.ref }),
		owners:       map[int32]*owner{},
		ending:       map[*ending]struct{}{},
		underway:     map[*Waiter]struct{}{},
		returners:    map[*owner]struct{}{},
		givers:       map[*owner]struct{}{},
	}
	m.onlyHere = func(string) bool { return false }
	if b, ok := o.Backend.(HostOnly); ok {
		m.onlyHere = b.OnlyHere
	}
	if m.journal = o.Journal; m.journal == nil {
		m.journal = noJournal{}
	}
	if m.giftJournal = o.Gifts; m.giftJournal == nil {
		m.giftJournal = noGifts{}
	}
	if m.tellLater = o.Later; m.tellLater == nil {
		m.tellLater = func(int, error, time.Duration) {}
	}
	m.counts.lockspaces.Store(int64(len(m.lockspaces)))
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.endings, m.giveUp = context.WithCancel(context.Background())
	m.releases, m.abandon = context.WithCancel(context.Background())
	return m
}

// Close ends the Manager's own work: it stops watching owners, and waits for
// releases under way until ctx ends; what they have asked of the backend by then
// is the backend's to finish. An owner that is being ended gets its SIGKILL as
// AwaitEndings says, as no later process would send it. Close releases nothing.
// Requests that come later are refused with KindUnavailable.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.AwaitEndings(ctx) // no new ones begin
	m.giveUp()
	done := make(chan struct{})
	go func() {
		m.work.Wait()
		close(done)
	}()
	defer m.abandon()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("locking: releases are still under way: %w", ctx.Err())
	}
}

// Holders lists what owners on this host hold, oldest first.
func (m *Manager) Holders() []Holder {
	m.mu.Lock()
	list := []Holder{}
	for r := range m.resources.All() {
		list = append(list, r.lockedHolders()...)
	}
	m.mu.Unlock() // requests for locks do not wait for the order
	slices.SortFunc(list, func(a, b Holder) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.Ref.Lockspace+"\x00"+a.Ref.Name, b.Ref.Lockspace+"\x00"+b.Ref.Name)
	})
	return list
}

// HoldersOf lists what owners on this host hold of one resource, by Handle.ID,
// oldest first. It costs the same however many others there are.
func (m *Manager) HoldersOf(id string) []Holder {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resources.Get(id)
	if r == nil {
		return []Holder{}
	}
	return r.lockedHolders()
}

// NewLockspace makes a lockspace that must not exist yet.
func (m *Manager) NewLockspace(ctx context.Context, path string) error {
	if path == "" {
		return &Error{Kind: KindDefaultLockspace}
	}
	return m.addLockspace(ctx, path, true)
}

// CreateLockspace makes a lockspace if it does not exist yet.
func (m *Manager) CreateLockspace(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	return m.addLockspace(ctx, path, false)
}

func (m *Manager) addLockspace(ctx context.Context, path string, mustBeNew bool) error {
	ctx, cancel := m.deadlines.of(ctx)
	defer cancel()
	ref := Ref{Lockspace: path}
	exists, err := m.lockspaceState(path)
	if err == nil && !exists {
		err = m.failed("create lockspace", ref, m.backend.CreateLockspace(ctx, path))
	}
	if err == nil && !exists {
		if err := m.journal.AddLockspace(path); err != nil {
			return &Error{Kind: KindUnavailable, Op: "create lockspace", Ref: ref, Err: err}
		}
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Asked again: two clients may have come at once, and one of them is first.
	if _, ok := m.lockspaces[path]; ok {
		if mustBeNew {
			return &Error{Kind: KindLockspaceExists, Ref: ref}
		}
		return nil
	}
	m.lockspaces[path] = struct{}{}
	m.counts.lockspaces.Store(int64(len(m.lockspaces)))
	return nil
}

func (m *Manager) lockspaceState(path string) (exists bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, m.closedError("create lockspace", Ref{Lockspace: path})
	}
	if _, ok := m.lockspaces[path]; ok {
		return true, nil
	}
	if len(m.lockspaces) >= maxLockspaces {
		return false, &Error{Kind: KindInvalid, Op: "create lockspace", Ref: Ref{Lockspace: path},
			Err: fmt.Errorf("there are %d lockspaces already, and no more are kept", maxLockspaces)}
	}
	return false, nil
}

// CreateResource makes what an Acquire without autocreate needs to find.
func (m *Manager) CreateResource(ctx context.Context, ref Ref) error {
	const op = "create resource"
	ctx, cancel := m.deadlines.of(ctx)
	defer cancel()
	if err := m.checkNotHeld(op, ref, nil); err != nil {
		return err
	}
	return m.failed(op, ref, m.backend.CreateResource(ctx, ref))
}

// DeleteResource removes it again. A resource that somebody holds, on this host under
// whatever name, or on another, is not removed: its lock would keep nobody out any more.
func (m *Manager) DeleteResource(ctx context.Context, ref Ref) error {
	const op = "delete resource"
	ctx, cancel := m.deadlines.of(ctx)
	defer cancel()
	if err := m.checkNotHeld(op, ref, nil); err != nil {
		return err
	}
	h, err := m.backend.Open(ctx, ref, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return m.failed(op, ref, err)
	}
	defer h.Close()
	m.mu.Lock()
	r := m.lockedUse(h.ID())
	m.mu.Unlock()
	defer m.leave(r)
	if err := r.enter(ctx); err != nil {
		return &Error{Kind: KindUnavailable, Op: op, Ref: ref,
			Err: fmt.Errorf("another operation on it has not ended: %w", err)}
	}
	defer r.exit()
	if err := m.checkNotHeld(op, ref, r); err != nil {
		return err
	}
	return m.failed(op, ref, m.backend.DeleteResource(ctx, ref))
}

// checkNotHeld is the check of requests that make no sense on what is held under
// this name, or as r, which may be nil.
func (m *Manager) checkNotHeld(op string, ref Ref, r *resource) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.lockedCheck(op, ref); err != nil {
		return err
	}
	if named := m.lockedNamed(ref); named != nil {
		r = named
	}
	if r != nil && len(r.holds) > 0 {
		return &Error{Kind: KindBusy, Ref: ref, Holders: r.lockedHolders()}
	}
	return nil
}

// lockedCheck is what every request on a resource has to pass first.
func (m *Manager) lockedCheck(op string, ref Ref) error {
	if m.closed {
		return m.closedError(op, ref)
	}
	if _, ok := m.lockspaces[ref.Lockspace]; !ok && !m.anyLockspace {
		return &Error{Kind: KindNoLockspace, Ref: ref}
	}
	return nil
}

func (m *Manager) closedError(op string, ref Ref) error {
	return &Error{Kind: KindUnavailable, Op: op, Ref: ref, Err: errStopping}
}

// failed makes an *Error of what a Backend returned.
func (m *Manager) failed(op string, ref Ref, err error) error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, ErrBusy):
		return &Error{Kind: KindBusy, Op: op, Ref: ref, Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: KindUnavailable, Op: op, Ref: ref, Err: fmt.Errorf("no answer in time: %w", err)}
	case errors.Is(err, context.Canceled):
		return &Error{Kind: KindUnavailable, Op: op, Ref: ref, Err: err}
	default:
		return &Error{Kind: KindSystem, Op: op, Ref: ref, Err: err}
	}
}
