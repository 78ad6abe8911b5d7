package cluster

import (
	"context"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// lookUpTimeout bounds how long a refusal takes longer for being told who holds
	// the resource.
	lookUpTimeout = 300 * time.Millisecond
	// lookUps bounds how many value blocks are read at a time: requests for locks
	// are not to wait behind what only explains refusals.
	lookUps = 8
)

// Peers are the lock daemons of the other hosts.
type Peers interface {
	// Holders asks them, and not this host's, who holds a DLM resource, by the name that ResourceName
	// makes, and returns what came when all have answered or ctx has ended. Node has
	// to be set in each holder. answered are the nodes that answered, those that
	// hold nothing too.
	Holders(ctx context.Context, resource string) (holders []locking.RemoteHolder, answered []uint32)
}

// elsewhere is a refusal by the DLM. On this host the rules of package locking
// refuse, so whoever has the lock is on another one.
type elsewhere struct {
	b    *Backend
	name string
	mode locking.Mode // that was asked for
	// shared: the resource is shared here, so nobody has it alone, and what such a
	// holder once published is of no interest.
	shared bool
}

func (*elsewhere) Error() string        { return "held on another host of the cluster" }
func (*elsewhere) Is(target error) bool { return target == locking.ErrBusy }

// FindHolders asks the other hosts, and reads what the holder has published, at
// the same time. What a host says of itself counts for more than what it has
// published.
func (e *elsewhere) FindHolders(ctx context.Context) []locking.RemoteHolder {
	b := e.b
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	var list []locking.RemoteHolder
	switch {
	case e.shared && b.peers == nil:
		return nil
	case e.shared:
		said, _ := b.peers.Holders(ctx, e.name)
		list = combine(e.mode, nil, said, nil)
	case b.peers == nil:
		list = combine(e.mode, b.published(ctx, e.name), nil, nil)
	default:
		hint := make(chan *locking.RemoteHolder, 1)
		if !b.work.start(func() { hint <- b.published(ctx, e.name) }) {
			return nil
		}
		said, answered := b.peers.Holders(ctx, e.name)
		list = combine(e.mode, <-hint, said, answered) // the read ends with ctx too
	}
	for i := range list {
		if b.nodeName != nil && list[i].Host == "" && list[i].Node != 0 {
			list[i].Host = b.nodeName(list[i].Node)
		}
	}
	return list
}

// Sharers finds who else shares a lock that is shared here.
func (h *handle) Sharers() locking.HolderFinder {
	return &elsewhere{b: h.b, name: h.name, mode: locking.Exclusive, shared: true}
}

// combine is what is known of the holders of a resource that was refused in a
// mode: hint is what one has published, list is what the nodes that answered say
// of themselves.
func combine(mode locking.Mode, hint *locking.RemoteHolder, list []locking.RemoteHolder, answered []uint32) []locking.RemoteHolder {
	list = slices.DeleteFunc(slices.Clone(list), func(h locking.RemoteHolder) bool {
		return mode == locking.Shared && h.Mode == locking.Shared // not in the way
	})
	// An exclusive holder is alone: if anybody else has the resource, or its own node
	// does not know of it any more, it is gone.
	if hint != nil && len(list) == 0 && !slices.Contains(answered, hint.Node) {
		list = append(list, *hint)
	}
	slices.SortStableFunc(list, func(x, y locking.RemoteHolder) int { return x.Since.Compare(y.Since) })
	return list
}

// published is what the holder of a resource has published of itself, or nil if
// that is nothing, or not certain, or cannot be read before ctx ends.
func (b *Backend) published(ctx context.Context, name string) *locking.RemoteHolder {
	select {
	case b.lookUps <- struct{}{}:
		defer func() { <-b.lookUps }()
	case <-ctx.Done():
		return nil
	}
	r := b.watch.begin(ctx, true)
	defer r.end()
	space, _ := b.lockspace()
	if space == nil {
		return nil
	}
	if running, _ := b.watch.runs(); !running {
		return nil // to ask now would keep a thread in the kernel
	}
	// A NL lock conflicts with nothing, so it disturbs nobody.
	beforeRead.Pass()
	l, err := space.Lock(r.ctx, name, dlm.NL, dlm.LockOptions{LVB: true})
	afterRead.Pass()
	if err != nil {
		return nil
	}
	lvb, valid := l.LVB()
	// The answer does not wait for the end of it.
	b.work.start(func() {
		beforeReadEnd.Pass()
		_ = l.Unlock(b.ctx)
		afterReadEnd.Pass()
	})
	if !valid {
		return nil
	}
	rec, err := decodeRecord(lvb)
	if err != nil {
		return nil
	}
	h := rec.holder()
	return &h
}
