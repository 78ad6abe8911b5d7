package dlm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// condition is a sentinel that also answers to the kernel's error number for it, so that errors.Is(err, unix.EAGAIN)
// and errors.Is(err, ErrBusy) are both true.
type condition struct {
	text  string
	errno syscall.Errno
}

func (c *condition) Error() string { return c.text }

func (c *condition) Is(target error) bool {
	errno, ok := target.(syscall.Errno)
	return ok && c.errno != 0 && errno == c.errno
}

// Errors of finding and entering the DLM. Each text says what is missing and how to get it.
var (
	ErrNoModule     error = &condition{"the kernel has no DLM: load it with \"modprobe dlm\" (the module is in the distribution's full kernel package)", 0}
	ErrNoDevice     error = &condition{"the DLM's control device is missing: neither udev nor this process could make it", 0}
	ErrPrivilege    error = &condition{"not privileged for the DLM: its devices need root, its lockspaces CAP_SYS_ADMIN", syscall.EPERM}
	ErrNoDaemon     error = &condition{"dlm_controld is not running: start corosync and then dlm_controld (systemctl start corosync dlm)", syscall.EUNATCH}
	ErrNoLockspace  error = &condition{"no such lockspace on this node", syscall.ENOENT}
	ErrLockspaceUse error = &condition{"the lockspace still has locks", syscall.EBUSY}
)

// Errors of requests about a lock.
var (
	// ErrBusy: a NoQueue request met a conflicting lock. A new lock does not exist; a conversion left the lock as it was.
	ErrBusy error = &condition{"held in a conflicting mode", syscall.EAGAIN}
	// ErrDeadlock: two conversions wait for each other; this one was refused and left the lock as it was.
	ErrDeadlock error = &condition{"two conversions wait for each other", syscall.EDEADLK}
	// ErrCanceled: Cancel ended the conversion, which left the lock as it was.
	ErrCanceled error = &condition{"canceled", 0}
	// ErrUnlocked: the lock is released, or about to be.
	ErrUnlocked error = &condition{"the lock is released", 0}
	// ErrNoOrphan: this node has no orphan of that name.
	ErrNoOrphan error = &condition{"no such orphan", syscall.ENOENT}
	// ErrOtherMode: this node has an orphan of that name, but not in that mode. It may also be the rest of a request
	// that had not been granted when its process ended: such an orphan has no mode at all.
	ErrOtherMode error = &condition{"the orphan is in another mode", syscall.EAGAIN}
	// ErrNoResult: the kernel has taken a conversion of an adopted lock and has not said in time what became of it. The lock has
	// one of the two modes and can be released. It can be converted again when the result has come after all, which Lock.Mode
	// then follows, and which nobody is told; until then, and that may be for ever, Convert returns this.
	ErrNoResult error = &condition{"the kernel does not say what became of the conversion", 0}
	// ErrInvalid: the arguments make no request; nothing was asked of the kernel.
	ErrInvalid error = &condition{"invalid argument", syscall.EINVAL}
)

// Errors of a Lockspace.
var (
	// ErrClosed: Close has begun. What the call wanted did not happen or is undone.
	ErrClosed error = &condition{"the lockspace is closed", 0}
	// ErrBroken: the lockspace's device can no longer be read, so the outcome of requests cannot be known. Only Close is left.
	ErrBroken error = &condition{"the lockspace's device failed", 0}
	// ErrUnsettled: Close gave up waiting for requests whose outcome the kernel had not yet given. Those with Persistent
	// may live on as orphans.
	ErrUnsettled error = &condition{"requests without an outcome were left behind", 0}
)

// OpError is the one type of error this package returns. Err is a sentinel of this package, the error of the context
// that ended, or the kernel's syscall.Errno; errors.Is and errors.As see through it.
type OpError struct {
	Op        string // "create", "open", "remove", "lock", "convert", "cancel", "unlock", "adopt", "purge", "read", "close", "state", "hand over", "resume", "discard"
	Lockspace string
	Resource  string // empty where the operation has none; any bytes
	Err       error
}

// Error names the operation, what it was about, and why it failed.
func (e *OpError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "dlm: %s lockspace %s", e.Op, quoteName(e.Lockspace))
	if e.Resource != "" {
		fmt.Fprintf(&b, " resource %s", quoteName(e.Resource))
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }

// quoteName shows a name that may be any bytes: text quoted, a hash in hexadecimal.
func quoteName(s string) string {
	for _, r := range s {
		if r == '\ufffd' || !strconv.IsPrint(r) {
			return fmt.Sprintf("%x", s)
		}
	}
	return strconv.Quote(s)
}

// fault is err as an OpError, once.
func fault(op, lockspace, resource string, err error) error {
	if err == nil {
		return nil
	}
	if e := (*OpError)(nil); errors.As(err, &e) {
		return err
	}
	return &OpError{Op: op, Lockspace: lockspace, Resource: resource, Err: err}
}

// oneOf exchanges an error number for the sentinel it means in this place, and keeps any other error.
func oneOf(err error, sentinels ...error) error {
	errno, ok := err.(syscall.Errno)
	if !ok {
		return err
	}
	for _, s := range sentinels {
		if errors.Is(s, errno) {
			return s
		}
	}
	return err
}
