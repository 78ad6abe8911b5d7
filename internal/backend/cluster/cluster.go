// Package cluster holds locks in the kernel's distributed lock manager, where
// they count on all hosts of the cluster. An exclusive lock is a DLM lock in mode
// EX, a shared one in mode PR; it says nothing about what is locked, so it is as
// good for a file as for a block device or for a <lease> that exists nowhere
// else. Lockspaces of libvirt are part of the resource's name and need no
// directory; all hosts use one lockspace of the DLM.
//
// The holder of an exclusive lock publishes its node, the owner's uuid and pid and
// the time of the grant in the lock's value block, and a refusal on another host
// says what it finds there. That is for people; no decision depends on it, and
// nobody waits for it but who was refused, for 300 ms at most.
//
// A Backend joins that lockspace in the background and keeps trying: until it
// has joined, and whenever it cannot be sure, it refuses. It may be used from
// many goroutines.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/table"
)

// Options say where locks are held. Lockspace must be set.
type Options struct {
	Lockspace string     // the DLM lockspace, the same on all hosts
	Kernel    dlm.Kernel // nil means this host's
	// Controld asks dlm_controld; nil means this host's, unless Kernel is set: a
	// simulated kernel has no dlm_controld.
	Controld *controld.Client
	Log      *slog.Logger
	// Earlier is what the Handover of an earlier Backend in this process has returned;
	// nil if there was none. New takes it over.
	Earlier *dlm.Handover
	// LastClose may be nil, as with a simulated kernel.
	LastClose LastClose
	// Holders lists what is held on this host, to be named when only a reboot
	// helps; nil means that nobody knows. It is called with nothing locked here.
	Holders func() []locking.Holder
	// Peers are asked who holds what was refused; nil means that there is nobody to
	// ask, and refusals say what the holder has published.
	Peers Peers
	// Admit says whether a lock that the DLM has granted may be told to who asked; if
	// not it is given back, and the error is why. It is asked before the DLM is asked as
	// well, and not at all for what only this host can use. It may be nil.
	Admit func(ctx context.Context) error
	// NodeName is the name of a host by its number in the cluster, "" if it is not
	// known; it returns at once. It may be nil.
	NodeName func(node uint32) string
	// Privileged reports whether this process has CAP_SYS_ADMIN; nil asks the kernel.
	Privileged func() bool
	// Identify finds out which disk a path is, for names in the default lockspace. It
	// returns soon after ctx ends. nil: every name stands for itself.
	Identify func(ctx context.Context, path string) (Disk, error)
}

// Backend holds locks in one DLM lockspace.
type Backend struct {
	kernel   dlm.Kernel
	controld *controld.Client // nil with a simulated kernel
	name     string
	log      *slog.Logger

	ctx    context.Context    // ends when Close begins
	cancel context.CancelFunc // ends join, and all work
	joined chan struct{}      // closed when join has ended
	work   group
	last   LastClose // may be nil
	// keepFailed is what the log was told last of last.Keep; for keepNow only.
	keepFailed string
	asker      *asker
	watch      *watch
	fencing    fencing

	publisher *publisher
	peers     Peers // may be nil
	nodeName  func(uint32) string
	admit     func(context.Context) error
	lookUps   chan struct{} // has a token for each look-up under way
	identify  func(context.Context, string) (Disk, error)

	privileged func() bool

	mu        sync.Mutex // guards what follows
	space     *dlm.Lockspace
	closing   *dlm.Lockspace           // was space, and closeSpace has been called
	state     *dlm.State               // nil also if the kernel cannot tell
	why       error                    // why space is nil
	releasing map[string]chan struct{} // by resource: releases that go on by themselves; closed when one ends
	// handed are locks that were handed over and Restore has not taken, by resource;
	// handedMore are further ones, of which there are hardly ever any.
	handed     map[string]*dlm.Lock
	handedMore []*dlm.Lock
	// known has one handle of each thing that handles stand for, by Disk.Local.
	known table.Table[string, handle]
	// lost are in the place of handles that could not be taken back, by name.
	lost map[string]*handle
	// recalls counts what awaitRecall waits for, until recalled is closed; one of them is
	// due if locks from before a restart are not taken back.
	recalls   int
	recalled  chan struct{} // nil if nobody need wait
	recallDue bool
	node      uint32 // of this host; 0 until it is known
}

