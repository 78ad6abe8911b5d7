package locking

import (
	"context"
	"errors"
)

// causer is an error that knows in a word why something is not possible. The
// words are of a fixed set, and never contain what a client has sent.
type causer interface {
	error
	Cause() string
}

// Cause is why a request was refused with KindUnavailable, in a word for
// metrics and fields of the log: "lost", "journal", "stopping", "timeout", what
// the backend says of itself ("quorum", "fencing", ...), and "" if nobody has a
// word for it.
func Cause(err error) string {
	if c, ok := errors.AsType[causer](err); ok {
		return c.Cause()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return ""
}

// caused is an error with a word for why.
type caused struct{ cause, text string }

func withCause(cause, text string) error { return &caused{cause, text} }

func (e *caused) Error() string { return e.text }
func (e *caused) Cause() string { return e.cause }

var errStopping = withCause("stopping", "the lock daemon is stopping")
