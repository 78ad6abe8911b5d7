package daemon

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/holder"
)

// What a restart in place keeps open beside the connections: the descriptors to
// which the kernel ties the locks. Then no lock has to be taken back.
//
// While a child of this process has them too, the death of this process would not
// end their use, and its locks would not be found by the next one. So they are
// close-on-exec until just before the execve, at which time no child can be made.

var (
	keepBefore = failpoint.New("daemon.keep.before")
	keepAfter  = failpoint.New("daemon.keep.after")
)

// keptLocks is what a backend hands over; at most one of the two is set.
type keptLocks struct {
	cluster *dlm.Handover
	local   *holder.Handover
	// here says why only this program can go on with it: the execution of another
	// one would end locks. Nil if another one can.
	here error
	// look: what local has is not all known to be locked.
	look bool
}

// fds are all its descriptors.
func (k keptLocks) fds() []int {
	switch {
	case k.cluster != nil:
		return []int{k.cluster.FD}
	case k.local != nil:
		return k.local.FDs()
	}
	return nil
}

// seal makes all close-on-exec again, in a program that has just begun. Nothing in
// it is meant for children, so what lies between may become so too.
func (k keptLocks) seal() error {
	fds := k.fds()
	if len(fds) == 0 {
		return nil
	}
	if unix.CloseRange(uint(slices.Min(fds)), uint(slices.Max(fds)), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	for _, fd := range fds { // before Linux 5.11
		if err := cloexec(fd, true); err != nil {
			return err
		}
	}
	return nil
}

// marshal returns the backend that it is of, and its bytes.
func (k keptLocks) marshal() (backend string, b []byte, err error) {
	var m encoding.BinaryMarshaler
	switch {
	case k.cluster != nil:
		backend, m = config.BackendCluster, k.cluster
	case k.local != nil:
		backend, m = config.BackendLocal, k.local
	default:
		return "", nil, nil
	}
	b, err = m.MarshalBinary()
	return backend, b, err
}

func (k *keptLocks) unmarshal(backend string, b []byte) (err error) {
	switch backend {
	case "":
	case config.BackendCluster:
		k.cluster = &dlm.Handover{}
		err = k.cluster.UnmarshalBinary(b)
	case config.BackendLocal:
		k.local = &holder.Handover{}
		err = k.local.UnmarshalBinary(b)
	default:
		err = errors.New("unknown backend")
	}
	if err != nil {
		return fmt.Errorf("locks of backend %q that the earlier program kept: %w", backend, err)
	}
	return nil
}

// takeCluster and takeLocal are for the one who goes on with it.
func (k *keptLocks) takeCluster() *dlm.Handover {
	h := k.cluster
	k.cluster = nil
	return h
}

func (k *keptLocks) takeLocal() *holder.Handover {
	h := k.local
	k.local = nil
	return h
}

// discard closes what nobody has taken: the configuration names another backend now.
// The locks stay held, as after the end of the process.
func (k *keptLocks) discard() error {
	if h := k.takeLocal(); h != nil {
		h.Discard()
	}
	if h := k.takeCluster(); h != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return h.Discard(ctx, dlm.Host())
	}
	return nil
}

// inheritable runs f, which executes another program, with descriptors that this
// one keeps. If f returns they are close-on-exec again.
func inheritable(fds []int, f func() error) error {
	syscall.ForkLock.RLock() // no child is made meanwhile (os/exec has it for writing)
	defer syscall.ForkLock.RUnlock()
	var err error
	for _, fd := range fds {
		if err = cloexec(fd, false); err != nil {
			break
		}
	}
	if err == nil {
		err = f()
	}
	for _, fd := range fds {
		err = errors.Join(err, cloexec(fd, true))
	}
	return err
}

func cloexec(fd int, on bool) error {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
		return fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return nil
}
