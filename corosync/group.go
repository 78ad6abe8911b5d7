package corosync

import (
	"bytes"
	"context"
	"fmt"
)

// MaxGroupName is the length of the longest name of a group, in bytes.
const MaxGroupName = 128

// Group is membership in a closed process group. A process may be in a group once.
type Group struct {
	name string
	l    *link
}

// Join makes this process a member of a group, for as long as the Group is open. The group comes to be with its first
// member. Events must be taken from then on.
//
// Errors: ErrInvalid for a name that is empty or longer than MaxGroupName, ErrNoLibrary; and unless
// Options.Background is set, what kept the first attempt from succeeding. Then nothing is left behind.
func Join(ctx context.Context, sys System, name string, opts Options) (*Group, error) {
	if name == "" || len(name) > MaxGroupName {
		return nil, fault("join", name, fmt.Errorf("%w: a group's name has 1 to %d bytes, not %d", ErrInvalid, MaxGroupName, len(name)))
	}
	if err := loadable(sys); err != nil {
		return nil, fault("join", name, err)
	}
	g := &Group{name: name}
	g.l = newLink(opts.withDefaults(), func(deliver func(Event)) (Conn, error) {
		return sys.OpenCPG(name, deliver)
	})
	if err := g.l.start(ctx); err != nil {
		return nil, fault("join", name, err)
	}
	return g, nil
}

// Events are what happens in the group, in order. The channel is closed by Close. What is not taken waits, up to
// Options.Queue bytes; with more than that the Group goes Down with ErrSlow.
func (g *Group) Events() <-chan Event { return g.l.q.out }

// Name is the group's name.
func (g *Group) Name() string { return g.name }

// Self is this process as a member; false while the Group is down.
func (g *Group) Self() (Member, bool) {
	s := g.l.current()
	if s == nil {
		return Member{}, false
	}
	return s.self, true
}

// Send gives a message to all members, this one included. It returns when corosync has taken it: all members that stay
// will get it, in the same place among the others. While corosync's queues are full it waits, as long as ctx allows.
//
// ErrTooBig: the message is empty, or too long. ErrDown: there is no connection. In case of ErrDown, or when ctx ends, the
// message may have been sent all the same. ErrClosed.
func (g *Group) Send(ctx context.Context, data []byte) error {
	return fault("send", g.name, g.l.send(ctx, data))
}

func (l *link) send(ctx context.Context, data []byte) error {
	if l.stopping() {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s := l.current()
	if s == nil {
		return ErrDown
	}
	if len(data) == 0 || len(data) > s.maxMessage {
		return fmt.Errorf("%w: %d bytes, where 1 to %d are possible", ErrTooBig, len(data), s.maxMessage)
	}
	// A copy: the caller may go on with its own when ctx ends and the message is still to be sent.
	req := &sending{ctx: ctx, data: bytes.Clone(data), reply: make(chan error, 1)}
	select {
	case s.sends <- req:
	case <-ctx.Done():
		return ended(ctx, ErrTryAgain)
	case <-s.dead:
		return ErrDown
	case <-l.stop:
		return ErrClosed
	}
	select {
	case err := <-req.reply:
		return err
	case <-ctx.Done():
		return ended(ctx, ErrTryAgain)
	case <-s.dead:
	}
	select {
	case err := <-req.reply:
		return err
	default:
	}
	if l.stopping() {
		return ErrClosed
	}
	return ErrDown
}

// Close leaves the group and ends Events. It waits until that is done, but not longer than ctx and Options.Patience:
// then it returns ErrNoAnswer, and what is left ends as soon as corosync answers or ends.
func (g *Group) Close(ctx context.Context) error {
	return fault("close", g.name, g.l.close(ctx))
}
