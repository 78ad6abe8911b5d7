package locking

import (
	"encoding/hex"
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
	// Remote is who holds it on other hosts, as far as that could be found out, for
	// KindBusy without Holders or with such as share it.
	Remote []RemoteHolder
	Err    error // the cause, if there is one

	sharers HolderFinder // for KindBusy with Holders: finds Remote; may be nil
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
	switch {
	case len(e.Holders) > 0 && len(e.Remote) > 0:
		return " by " + someHolders(e.Holders) + " on this host, and by " + someHolders(e.Remote)
	case len(e.Holders) > 0:
		return " by " + someHolders(e.Holders) + " on this host"
	case len(e.Remote) > 0:
		return " by " + someHolders(e.Remote)
	case e.Err != nil:
		return ": " + e.Err.Error()
	}
	return ""
}

// someHolders names the first few.
func someHolders[H fmt.Stringer](list []H) string {
	var b strings.Builder
	for i, h := range list {
		if i == maxHoldersShown {
			fmt.Fprintf(&b, " and %d more", len(list)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(h.String())
	}
	return b.String()
}

// String names a holder for people: "virtual machine web (uuid ..., pid 12,
// exclusive since ...)".
func (h Holder) String() string {
	name := "virtual machine " + h.Owner.Name
	if h.Owner.Name == "" {
		name = "an owner without a name"
	}
	return name + " " + h.details()
}

func (h Holder) details() string {
	return fmt.Sprintf("(uuid %s, pid %d, %s since %s)",
		FormatUUID(h.Owner.UUID), h.Owner.PID, h.Mode, h.Since.UTC().Format(time.RFC3339))
}

// FormatUUID writes a UUID the way libvirt does (RFC 9562, lower case).
func FormatUUID(u [16]byte) string {
	b := make([]byte, 0, 36) // each line of the log has one
	for i, part := range [][]byte{u[0:4], u[4:6], u[6:8], u[8:10], u[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return string(b)
}

// ParseUUID reads what FormatUUID writes.
func ParseUUID(text string) (u [16]byte, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != len(u) || FormatUUID([16]byte(b)) != strings.ToLower(text) {
		return u, fmt.Errorf("%q is no UUID: it has 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12", text)
	}
	return [16]byte(b), nil
}
