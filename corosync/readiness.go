//go:build linux && (amd64 || arm64)

package corosync

import (
	"os"

	"golang.org/x/sys/unix"
)

// readiness tells when a descriptor of a library has something to read, by Go's poller: the waiting goroutine holds no thread.
type readiness struct {
	f     *os.File      // a copy: the library closes its own
	ready chan struct{} // has a value when there is something
	again chan struct{} // has a value when watch should look again
	stop  chan struct{}
	done  chan struct{}
}

// watch makes a readiness for a descriptor, which must be one that the poller can wait for; libqb's are sockets.
func watch(fd int) (*readiness, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	// libqb has done this already.
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return nil, os.NewSyscallError("fcntl", err)
	}
	r := &readiness{
		f: os.NewFile(uintptr(own), "corosync"), ready: make(chan struct{}, 1), again: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go r.run()
	return r, nil
}

// Ready implements Conn.
func (r *readiness) Ready() <-chan struct{} { return r.ready }

func (r *readiness) run() {
	defer close(r.done)
	raw, err := r.f.SyscallConn()
	for err == nil {
		// The poller tells of changes only; so the descriptor is looked at first.
		err = raw.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
		if err != nil {
			break
		}
		select {
		case r.ready <- struct{}{}:
		case <-r.stop:
			return
		}
		select {
		case <-r.again:
		case <-r.stop:
			return
		}
	}
	// Closed, or not a descriptor that can be waited for: Dispatch will say what is wrong.
	close(r.ready)
}

// rearm has the descriptor looked at again, after something was read.
func (r *readiness) rearm() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// end lets the copy go and waits for the goroutine.
func (r *readiness) end() {
	close(r.stop)
	_ = r.f.Close()
	<-r.done
}
