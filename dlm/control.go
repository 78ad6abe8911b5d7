package dlm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// Create makes this node a member of the lockspace called name (1 to MaxLockspaceName bytes, no slash, nothing
// unprintable), if it is not one yet, and opens it. It needs CAP_SYS_ADMIN. Entering may take seconds: dlm_controld
// agrees on it with the other members.
//
// When ctx ends first, the entering goes on, because the kernel cannot take it back, and this node may become a member
// later all the same; another Create then finds it so. A second Create during a first one for the same lockspace waits
// for that one instead of asking the kernel again.
func Create(ctx context.Context, k Kernel, name string, opts Options) (*Lockspace, error) {
	const op = "create"
	if err := checkLockspace(name); err != nil {
		return nil, fault(op, name, "", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fault(op, name, "", err)
	}
	if _, err := entries.do(ctx, entry{k, name}, func() (int, error) {
		// Exclusively, because the kernel counts how often a lockspace is created and wants it removed as often.
		n, err := control(k, abi.EncodeLspace(abi.CmdCreateLockspace, abi.LspaceNewExcl, 0, name))
		if errors.Is(err, syscall.EEXIST) {
			err = nil
		}
		return n, err
	}); err != nil {
		if errors.Is(err, syscall.ENOTCONN) { // what is missing then is the node's address, which the daemon would have set
			err = fmt.Errorf("%w (%w)", ErrNoDaemon, err)
		}
		return nil, fault(op, name, "", oneOf(err, ErrNoDaemon, ErrPrivilege))
	}
	return open(ctx, k, name, opts, op)
}

// Open opens a lockspace of which this node is a member already. The error is ErrNoLockspace if it is not.
func Open(ctx context.Context, k Kernel, name string, opts Options) (*Lockspace, error) {
	const op = "open"
	if err := checkLockspace(name); err != nil {
		return nil, fault(op, name, "", err)
	}
	return open(ctx, k, name, opts, op)
}

func open(ctx context.Context, k Kernel, name string, opts Options, op string) (*Lockspace, error) {
	dev, err := detached(ctx, func() (Device, error) {
		minor, err := k.Minor(name)
		if err != nil {
			return nil, err
		}
		return k.Lockspace(name, minor)
	}, func(d Device) { d.Close() })
	if err != nil {
		return nil, fault(op, name, "", oneOf(err, ErrNoLockspace, ErrPrivilege))
	}
	return start(k, name, dev, opts), nil
}

// removeRetry is how long Remove waits before it asks again.
const removeRetry = 20 * time.Millisecond

// Remove makes this node leave the lockspace. Nobody may have its device open: the kernel waits until nobody has.
//
// Without force it is refused, with ErrLockspaceUse, while this node knows of any lock in it: of its own orphans, and
// also of locks of other nodes on resources this node happens to keep the books of. The latter is why a node that has
// nothing locked may need force, and then nothing of anyone is lost: the books go to another member. But with force this
// node's own orphans end without a word, so first make sure there are none (Purge).
//
// Releases that were just made are still on their way between the nodes for a moment, so Remove asks a few times, for
// half a second, before it reports ErrLockspaceUse.
//
// Within 2 s after another node has joined or left, and while the lockspace recovers from that, Remove waits first, for 3 s
// at most: the kernel (Linux 6.1) does not leave for three minutes if another node still asks it how far it is
// (dlm_midcomms_shutdown waits for an answer that midcomms_node_reset has thrown away).
//
// When ctx ends first, the leaving goes on.
func Remove(ctx context.Context, k Kernel, name string, force bool) error {
	const op = "remove"
	if err := checkLockspace(name); err != nil {
		return fault(op, name, "", err)
	}
	var flags uint32
	if force {
		flags = abi.LspaceForceFree
	}
	calm(ctx, k, name)
	for tries := 0; ; tries++ {
		_, err := detached(ctx, func() (int, error) {
			minor, err := k.Minor(name)
			if err != nil {
				return 0, err
			}
			return control(k, abi.EncodeLspace(abi.CmdRemoveLockspace, flags, minor, name))
		}, nil)
		if !errors.Is(err, syscall.EBUSY) || tries == int(500*time.Millisecond/removeRetry) {
			return fault(op, name, "", oneOf(err, ErrLockspaceUse, ErrNoLockspace, ErrPrivilege))
		}
		select {
		case <-time.After(removeRetry):
		case <-ctx.Done():
			return fault(op, name, "", fmt.Errorf("%w (%w)", ctx.Err(), ErrLockspaceUse))
		}
	}
}

func checkLockspace(name string) error {
	bad := func(r rune) bool { return r == '/' || r <= ' ' || r >= 0x7f }
	if name == "" || len(name) > MaxLockspaceName || strings.ContainsFunc(name, bad) || name == "." || name == ".." {
		return fmt.Errorf("%w: a lockspace's name has 1 to %d printable ASCII bytes without space and slash", ErrInvalid, MaxLockspaceName)
	}
	return nil
}

// control does one write to the control device.
func control(k Kernel, request []byte) (int, error) {
	dev, err := k.Control()
	if err != nil {
		return 0, err
	}
	defer dev.Close()
	for {
		n, err := dev.Write(request)
		if err != syscall.EINTR { // the kernel waits interruptibly here, and the runtime sends signals
			return n, err
		}
	}
}

// detached runs f on a goroutine of its own and returns what it returns, or the error of ctx when that ends first. What
// f makes after that goes to undo, which may be nil.
func detached[T any](ctx context.Context, f func() (T, error), undo func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result)
	go func() {
		v, err := f()
		select {
		case c <- result{v, err}:
		case <-ctx.Done():
			if err == nil && undo != nil {
				undo(v)
			}
		}
	}()
	select {
	case r := <-c:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// entry is the entering of a lockspace.
type entry struct {
	k    Kernel
	name string
}

// entries are those under way in this process. Each is a thread in the kernel, perhaps for a long time, so there must be
// no second one for the same lockspace however often Create is tried.
var entries = flights{m: map[entry]*flight{}}

type flights struct {
	mu sync.Mutex // guards m
	m  map[entry]*flight
}

type flight struct {
	done chan struct{}
	n    int
	err  error
}

// do runs f unless a run for the same entry is under way, and waits for the end of the run or of ctx.
func (fs *flights) do(ctx context.Context, e entry, f func() (int, error)) (int, error) {
	fs.mu.Lock()
	fl := fs.m[e]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		fs.m[e] = fl
		go func() {
			fl.n, fl.err = f()
			fs.mu.Lock()
			delete(fs.m, e)
			fs.mu.Unlock()
			close(fl.done)
		}()
	}
	fs.mu.Unlock()
	select {
	case <-fl.done:
		return fl.n, fl.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