var errStopping = errors.New("the lock daemon is stopping")

var errJoining error = &stopped{reason{causeJoining, "this host is still joining the DLM lockspace; does the cluster have quorum? (corosync-quorumtool -s, dlm_tool status)"}}

// New joins the lockspace. It returns an error, and nothing goes on in the
// background, if this host lacks a part that nobody but its administrator can
// provide: the DLM module, a running dlm_controld, or the privilege.
func New(o Options) (*Backend, error) {
	b := &Backend{kernel: o.Kernel, name: o.Lockspace, log: o.Log, joined: make(chan struct{}), why: errJoining,
		releasing: map[string]chan struct{}{}, known: table.New(func(h *handle) string { return h.local }), lost: map[string]*handle{}, identify: o.Identify}
	b.controld, b.last = o.Controld, o.LastClose
	if b.kernel == nil {
		b.kernel = dlm.Host()
		if b.controld == nil {
			b.controld = controld.Host()
		}
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.ctx, b.cancel = ctx, cancel
	b.asker = &asker{client: b.controld, ctx: ctx, work: &b.work}
	b.watch = newWatch(b.name, b.look, b.whom, b.cutOff, b.asker, o.Holders, b.log)
	b.publisher = newPublisher(b)
	b.admit = o.Admit
	if b.admit == nil {
		b.admit = func(context.Context) error { return nil }
	}
	b.peers, b.nodeName, b.lookUps = o.Peers, o.NodeName, make(chan struct{}, lookUps)
	b.privileged = o.Privileged
	if b.privileged == nil {
		b.privileged = mayAdminister
	}
	if b.goOn(o.Earlier) {
		close(b.joined)
		return b, nil
	}
	if b.last != nil {
		b.last.Dismiss() // of what an earlier program of this process has not handed over
	}
	// Unbuffered: what is not received here, because New has returned, must not be
	// the last word of a daemon that serves.
	fatal, returned := make(chan error), make(chan struct{})
	defer close(returned)
	go func() {
		defer close(b.joined)
		b.join(ctx, fatal, returned)
	}()
	patience := time.NewTimer(joinPatience)
	defer patience.Stop()
	select {
	case err := <-fatal:
		cancel()
		return nil, err
	case <-b.joined:
	case <-patience.C:
		_, err := b.lockspace()
		b.log.Warn("waiting to join the DLM lockspace; locks are refused until then", "event", "lockspace-not-joined", "dlm", b.name, "cause", locking.Cause(err), "reason", err)
	}
	return b, nil
}

// enter begins to use the lockspace.
func (b *Backend) enter(space *dlm.Lockspace) {
	state, err := dlm.OpenState(b.kernel, b.name)
	if err != nil {
		b.log.Warn("the kernel does not say whether the DLM lockspace runs; when it does not, refusals take longer and name no reason", "dlm", b.name, "reason", err)
	}
	b.keepOpen(b.ctx, space)
	node, err := dlm.NodeID(b.kernel)
	if err != nil {
		b.log.Warn("refusals on other hosts will not say that the lock is held on this one", "dlm", b.name, "reason", err)
	}
	b.publisher.enter(node)
	b.asker.joined(b.name)
	b.mu.Lock()
	b.space, b.state, b.why, b.node = space, state, nil, node
	b.mu.Unlock()
	b.work.start(func() { b.watch.run(b.ctx) })
	b.work.start(func() { b.publisher.run(b.ctx) })
}

// look asks the kernel how far the recovery is, if there is one.
func (b *Backend) look() (dlm.RecoverStatus, error) {
	b.mu.Lock()
	state := b.state
	b.mu.Unlock()
	if state == nil {
		return dlm.RecoverDone, nil
	}
	return state.Status()
}

// whom asks the kernel for which node the recovery waits. It is 0 where that is not known.
func (b *Backend) whom() uint32 {
	id, err := dlm.RecoverNode(b.kernel, b.name)
	if err != nil {
		return 0
	}
	return id
}

// cutOff asks the guard, if there is one that cares, whether this host has lost the cluster.
func (b *Backend) cutOff() bool {
	ctx, cancel := context.WithCancel(b.ctx)
	cancel() // it is to wait for nothing
	return locking.Cause(b.admit(ctx)) == "guard_lost"
}

func (b *Backend) lockspace() (*dlm.Lockspace, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.space, b.why
}

// Close closes the lockspace. Locks stay held by this host. With leave, which
// says that this host holds none, it leaves the lockspace too, so that the
// cluster's software can be stopped.
//
// After an error the kernel may still be closing the lockspace; calling Close again,
// also after a Handover that returned nil, waits for it.
func (b *Backend) Close(ctx context.Context, leave bool) error {
	space, unfinished, err := b.retire(ctx)
	if space == nil {
		b.mu.Lock()
		closing := b.closing
		b.mu.Unlock()
		if err == nil && closing != nil {
			return closing.Close(ctx)
		}
		return err
	}
	if !leave || unfinished > 0 || space.Stats().Unsettled > 0 {
		return b.closeSpace(ctx, space)
	}
	if err := b.closeSpace(ctx, space); err != nil {
		return err
	}
	beforeLeave.Pass()
	defer afterLeave.Pass()
	err = dlm.Remove(ctx, b.kernel, b.name, false)
	if errors.Is(err, dlm.ErrLockspaceUse) {
		// This node keeps books about locks of others, which move there with force. Or
		// it has orphans of which no journal tells: the kernel does not say which, nor how
		// many.
		b.log.Warn("leaving the DLM lockspace by force, as the kernel says that it is in use: most often this host keeps the books of other hosts' locks, and they take those over. If the kernel of this host holds locks that the daemon knows nothing of, they end with that", "dlm", b.name)
		err = dlm.Remove(ctx, b.kernel, b.name, true)
	}
	return err
}

// closeSpace makes orphans of the locks. If requests have no answer the device
// stays open until they have: then it is closed after this process's end.
func (b *Backend) closeSpace(ctx context.Context, space *dlm.Lockspace) error {
	b.mu.Lock()
	b.closing = space
	b.mu.Unlock()
	beforeClose.Pass()
	defer afterClose.Pass()
	if err := space.Close(ctx); err != nil {
		return err
	}
	return b.letGo(ctx)
}

// retire ends everything but the lockspace itself, which is nil if there is none
// any more. unfinished is how many releases nobody has given to the kernel.
func (b *Backend) retire(ctx context.Context) (space *dlm.Lockspace, unfinished int, err error) {
	b.cancel()
	select {
	case <-b.joined:
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("the kernel has not answered the request to join the DLM lockspace: %w", ctx.Err())
	}
	unfinished = b.givingBack()
	b.work.close()
	b.mu.Lock()
	space, state := b.space, b.state
	b.space, b.state, b.why = nil, nil, errStopping
	b.mu.Unlock()
	if state != nil {
		_ = state.Close()
	}
	return space, unfinished, nil
}

// CreateLockspace has nothing to do: a lockspace is a part of names.
func (b *Backend) CreateLockspace(context.Context, string) error { return nil }

// CreateResource has nothing to do either: every name can be locked.
func (b *Backend) CreateResource(context.Context, locking.Ref) error { return nil }

// DeleteResource has nothing to delete.
func (b *Backend) DeleteResource(context.Context, locking.Ref) error { return nil }
