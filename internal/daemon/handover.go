package daemon

import (
	"bytes"
	"encoding/json"
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

// The versions of the state. This program goes on from all of them.
const (
	// stateConnections has the listener and the connections; the locks have to be
	// taken back.
	stateConnections = 1
	// stateLocks has what the kernel ties the locks to as well.
	stateLocks = 2
)

// CanTakeOver reports whether this program can go on from a state of that version.
func CanTakeOver(version int) bool { return version == stateConnections || version == stateLocks }

// RestartSignals are those that ask for a restart in place.
var RestartSignals = []os.Signal{syscall.SIGUSR1, syscall.SIGHUP}

// maxState bounds what is read: names of owners are all that clients put in it.
const maxState = 1 << 30

// state is what a new program needs to go on with the connections of the old one,
// and with its locks, of which the journal has the rest. A nil state is that of a
// first start.
//
// It goes from program to program as JSON in a file in memory; from stateLocks on
// a newline follows, and the bytes of the locks that are kept.
type state struct {
	Version     int
	Socket      string // where the listener listens
	Listener    int    // descriptor
	Connections []connection
	Backend     string `json:",omitempty"` // of what is kept; empty if nothing is
	Closer      int    `json:",omitempty"` // pid of the process that closes the DLM device last (internal/closer); 0 if there is none

	listener  *os.File
	handovers []*rpc.Handover
	kept      keptLocks
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

// keptLocks is what was kept of the earlier program, for who takes it.
func (s *state) keptLocks() *keptLocks {
	if s == nil {
		return &keptLocks{}
	}
	return &s.kept
}

// closer is the process that the earlier program left to close the DLM device.
func (s *state) closer() int {
	if s == nil {
		return 0
	}
	return s.Closer
}

// execute replaces this program by the one at path. It returns only if that
// fails, with s unchanged.
func (s *state) execute(path string, args []string) error {
	s.Listener, s.Connections = int(s.listener.Fd()), nil
	keep := append(s.kept.fds(), s.Listener)
	for _, h := range s.handovers {
		s.Connections = append(s.Connections, connection{FD: int(h.File.Fd()), Peer: h.Peer, Pending: h.Pending, Sessions: h.Sessions})
		keep = append(keep, int(h.File.Fd()))
	}
	memory, err := s.write()
	if err != nil {
		return err
	}
	defer memory.Close()
	keep = append(keep, int(memory.Fd()))
	// Until the new program waits for them these signals would end it. What is
	// ignored stays ignored across the exec (execve(2)).
	signal.Ignore(RestartSignals...)
	env := append(os.Environ(), stateEnv+"="+strconv.Itoa(int(memory.Fd())))
	keepBefore.Pass()
	err = inheritable(keep, func() error { return syscall.Exec(path, args, env) })
	return fmt.Errorf("execute %s: %w", path, err)
}

// write makes the file for the next program.
func (s *state) write() (*os.File, error) {
	backend, locks, err := s.kept.marshal()
	if err != nil {
		return nil, err
	}
	s.Backend = backend
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if s.Version >= stateLocks {
		text = append(append(text, '\n'), locks...)
	}
	fd, err := unix.MemfdCreate("vmlockd-state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "vmlockd-state")
	if _, err := memory.Write(text); err != nil {
		memory.Close()
		return nil, err
	}
	return memory, nil
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
	data, err := readAll(memory)
	if err != nil {
		return nil, fmt.Errorf("read the state of the earlier program: %w", err)
	}
	s := &state{}
	text, locks, _ := bytes.Cut(data, []byte("\n"))
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read the state of the earlier program: %w", err)
	}
	if !CanTakeOver(s.Version) {
		return nil, fmt.Errorf("the state of the earlier program has version %d, and this one knows %d and %d", s.Version, stateConnections, stateLocks)
	}
	if err := s.kept.unmarshal(s.Backend, locks); err != nil {
		return nil, err
	}
	if err := s.kept.seal(); err != nil {
		return nil, fmt.Errorf("the locks of the earlier program: %w", err)
	}
	keepAfter.Pass()
	adopt := func(fd int, name string) (*os.File, error) {
		if err := cloexec(fd, true); err != nil {
			return nil, fmt.Errorf("%s of the earlier program: %w", name, err)
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

// readAll reads a file of a known size.
func readAll(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxState {
		return nil, fmt.Errorf("it has %d bytes, and %d are the most", st.Size(), maxState)
	}
	data := make([]byte, st.Size())
	_, err = io.ReadFull(io.NewSectionReader(f, 0, st.Size()), data)
	return data, err
}
