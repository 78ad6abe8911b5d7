package corosync

import (
	"context"
	"errors"
	"fmt"
)

// Errors of reaching corosync. Each text says what is missing and what to do.
var (
	// ErrNoLibrary: corosync's client libraries cannot be loaded on this host, or not by a program for this processor.
	ErrNoLibrary = errors.New("corosync's client libraries are missing: install corosync with libcpg.so.4, libquorum.so.5 and libcmap.so.4 " +
		"(Debian: apt-get install libcpg4 libquorum5 libcmap4)")
	// ErrNotRunning: nobody answers as corosync, or it ended while connected.
	ErrNotRunning = errors.New("corosync is not running: start it (systemctl start corosync) and look at its log for why it ended")
	// ErrAccess: corosync answers root and users of its uidgid.d only.
	ErrAccess = errors.New("corosync does not let this user in: run as root, or name the user in a file in /etc/corosync/uidgid.d")
	// ErrNoAnswer: a call of the library took longer than Options.Patience: corosync is stopped or starved.
	ErrNoAnswer = errors.New("corosync does not answer")
	// ErrTryAgain: corosync is starting, or its queues are full. Send, Join and Cmap wait for the end of that by themselves.
	ErrTryAgain = errors.New("corosync is busy; try again")
)

// Errors of groups, quorum and cmap.
var (
	// ErrDown: there is no connection right now, or it broke during the call; a Send may then have been done all the same.
	ErrDown = errors.New("no connection to corosync at the moment")
	// ErrSlow is the Err of a Down: the program left too much in Events, and was thrown out.
	ErrSlow = errors.New("events were not taken in time; more than Options.Queue bytes of them were waiting")
	// ErrTooBig: a message is longer than Options.MaxMessage, or than corosync sends in one piece.
	ErrTooBig = errors.New("the message is too long")
	// ErrMember: this process is in the group already.
	ErrMember = errors.New("this process is a member of the group already")
	// ErrClosed: Close has begun.
	ErrClosed = errors.New("closed")
	// ErrNoKey: the cmap has no such key.
	ErrNoKey = errors.New("no such key in corosync's cmap")
	// ErrInvalid: the arguments make no request; nothing was asked of corosync.
	ErrInvalid = errors.New("invalid argument")
)

// LibraryError is an answer of a library that has no sentinel of its own: a cs_error_t of corotypes.h.
type LibraryError int

// Codes of corotypes.h.
const (
	csOK           = 1
	csErrLibrary   = 2
	csErrTryAgain  = 6
	csErrInvalid   = 7
	csErrNoMemory  = 8
	csErrBadHandle = 9
	csErrAccess    = 11
	csErrNotExist  = 12
	csErrExist     = 14
	csErrQueueFull = 23
	csErrNoSection = 27
	csErrSecurity  = 100
)

var codeNames = map[LibraryError]string{
	csErrInvalid: "invalid parameter", csErrNoMemory: "no memory", csErrBadHandle: "bad handle",
	3: "version", 4: "init", 5: "timeout", 10: "busy", 13: "name too long", 15: "no space", 16: "interrupted", 18: "no resources",
	19: "not supported", 20: "bad operation", 21: "failed operation", 26: "too big", 30: "too many groups",
}

func (e LibraryError) Error() string {
	if name := codeNames[e]; name != "" {
		return fmt.Sprintf("corosync's library says: %s (error %d)", name, int(e))
	}
	return fmt.Sprintf("corosync's library says: error %d of corotypes.h", int(e))
}

// codeError is the error that a cs_error_t means, nil for CS_OK.
func codeError(code int32) error {
	switch code {
	case csOK:
		return nil
	case csErrLibrary:
		return ErrNotRunning
	case csErrTryAgain, csErrQueueFull:
		return ErrTryAgain
	case csErrAccess, csErrSecurity:
		return ErrAccess
	case csErrNotExist:
		return ErrNoKey
	case csErrExist:
		return ErrMember
	}
	return LibraryError(code)
}

// OpError is the one type of error this package returns. Err is a sentinel of this package (perhaps with details), a
// LibraryError, or the error of the context that ended; errors.Is and errors.As see through it.
type OpError struct {
	Op   string // "join", "send", "track", "cmap", "close"
	Name string // the group, or the key or prefix; empty for the quorum
	Err  error
}

// Error names the operation, what it was about, and why it failed.
func (e *OpError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("corosync: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("corosync: %s %q: %v", e.Op, e.Name, e.Err)
}

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }

// fault is err as an OpError.
func fault(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Name: name, Err: err}
}

// ended is the error of a call whose context ended while it waited for corosync.
func ended(ctx context.Context, waitedFor error) error {
	return fmt.Errorf("%w: %w", waitedFor, context.Cause(ctx))
}
