package controld

import (
	"errors"
	"fmt"
)

// Errors of asking.
var (
	// ErrNotRunning: nobody listens on the daemon's socket, or somebody who is not root does. If this host is in any
	// lockspace, the kernel has stopped it, and only a reboot heals that.
	ErrNotRunning = errors.New("dlm_controld is not running")
	// ErrNoAnswer: the daemon is there and did not answer before the context ended, or closed the connection without an
	// answer. The context's error, if it was that, is in the same chain.
	ErrNoAnswer = errors.New("dlm_controld does not answer")
	// ErrVersion: the daemon speaks another major version of the protocol.
	ErrVersion = errors.New("dlm_controld speaks another protocol")
	// ErrMalformed: the answer makes no sense.
	ErrMalformed = errors.New("the answer of dlm_controld makes no sense")
	// ErrNoLockspace: the daemon knows no lockspace of that name on this host.
	ErrNoLockspace = errors.New("dlm_controld knows no such lockspace")
)

// OpError is the one type of error this package returns. Err is, or wraps, one of the sentinels above, the context's
// error, or a syscall.Errno that the daemon sent.
type OpError struct {
	Op        string // "status", "config", "lockspaces", "lockspace", "nodes", "known"
	Lockspace string // empty where the question has none
	Err       error
}

// Error says what was asked and why there is no answer.
func (e *OpError) Error() string {
	if e.Lockspace != "" {
		return fmt.Sprintf("ask dlm_controld for %s of lockspace %q: %v", e.Op, e.Lockspace, e.Err)
	}
	return fmt.Sprintf("ask dlm_controld for %s: %v", e.Op, e.Err)
}

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }
