package holder

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/inherited"
)

// argument makes this binary a holder.
const argument = "hold-descriptors"

// listenerFD is where the process that starts a holder puts its socket.
const listenerFD = 3

// environment is the whole environment of a holder: none of the daemon's, in
// particular none of systemd's.
//
// One P, as there is one goroutine with work: no thread of the runtime then looks
// for work elsewhere. GOGC=25 lets the heap, some hundred kilobytes, grow to 1 MB
// between collections instead of the 4 MB that 100 means for a small heap.
var environment = []string{"GOMAXPROCS=1", "GOGC=25"}

// Main becomes the holder if this process was started as one, and then does not
// return. It must come first in main, before anything is opened or started.
func Main() {
	if len(os.Args) < 2 || os.Args[1] != argument {
		return
	}
	if err := becomeHolder(); err != nil {
		// Nobody reads it when a daemon started this process.
		fmt.Fprintln(os.Stderr, "vmlockd: holder:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func becomeHolder() error {
	// systemd passes listeners without close-on-exec, and so does a daemon that
	// is just about to execute its new version.
	if err := inherited.Close(listenerFD + 1); err != nil {
		return fmt.Errorf("close what was inherited: %w", err)
	}
	listening, err := unix.GetsockoptInt(listenerFD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening != 1 {
		return fmt.Errorf("descriptor %d is no listening socket: only vmlockd itself starts this", listenerFD)
	}
	if err := unix.SetNonblock(listenerFD, true); err != nil {
		return fmt.Errorf("fcntl: %w", err)
	}
	unix.CloseOnExec(listenerFD)
	writeProc("/proc/self/comm", "vmlockd-holder")
	// The kernel must not choose the process whose memory is nothing and whose
	// death costs every lock. Needs CAP_SYS_RESOURCE.
	writeProc("/proc/self/oom_score_adj", "-1000")
	limit, err := raiseLimit()
	if err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	s := newServer(listenerFD, limit)
	handleSignals(s)
	debug.FreeOSMemory() // what the start of the program needed and the holder does not
	return s.serve()
}

// writeProc writes without package os, which would start the runtime's poller.
func writeProc(path, text string) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Write(fd, []byte(text))
	_ = unix.Close(fd)
}

// raiseLimit raises RLIMIT_NOFILE as far as it goes, for the privileged user up
// to 2^20, and returns how many descriptors can be held.
func raiseLimit() (int, error) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, err
	}
	if more := (unix.Rlimit{Cur: maxHeld, Max: maxHeld}); now.Max >= maxHeld || unix.Setrlimit(unix.RLIMIT_NOFILE, &more) != nil {
		now.Cur = now.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
			return 0, err
		}
	} else {
		now = more
	}
	return int(min(now.Cur, maxHeld)) - reserve, nil
}

// maxHeld is fs.nr_open's default, and more than any host has disks.
const maxHeld = 1 << 20

// handleSignals makes the holder outlive what is meant for the daemon: SIGTERM to
// its control group or to everything called vmlockd. It obeys SIGTERM when it
// holds nothing, and when systemd shuts the host down, which otherwise would wait
// for it with file systems it keeps busy. SIGKILL is for who knows better.
func handleSignals(s *server) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	go func() {
		for range term {
			s.mu.Lock() // nothing is received between the look and the end
			if !s.needed() || shuttingDown() {
				os.Exit(0)
			}
			s.mu.Unlock()
		}
	}()
}

// shuttingDown looks whether process 1 is the program that systemd executes at
// the very end (systemd-shutdown(8)).
func shuttingDown() bool {
	fd, err := unix.Open("/proc/1/comm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	b := make([]byte, 32)
	n, err := unix.Read(fd, b)
	return err == nil && bytes.HasPrefix(b[:n], []byte("systemd-shutdow"))
}
