package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// stateEnv names the environment variable with the descriptor of a state that an
// earlier program, executed in the same process, has left.
const stateEnv = "VMLOCKD_STATE_FD"

// StateVersion is what this program can go on from. A newer one may go on from
// older versions too.
const StateVersion = 1

// RestartSignals are those that ask for a restart in place.
var RestartSignals = []os.Signal{syscall.SIGUSR1, syscall.SIGHUP}

// maxState bounds what is read: names of owners are all that clients put in it.
const maxState = 1 << 30

// state is what a new program needs to go on with the connections of the old
// one. The locks are in the journal. A nil state is that of a first start.
type state struct {
	Version     int
	Socket      string // where the listener listens
	Listener    int    // descriptor
	Connections []connection

	listener  *os.File
	handovers []*rpc.Handover
}

type connection struct {
	FD       int
	Peer     rpc.Peer
	Pending  []byte
	Sessions []rpc.SessionState
}

// listen goes on with the listener, or makes one.
func (s *state) listen(path string) (*net.UnixListener, error) {
	if s != nil && s.Socket == path {
		defer s.listener.Close()
		l, err := rpc.ListenerFromFile(s.listener)
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	if s != nil { // the configuration names another socket now
		s.listener.Close()
		os.Remove(s.Socket)
	}
	// libvirt's directory is made by whichever of its daemons starts first.
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	return rpc.Listen(path)
}

func (s *state) connections() []*rpc.Handover {
	if s == nil {
		return nil
	}
	return s.handovers
}

// execute replaces this program by the one at path. It returns only if that
// fails, with s unchanged.
func (s *state) execute(path string, args []string) error {
	s.Version, s.Listener, s.Connections = StateVersion, int(s.listener.Fd()), nil
	keep := []*os.File{s.listener}
	for _, h := range s.handovers {
		s.Connections = append(s.Connections, connection{FD: int(h.File.Fd()), Peer: h.Peer, Pending: h.Pending, Sessions: h.Sessions})
		keep = append(keep, h.File)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("vmlockd-state", 0)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "vmlockd-state")
	defer memory.Close()
	if _, err := memory.Write(text); err != nil {
		return err
	}
	for _, f := range keep {
		if err := cloexec(int(f.Fd()), false); err != nil {
			return err
		}
	}
	// Until the new program waits for them these signals would end it. What is
	// ignored stays ignored across the exec (execve(2)).
	signal.Ignore(RestartSignals...)
	err = syscall.Exec(path, args, append(os.Environ(), stateEnv+"="+strconv.Itoa(fd)))
	for _, f := range keep {
		err = errors.Join(err, cloexec(int(f.Fd()), true))
	}
	return fmt.Errorf("execute %s: %w", path, err)
}

func cloexec(fd int, on bool) error {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	return err
}

// inherit reads the state that an earlier program has left; nil if there was
// none.
func inherit() (*state, error) {
	value, ok := os.LookupEnv(stateEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(stateEnv)
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q is no descriptor", stateEnv, value)
	}
	memory := os.NewFile(uintptr(fd), "vmlockd-state")
	defer memory.Close()
	text, err := io.ReadAll(io.NewSectionReader(memory, 0, maxState))
	if err != nil {
		return nil, fmt.Errorf("read the state of the earlier program: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read the state of the earlier program: %w", err)
	}
	if s.Version != StateVersion {
		return nil, fmt.Errorf("the state of the earlier program has version %d, and this one knows %d", s.Version, StateVersion)
	}
	adopt := func(fd int, name string) (*os.File, error) {
		if err := cloexec(fd, true); err != nil {
			return nil, fmt.Errorf("descriptor %d of the earlier program: %w", fd, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	if s.listener, err = adopt(s.Listener, s.Socket); err != nil {
		return nil, err
	}
	for _, c := range s.Connections {
		f, err := adopt(c.FD, "connection")
		if err != nil {
			return nil, err
		}
		s.handovers = append(s.handovers, &rpc.Handover{Peer: c.Peer, File: f, Pending: c.Pending, Sessions: c.Sessions})
	}
	return s, nil
}
