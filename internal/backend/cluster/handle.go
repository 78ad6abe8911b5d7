package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// handle is one resource, and its lock if it has one. There is one for each lock, so
// the small fields are together.
type handle struct {
	b    *Backend
	ref  locking.Ref
	name string
	mode locking.Mode // of lock
	// aliased says that a daemon which does not know identities gives the disk another
	// name, ResourceName(ref), which does not count for other disks of other hosts too.
	aliased bool
	written bool      // guarded by publisher.mu: the lock's value block may have a record
	byPath  bool      // guarded by Backend.mu: what local is has its name from a path
	ended   bool      // guarded by Backend.mu: nothing is to be known of it any more
	lock    *dlm.Lock // nil unless locked
	// late is the lock that an earlier process asked for, if it is not known yet
	// whether it got it.
	late *dlm.Adoption

	publication *publication // guarded by publisher.mu; nil unless it is to be published

	// Guarded by Backend.mu: what this stands for.
	local string  // Disk.Local; "" if it is not known, or not any more
	next  *handle // another one that stands for the same
}

func (h *handle) ID() string { return h.name }

func (h *handle) Lock(ctx context.Context, mode locking.Mode) error {
	r := h.b.watch.begin(ctx, true)
	defer r.end()
	l, err := h.request(r, mode)
	if held, ok := errors.AsType[*elsewhere](err); ok {
		return held // by an earlier daemon
	}
	switch {
	case errors.Is(err, dlm.ErrBusy):
		return &elsewhere{b: h.b, name: h.name, mode: mode}
	case err != nil && r.ctx.Err() != nil && errors.As(r.why(), new(*stopped)):
		// Whatever the request was doing, this is why it got no further.
		if errors.Is(err, locking.ErrNotAsked) {
			return &notAsked{h.unavailable(r.why())}
		}
		return h.unavailable(r.why())
	case err != nil:
		return err
	}
	h.lock, h.mode = l, mode
	if err := h.Admit(r.ctx); err != nil {
		h.undo(r.ctx)
		return err
	}
	return nil
}

// Admit is Options.Admit. Who has lost the cluster, or vanished from it, does not
// matter for what only this host can use.
func (h *handle) Admit(ctx context.Context) error {
	if h.b.OnlyHere(h.name) {
		return nil
	}
	if err := h.b.admit(ctx); err != nil {
		return h.unavailable(err)
	}
	return nil
}

// undo gives back what was granted and must not be told. It is done in the
// background if that takes longer than ctx.
func (h *handle) undo(ctx context.Context) {
	select {
	case <-h.b.finish(h):
	case <-ctx.Done():
	}
}

// Prove implements locking.Prover. It converts the lock to the mode that it has,
// which the kernel does only for a lock that this process holds, by its id.
func (h *handle) Prove(ctx context.Context) error {
	if h.lock == nil {
		return errUnanswered
	}
	r := h.b.watch.begin(ctx, true)
	defer r.end()
	if err := r.waitRunning(); err != nil {
		return err
	}
	beforeProve.Pass()
	defer afterProve.Pass()
	return h.lock.Convert(r.ctx, modeOf(h.mode), dlm.ConvertOptions{NoQueue: true, Patience: provePatience})
}

// provePatience is how long the kernel's answer is waited for if the lock is from before a
// restart: for as long as the guard waits. What it has of a process that was killed it
// may never answer, but while nothing is proved a virtual machine stays stopped.
const provePatience = 2 * time.Second

func (h *handle) request(r *request, mode locking.Mode) (*dlm.Lock, error) {
	space, why := h.b.lockspace()
	if space == nil {
		return nil, &notAsked{h.unavailable(h.b.notJoined(r.ctx, why))}
	}
	if err := h.b.waitReleased(r.ctx, h.name); err != nil {
		return nil, &notAsked{err}
	}
	if err := r.waitRunning(); err != nil {
		return nil, &notAsked{err}
	}
	if err := h.Admit(r.ctx); err != nil {
		return nil, &notAsked{err}
	}
	if err := h.askEarlier(r.ctx, space, mode); err != nil {
		return nil, &notAsked{err}
	}
	beforeLock.Pass()
	defer afterLock.Pass()
	return space.Lock(r.ctx, h.name, modeOf(mode), dlm.LockOptions{NoQueue: true, Persistent: true})
}

// notAsked is the error of a request of which the kernel knows nothing.
type notAsked struct{ err error }

func (e *notAsked) Error() string        { return e.err.Error() }
func (e *notAsked) Unwrap() error        { return e.err }
func (e *notAsked) Is(target error) bool { return target == locking.ErrNotAsked }

func (h *handle) unavailable(why error) error {
	return &locking.Error{Kind: locking.KindUnavailable, Op: "acquire", Ref: h.ref, Err: why}
}

// joining says for whom this host waits while it joins and dlm_controld waits for nothing that has a name. It is why if there is
// no lockspace yet in which it could wait.
func (b *Backend) joining(why error) error {
	state, err := dlm.OpenState(b.kernel, b.name)
	if err != nil {
		return why
	}
	defer state.Close()
	st, err := state.Status()
	switch asks := b.whom(); {
	case err != nil || st.Running():
		return why
	case st.Stopped() && b.cutOff():
		return &stopped{reason{causeJoining, "this host is still joining the DLM lockspace" + place{lost: true}.goesOn()}}
	case st.Stopped():
		return &stopped{reason{causeJoining, "this host is still joining the DLM lockspace: dlm_controld here waits for messages (see dlm_tool ls -n). If that goes on for a minute" + mustReboot}}
	case asks != 0:
		return &stopped{reason{causeJoining, fmt.Sprintf("this host is still joining the DLM lockspace, and waits for the kernel of node %d: see vmlockctl status there", asks)}}
	}
	return why
}

// notJoined is why this host is not in the lockspace, or if that is under way,
// what dlm_controld waits for.
func (b *Backend) notJoined(ctx context.Context, why error) error {
	if missingPart(why) {
		return &stopped{reason{causeJoining, "this host cannot join the DLM lockspace yet: " + why.Error()}}
	}
	early, isEarly := errors.AsType[*earlierOpen](why)
	if why != errJoining && !isEarly {
		return why
	}
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	r := explain(b.asker.get(ctx), time.Now(), nil)
	if isEarly {
		if r.cause == early.reason.cause {
			return why // in more words
		}
		return &stopped{r}
	}
	if r.cause == causeRecovering {
		return b.joining(why)
	}
	return &stopped{reason{r.cause, "this host is still joining the DLM lockspace: " + r.text}}
}

// Unlock answers in a second or so also when the lockspace is stopped: the
// release then goes on by itself, and the error is locking.ErrUnderway.
func (h *handle) Unlock(ctx context.Context) error {
	err := h.b.release(ctx, h)
	if err == nil || errors.Is(err, locking.ErrUnderway) || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		h.b.end(h)
	}
	return err
}

func (h *handle) Close() { h.b.end(h) }
