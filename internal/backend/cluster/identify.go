package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// In the default lockspace a name is a path, and what is locked is the disk that it
// leads to when the lock is asked for. The handle's ID, which is the name of the
// DLM's resource, is made of what that disk is. It is in the journal, and with it
// the lock is taken back and released, wherever the path leads by then.
//
// What no other host can use has this node's number in its name. So it is held
// where all locks are held, outlives the daemon as they do, and conflicts with
// nobody elsewhere. The name also begins with hereMark, so that it is known of every
// lock, also of one that cannot be taken back yet, whether it concerns other hosts:
// nobody has to wait, or be stopped, for one that does not when the cluster is lost.

// Disk is what Options.Identify finds behind a path.
type Disk struct {
	// Name is equal for two paths to one disk, on all hosts or, with Here, on this one.
	// One that is a path stands for the same resource as with daemons that know nothing
	// but paths.
	Name string
	Here bool // no other host can use it
	// Local is equal for two paths if they lead to one file or device of this host now;
	// "" if that is not known.
	Local string
	// ByPath says that Name is made of the path, so that it can be another one for
	// another path to the same thing.
	ByPath bool
}

// ResourceName is the name of the DLM resource for a lockspace and a name:
// SHA-256 of lockspace, a NUL byte, and name, as 64 hexadecimal digits, which
// is just what fits (DLM_RESNAME_MAXLEN) and what dlm_tool shows as text.
// libvirt's names contain no NUL.
func ResourceName(ref locking.Ref) string {
	sum := sha256.Sum256([]byte(ref.Lockspace + "\x00" + ref.Name))
	return hex.EncodeToString(sum[:])
}

// hereMark begins the names of resources that only this host can use. All other names
// begin with a hexadecimal digit.
const hereMark = "only-here-"

func hereName(node uint32, disk string) string {
	name := ResourceName(locking.Ref{Name: fmt.Sprintf("only node %d: %s", node, disk)})
	return hereMark + name[:len(name)-len(hereMark)] // 216 bits of the hash
}

// OnlyHere implements locking.HostOnly.
func (b *Backend) OnlyHere(id string) bool { return strings.HasPrefix(id, hereMark) }

// A thing is a file or device of this host that handles stand for: Backend.known has one
// of them, and that one the others. While there are any, all paths to it have one name,
// also if that is made of only one of them (byPath). There is one for each lock that is
// held, nearly, so it has no memory of its own.

