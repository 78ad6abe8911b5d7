package cluster

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/controld"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// joinPatience is how long New waits for the lockspace before it returns all
// the same: joining waits for quorum, and libvirt is better told so than left
// without a daemon.
const joinPatience = 3 * time.Second

// joinRetry is the pause after a failed attempt to join.
const joinRetry = 500 * time.Millisecond

// join tries until it has joined or ctx ends. A part that is missing at the
// first try goes to fatal and ends it, unless New has returned before, which is
// when nobody would be told.
func (b *Backend) join(ctx context.Context, fatal chan<- error, returned <-chan struct{}) {
	said := ""
	for first := true; ; first = false {
		space, err := b.tryJoin(ctx)
		if err == nil {
			b.enter(space)
			b.log.Info("joined the DLM lockspace", "event", "lockspace-joined", "dlm", b.name)
			return
		}
		if ctx.Err() != nil {
			return
		}
		if first && missingPart(err) {
			select {
			case fatal <- err:
				return
			case <-returned:
			}
		}
		b.setWhy(err)
		text := err.Error()
		if early, ok := errors.AsType[*earlierOpen](err); ok {
			text = early.reason.cause.String() // as there may be a time in the text
		}
		if text != said { // not every attempt is news
			said = text
			b.log.Warn("could not join the DLM lockspace yet, trying again", "event", "lockspace-not-joined", "dlm", b.name, "cause", locking.Cause(err), "reason", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(joinRetry):
		}
	}
}

// setWhy says why this host has not joined.
func (b *Backend) setWhy(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why = err
}

// tryJoin opens the lockspace if this host is a member already, as after a
// restart of the daemon, which needs nobody's consent. Otherwise it joins, but
// only once the cluster has quorum and its membership is settled: dlm_controld
// (4.2) never completes the join of a node that began it alone, before it met
// the others.
func (b *Backend) tryJoin(ctx context.Context) (*dlm.Lockspace, error) {
	if err := b.awaitEarlier(ctx); err != nil {
		return nil, err
	}
	space, err := dlm.Open(ctx, b.kernel, b.name, b.dlmOptions())
	if err == nil || !errors.Is(err, dlm.ErrNoLockspace) {
		return space, err
	}
	// First things first: without the module nobody needs dlm_controld.
	device, err := b.kernel.Control()
	if err != nil {
		return nil, err
	}
	device.Close()
	if b.controld != nil {
		if err := b.ready(ctx); err != nil {
			return nil, err
		}
	}
	b.setWhy(errJoining)
	beforeJoin.Pass()
	defer afterJoin.Pass()
	space, err = dlm.Create(ctx, b.kernel, b.name, b.dlmOptions())
	return space, b.refusedEntry(err)
}

// refusedEntry tells the two meanings of EPERM apart: the kernel says so to a
// process without CAP_SYS_ADMIN, and also when dlm_controld could not make this
// host a member, which it reports to the kernel as -1 (set_sysfs_event_done in
// dlm_controld, ls_uevent_result in fs/dlm/lockspace.c). That may be different
// at the next try.
func (b *Backend) refusedEntry(err error) error {
	if !errors.Is(err, dlm.ErrPrivilege) || !b.privileged() {
		return err
	}
	return &stopped{reason{causeJoining, "dlm_controld could not make this host a member of the DLM lockspace; see its log (journalctl -u dlm, dlm_tool dump)"}}
}

// mayAdminister reports whether the kernel would grant CAP_SYS_ADMIN.
func mayAdminister() bool {
	var data [2]unix.CapUserData // version 3 has 64 bits, see capget(2)
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

func (b *Backend) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	st, err := b.controld.Status(ctx)
	switch {
	case errors.Is(err, controld.ErrNotRunning):
		return dlm.ErrNoDaemon
	case err != nil:
		return err
	case !st.Quorate:
		return &stopped{reason{causeQuorum, "the cluster has no quorum, so this host cannot join the DLM lockspace; see corosync-quorumtool -s"}}
	case st.DaemonRing != st.ClusterRing || st.FencingUnknown:
		return &stopped{reason{causeRecovering, "the cluster's membership is changing, this host joins the DLM lockspace when that is over"}}
	}
	return nil
}

func missingPart(err error) bool {
	for _, part := range []error{dlm.ErrNoModule, dlm.ErrNoDevice, dlm.ErrPrivilege, dlm.ErrNoDaemon} {
		if errors.Is(err, part) {
			return true
		}
	}
	return false
}
