package locking

import (
	"fmt"
	"strings"
	"time"
)

// Kind sorts errors by what a client can do about them. The lock program turns
// it into libvirt's code and domain.
type Kind uint8

// The kinds of Error.
const (
	KindBusy             Kind = iota // the resource is held in a mode that does not go together with the one asked for
	KindNotLocked                    // release of a resource that nobody holds under this name
	KindNotOwner                     // release by somebody who does not hold it
	KindNoLockspace                  // the lockspace was never created
	KindLockspaceExists              // NEW of a lockspace that exists
	KindDefaultLockspace             // NEW of the default lockspace, ""
	KindInvalid                      // a name that cannot be used; without Op, Err is the whole text
	KindSystem                       // the operating system or the kernel said no: Err wraps a syscall.Errno if there is one
	KindUnavailable                  // no answer in time, or a backend that cannot grant now: nothing was granted
	KindOwnerGone                    // the owner's process has ended
	KindOwnerLives                   // an operator's release of a lock whose owner may be alive
)

// Error is every error that a Manager returns. Its text is what a person reads
// after libvirt's own prefix ("resource busy: "), so the first words are those
// of virtlockd where virtlockd has the same error.
type Error struct {
	Kind    Kind
	Op      string   // what was tried, for KindSystem, KindInvalid and KindUnavailable: "acquire", "open", ...
	Ref     Ref      // what it was tried on
	PID     int32    // for KindNotOwner and KindOwnerGone
	Holders []Holder // for KindBusy and KindOwnerLives: who holds it on this host, oldest first
	Err     error    // the cause, if there is one
}

// maxHoldersShown bounds how many holders a refusal names: libvirt passes the
// text on to people, who need one name to go on, not a hundred.
const maxHoldersShown = 4

func (e *Error) Error() string {
	switch e.Kind {
	case KindBusy:
		return fmt.Sprintf("Lockspace resource '%s' is locked%s", e.Ref.Name, e.heldBy())
	case KindNotLocked:
		return fmt.Sprintf("Lockspace resource '%s' is not locked", e.Ref.Name)
	case KindNotOwner:
		return fmt.Sprintf("owner %d does not hold the resource lock", e.PID)
	case KindNoLockspace:
		return fmt.Sprintf("Lockspace for path %s does not exist", e.Ref.Lockspace)
	case KindLockspaceExists:
		return fmt.Sprintf("Lockspace for path %s already exists", e.Ref.Lockspace)
	case KindDefaultLockspace:
		return "the default lockspace already exists"
	case KindOwnerGone:
		return fmt.Sprintf("Lockspace resource '%s' was not locked: its owner, process %d, has ended", e.Ref.Name, e.PID)
	case KindOwnerLives:
		return fmt.Sprintf("Lockspace resource '%s' is held%s, and may be in use: it was not released", e.Ref.Name, e.heldBy())
	default:
		if e.Op == "" && e.Err != nil {
			return e.Err.Error()
		}
		return fmt.Sprintf("Unable to %s '%s': %v", e.Op, e.subject(), e.Err)
	}
}

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) subject() string {
	if e.Ref.Name == "" {
		return e.Ref.Lockspace
	}
	return e.Ref.Name
}

func (e *Error) heldBy() string {
	if len(e.Holders) == 0 {
		if e.Err != nil {
			return ": " + e.Err.Error()
		}
		return ""
	}
	var b strings.Builder
	b.WriteString(" by ")
	for i, h := range e.Holders {
		if i == maxHoldersShown {
			fmt.Fprintf(&b, " and %d more", len(e.Holders)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(h.String())
	}
	b.WriteString(" on this host")
	return b.String()
}

// String names a holder for people: "virtual machine web (uuid ..., pid 12,
// exclusive since ...)".
func (h Holder) String() string {
	name := "virtual machine " + h.Owner.Name
	if h.Owner.Name == "" {
		name = "an owner without a name"
	}
	return fmt.Sprintf("%s (uuid %s, pid %d, %s since %s)",
		name, FormatUUID(h.Owner.UUID), h.Owner.PID, h.Mode, h.Since.UTC().Format(time.RFC3339))
}

// FormatUUID writes a UUID the way libvirt does (RFC 9562, lower case).
func FormatUUID(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}