// Open finds out which disk a path leads to, which asks no other host and waits for
// no device, but maybe for a file system. Resources need not be created, so autocreate
// changes nothing.
func (b *Backend) Open(ctx context.Context, ref locking.Ref, _ bool) (locking.Handle, error) {
	h := &handle{b: b, ref: ref, name: ResourceName(ref)}
	if b.identify == nil || ref.Lockspace != "" {
		return h, nil
	}
	// A cluster file system stops with the lockspace. So does a look at a file on it, and that is the reason then.
	r := b.watch.begin(ctx, true)
	defer r.end()
	refused := func(err error) error {
		if r.ctx.Err() != nil && errors.As(r.why(), new(*stopped)) {
			err = r.why()
		}
		return &notAsked{h.unavailable(err)}
	}
	d, err := b.identify(r.ctx, ref.Name)
	if err != nil {
		return nil, refused(fmt.Errorf("which disk it is cannot be found out: %w", err))
	}
	id, err := b.idOf(r.ctx, d)
	if err != nil {
		return nil, refused(err)
	}
	h.aliased = id != h.name && !d.Here
	h.name = id
	if d.Local != "" {
		// Until it is known what the locks from before a restart stand for, this may be one
		// of their disks under another path.
		if err := b.awaitRecall(r.ctx); err != nil {
			return nil, refused(err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lockedKnow(h, d.Local, d.ByPath)
	return h, nil
}

// DiskResource is the name of the DLM's resource for a disk, the one that a lock on it
// would get now: also while it is held under another path. For one that only this host
// can use it is an error while this host's number is not known.
func (b *Backend) DiskResource(ctx context.Context, d Disk) (string, error) {
	id, err := b.idOf(ctx, d)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	name, _ := b.lockedKnown(id, d.Local, d.ByPath)
	return name, nil
}

// errNoNode is why nothing can be locked for this host alone.
var errNoNode = errors.New("no other host can use this disk, and the kernel does not tell this host's number in the cluster, by which its lock would be told from theirs (is dlm_controld running?)")

// idOf is the name of the DLM's resource for a disk.
func (b *Backend) idOf(ctx context.Context, d Disk) (string, error) {
	if !d.Here {
		return ResourceName(locking.Ref{Name: d.Name}), nil
	}
	b.mu.Lock()
	space, why, node := b.space, b.why, b.node
	b.mu.Unlock()
	switch {
	case space == nil:
		return "", b.notJoined(ctx, why)
	case node == 0:
		return "", errNoNode
	}
	return hereName(node, d.Name), nil
}

// lockedKnown is the name of a thing, and whose list it belongs to, if any: if others
// have it already it is the name that they gave it, if one of the two is made of a
// path. Two names that are not are of two disks: a device's number, say, is another's
// by now.
func (b *Backend) lockedKnown(name, local string, byPath bool) (string, *handle) {
	if local == "" {
		return name, nil
	}
	k := b.known.Get(local)
	if k == nil || k.name != name && !k.byPath && !byPath {
		return name, nil
	}
	return k.name, k
}

// lockedKnow notes which thing h stands for, and gives h its name.
func (b *Backend) lockedKnow(h *handle, local string, byPath bool) {
	if local == "" || h.ended {
		return
	}
	name, k := b.lockedKnown(h.name, local, byPath)
	if k != nil {
		h.name = name
		h.local, h.byPath = k.local, k.byPath
		h.next, k.next = k.next, h
		return
	}
	if b.known.Get(local) == nil {
		h.local, h.byPath = local, byPath
		b.known.Put(h)
	}
}

// end forgets what h stood for.
func (b *Backend) end(h *handle) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lockedEnd(h)
}

func (b *Backend) lockedEnd(h *handle) {
	h.ended = true
	if h.local == "" {
		return
	}
	switch first := b.known.Get(h.local); {
	case first != h:
		for first.next != h {
			first = first.next
		}
		first.next = h.next
	case h.next == nil:
		b.known.Remove(h.local)
	default:
		b.known.Put(h.next) // in the place of h
	}
	h.local, h.next = "", nil
}

// byPathMark begins the note of what has its name from a path.
const byPathMark = "by path: "

// Note implements locking.Noter: it is what the handle stands for, so that nobody has to
// look after a restart, when the path may lead elsewhere.
func (h *handle) Note() string {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	if h.byPath && h.local != "" {
		return byPathMark + h.local
	}
	return h.local
}

// lockedRemember is the opposite of Note, and reports false if there was none.
func (b *Backend) lockedRemember(h *handle, note string) bool {
	local, byPath := strings.CutPrefix(note, byPathMark)
	if local == "" {
		return false
	}
	if k := b.known.Get(local); k == nil || k.name == h.name {
		b.lockedKnow(h, local, byPath)
	}
	return true // or the earlier daemon took it for another one
}

// recallTimeout bounds how long one path is looked at after a restart.
const recallTimeout = 2 * time.Second

// awaitRecall waits until it is known which things all locks from before a restart
// stand for, which is at once unless an earlier version has taken some of them. Until
// this host is in the lockspace it waits for nothing: the error is why it is not.
func (b *Backend) awaitRecall(ctx context.Context) error {
	for {
		b.mu.Lock()
		recalled, space, why := b.recalled, b.space, b.why
		b.mu.Unlock()
		switch {
		case recalled == nil:
			return nil
		case space == nil:
			return b.notJoined(ctx, why)
		}
		select {
		case <-recalled:
		case <-ctx.Done():
			return fmt.Errorf("it is not known yet which disks the locks from before vmlockd's restart are for: %w", ctx.Err())
		}
	}
}

// beginRecall has awaitRecall wait for one endRecall more. One that is due since a
// Restore to which ErrNotYet was the answer counts once.
func (b *Backend) beginRecall() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.recallDue {
		return
	}
	if b.recalls++; b.recalls == 1 {
		b.recalled = make(chan struct{})
	}
	b.recallDue = true
}

func (b *Backend) endRecall() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.recalls--; b.recalls == 0 {
		close(b.recalled)
		b.recalled = nil
	}
}

// recall finds out in the background which things the locks stand for that were
// taken back, after beginRecall, and of which an earlier version has noted nothing. It
// changes none of them. A path that leads elsewhere by now tells nothing. One that hangs
// costs recallTimeout, and of one mount only the first few do, so this ends within a
// minute or so.
func (b *Backend) recall(handles []*handle) {
	b.mu.Lock()
	b.recallDue = false
	b.mu.Unlock()
	if b.identify == nil || len(handles) == 0 || !b.work.start(func() {
		defer b.endRecall()
		for _, h := range handles {
			if b.ctx.Err() != nil {
				return
			}
			b.recallOne(h)
		}
	}) {
		b.endRecall()
	}
}

func (b *Backend) recallOne(h *handle) {
	ctx, cancel := context.WithTimeout(b.ctx, recallTimeout)
	defer cancel()
	d, err := b.identify(ctx, h.ref.Name)
	if err != nil {
		return
	}
	id, err := b.idOf(ctx, d)
	if err != nil {
		return
	}
	// A daemon that knew paths only has taken it under this name, and whoever comes
	// with another path must find it.
	asPath := h.name == ResourceName(h.ref)
	if id != h.name && !asPath {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := b.known.Get(d.Local); k != nil && k.name != h.name {
		return // two that the earlier daemon took for two
	}
	b.lockedKnow(h, d.Local, d.ByPath || asPath)
}

// askEarlier asks whether a daemon that knew paths only has locked the disk, on any
// host: before an upgrade, from which its virtual machines have gone on. The mode
// conflicts with what such a lock may be in, and with nobody who asks the same.
func (h *handle) askEarlier(ctx context.Context, space *dlm.Lockspace, mode locking.Mode) error {
	if !h.aliased {
		return nil
	}
	name := ResourceName(h.ref)
	ask := dlm.CW // not together with EX and PR
	if mode == locking.Shared {
		ask = dlm.CR // not together with EX
	}
	beforeAsk.Pass()
	l, err := space.Lock(ctx, name, ask, dlm.LockOptions{NoQueue: true})
	afterAsk.Pass()
	if errors.Is(err, dlm.ErrBusy) {
		return &elsewhere{b: h.b, name: name, mode: mode}
	}
	if err != nil {
		return err
	}
	beforeAskEnd.Pass()
	defer afterAskEnd.Pass()
	return l.Unlock(ctx)
}
