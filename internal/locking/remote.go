package locking

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// RemoteHolder is an owner on another host of the cluster, as far as it is known
// here.
type RemoteHolder struct {
	Holder        // Owner.Name may be empty, and then is not known
	Node   uint32 // the host's number in the cluster; 0 if it is not known
	Host   string // its name; empty if it is not known
}

// Describer is a Handle that can let other hosts know who has its lock.
type Describer interface {
	// Describe says for whom the lock was granted or taken back, and when the
	// grant was: called once, before anything else is done with the handle. It
	// returns at once, whatever it sets going.
	Describe(o Owner, since time.Time)
}

// HolderFinder is an error of Handle.Lock, around ErrBusy, that can find out who
// holds the resource.
type HolderFinder interface {
	error
	// FindHolders asks in the cluster, for a time of its own that is no longer than
	// ctx. An empty list means that nothing is known for certain.
	FindHolders(ctx context.Context) []RemoteHolder
}

// Sharer is a Handle whose lock owners on other hosts may share.
type Sharer interface {
	// Sharers can find out who does, when the resource that is shared here was
	// refused to somebody who wanted it alone. It returns at once.
	Sharers() HolderFinder
}

// describe tells a handle for whom it holds the lock.
func describe(h Handle, o Owner, since time.Time) {
	if d, ok := h.(Describer); ok {
		d.Describe(o, since)
	}
}

// findHolders adds to a refusal who holds the resource on other hosts. It is not
// called in the resource's turn: whoever is to be granted the resource meanwhile
// does not wait for it.
func findHolders(ctx context.Context, err error) {
	var e *Error
	var f HolderFinder
	if !errors.As(err, &e) || e.Kind != KindBusy {
		return
	}
	if f = e.sharers; f != nil || len(e.Holders) == 0 && errors.As(e.Err, &f) {
		e.Remote = f.FindHolders(ctx)
	}
}

// maxNameShown bounds in bytes how much of a name from another host is shown.
// That host may be out of its mind.
const maxNameShown = 256

// String names the holder and its host for people: "virtual machine web (uuid
// ..., pid 12, exclusive since ...) on host kvm1 (node 1)".
func (h RemoteHolder) String() string {
	who := "a virtual machine " + h.details()
	if name := shown(h.Owner.Name); name != "" {
		who = "virtual machine " + name + " " + h.details()
	}
	switch host := shown(h.Host); {
	case host != "" && h.Node != 0:
		return fmt.Sprintf("%s on host %s (node %d)", who, host, h.Node)
	case host != "":
		return who + " on host " + host
	case h.Node != 0:
		return fmt.Sprintf("%s on node %d", who, h.Node)
	}
	return who + " on another host"
}

// shown is a name from another host without what does not belong in a message.
func shown(name string) string {
	if len(name) > maxNameShown {
		name = name[:maxNameShown]
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}
