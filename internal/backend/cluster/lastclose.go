package cluster

import (
	"context"
	"os"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

// LastClose sees to it that the device of the lockspace is not closed while the
// kernel still works for this process, however the process ends. Closing it then
// can crash Linux 6.1 (see package dlm). Its methods are not called at the same time.
type LastClose interface {
	// Earlier returns nil when no earlier process's device is open any more.
	Earlier(ctx context.Context) error
	// Keep is called with a descriptor of the device, which is closed afterwards,
	// before anything is asked of it. From the time ended is closed nobody sees to it
	// any more, until Keep is called again.
	Keep(device *os.File) (ended <-chan struct{}, err error)
	// Release lets go of the device while nothing is under way, and returns when that
	// is done, or when ctx ends.
	Release(ctx context.Context) error
	// Dismiss lets go of it when the kernel has answered everything, for which it does
	// not wait.
	Dismiss()
	// UnderWay is kept at what is under way.
	UnderWay() *dlm.UnderWay
}

// earlierWithin is how long an attempt to join waits for an earlier process.
const earlierWithin = 2 * time.Second

// dlmOptions are those of every way into the lockspace.
func (b *Backend) dlmOptions() dlm.Options {
	if b.last == nil {
		return dlm.Options{}
	}
	return dlm.Options{UnderWay: b.last.UnderWay()}
}

// awaitEarlier waits until the device of an earlier process is closed, whose
// locks are orphans only then.
func (b *Backend) awaitEarlier(ctx context.Context) error {
	if b.last == nil {
		return nil
	}
	soon, cancel := context.WithTimeout(ctx, earlierWithin)
	defer cancel()
	err := b.last.Earlier(soon)
	if err == nil {
		b.asker.joined("") // until enter
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	return b.stillOpen(ctx, err)
}

// earlierOpen is why this host has not joined, as long as the device of an earlier
// process is open.
type earlierOpen struct {
	stopped
	err error
}

func (e *earlierOpen) Error() string { return e.stopped.Error() }
func (e *earlierOpen) Unwrap() error { return e.err }

// stillOpen says what the kernel waits for before it lets an earlier process's
// device be closed, as far as dlm_controld knows: a lockspace that is stopped, most
// often. That this host must be rebooted is logged here, as nobody watches the
// lockspace before it is joined.
func (b *Backend) stillOpen(ctx context.Context, err error) error {
	if _, e := b.kernel.Minor(b.name); e == nil {
		b.asker.joined(b.name) // as far as dlm_controld is concerned
	}
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	a := b.asker.get(ctx)
	r := explain(a, time.Now(), nil)
	if r.cause == causeGone {
		r = explain(a, time.Now(), b.watch.holders())
		b.watch.mu.Lock()
		news := !b.watch.toldEarly
		b.watch.toldEarly = true
		b.watch.mu.Unlock()
		if news || b.watch.heldUntold() {
			b.watch.tellGone(r.text)
		}
	}
	text := r.text
	if r.cause == causeRecovering {
		text = "the kernel has not finished yet what the lock daemon before this one had asked for"
	}
	return &earlierOpen{stopped{reason{r.cause, text}}, err}
}

// keepAgain is the pause before a LastClose that has ended by itself is started
// again: whatever ends it may do so at once.
const keepAgain = time.Second

// keepOpen has the device closed late if this process is killed, from now on until
// ctx ends.
func (b *Backend) keepOpen(ctx context.Context, space *dlm.Lockspace) {
	if b.last == nil {
		return
	}
	ended := b.keepNow(space)
	b.work.start(func() {
		pause := time.NewTimer(0)
		defer pause.Stop()
		for {
			if ended != nil {
				select {
				case <-ended:
					b.log.Warn("the process that closes the DLM's device in good order if this daemon is killed has ended; starting it again", "dlm", b.name)
				case <-ctx.Done():
					return
				}
			}
			pause.Reset(keepAgain)
			select {
			case <-pause.C:
			case <-ctx.Done():
				return
			}
			ended = b.keepNow(space)
		}
	})
}

func (b *Backend) keepNow(space *dlm.Lockspace) (ended <-chan struct{}) {
	device, err := space.Duplicate()
	if err == nil {
		ended, err = b.last.Keep(device)
		device.Close()
	}
	if err == nil {
		b.keepFailed = ""
		return ended
	}
	if text := err.Error(); text != b.keepFailed {
		b.keepFailed = text
		b.log.Warn("nothing is there to close the DLM's device in good order if this daemon is killed; the host's kernel may crash then", "dlm", b.name, "reason", err)
	}
	return nil
}

// letGo ends what keepOpen began, when nothing is under way but what nobody waits for any
// more: a conversion of a lock that was taken back, whose result the kernel may have lost.
func (b *Backend) letGo(ctx context.Context) error {
	if b.last == nil {
		return nil
	}
	if n, _ := b.last.UnderWay().Count(); n > 0 {
		b.last.Dismiss()
		return nil
	}
	return b.last.Release(ctx)
}
