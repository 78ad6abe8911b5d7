package closer

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/inherited"
)

// argument makes this binary a closer.
const argument = "close-dlm-device"

// init becomes the closer if this process was started as one, and then does not
// return. In main it would be too late: all the packages of the daemon, which take
// most of the time and memory of its start, are initialized before that, and
// hardly any before this one.
func init() {
	if len(os.Args) < 3 || os.Args[1] != argument {
		return
	}
	if err := become(os.Args[2]); err != nil {
		// Nobody reads it when a daemon started this process.
		fmt.Fprintln(os.Stderr, "vmlockd: closer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func become(lockspace string) error {
	if err := inherited.Close(afterLast); err != nil {
		return fmt.Errorf("close what was inherited: %w", err)
	}
	for fd := lockFD; fd < afterLast; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return fmt.Errorf("descriptor %d is not open: only vmlockd itself starts this", fd)
		}
	}
	// Closed before the locks, whatever comes: see lockFD.
	device := os.NewFile(deviceFD, lockspace)
	defer device.Close()
	// What is meant for the daemon. When that has ended, this ends by itself.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGALRM, unix.SIGTERM)
	dismissed := make(chan os.Signal, 1)
	signal.Notify(dismissed, dismissal)
	// Its death in a moment like the daemon's is what it is to prevent. Needs CAP_SYS_RESOURCE.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	_ = os.WriteFile("/proc/self/comm", []byte(comm), 0)
	var count Count
	if err := count.open(countFD, unix.PROT_READ); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(daemonFD) }()
	select {
	case err := <-ended:
		if err != nil {
			return err
		}
	case <-dismissed:
	}
	state, err := openState(lockspace)
	if err != nil {
		return nil // the daemon has left the lockspace
	}
	defer state.Close()
	return dlm.DrainFile(context.Background(), device, count.UnderWay, state.Running)
}

// state says whether a lockspace runs.
type state interface {
	Running() (bool, error)
	Close() error
}

// openState and testEnv are others in the test binary, which has no DLM.
var (
	openState = func(lockspace string) (state, error) { return dlm.OpenState(dlm.Host(), lockspace) }
	testEnv   = func() []string { return nil }
)

// awaitEnd waits until a process has ended, with all its threads: none of them is
// in the kernel then (pidfd_open(2)).
func awaitEnd(pidfd int32) error {
	fds := []unix.PollFd{{Fd: pidfd, Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(fds, -1); {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case n > 0:
			return nil
		}
	}
}
