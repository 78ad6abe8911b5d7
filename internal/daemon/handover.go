package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

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
	// stateAdmin has the admin socket and its connections as well.
	stateAdmin = 3
)

// CanTakeOver reports whether this program can go on from a state of that version.
func CanTakeOver(version int) bool { return version >= stateConnections && version <= stateAdmin }

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
	LastID      uint64      `json:",omitempty"`        // of connections; 0 if an earlier version has left the state
	VirtAdmin   *adminState `json:",omitempty"`        // nil if there was no admin socket
	Kept        string      `json:"Backend,omitempty"` // backend of what is kept; empty if nothing is
	Closer      int         `json:",omitempty"`        // pid of the process that closes the DLM device last (internal/closer); 0 if there is none

	// What the locks are tied to; empty if an earlier version has left the state.
	RunDir    string `json:",omitempty"`
	Backend   string `json:"LocksBackend,omitempty"`
	Lockspace string `json:"LocksLockspace,omitempty"`

	// Back is a descriptor of the program that has left the state, for the case that
	// the new one cannot start; 0 if there is none.
	Back int `json:",omitempty"`
	// Args are that program's, and Config its configuration, as the file may be what
	// keeps the new one from starting. Only that program reads them again.
	Args   []string        `json:",omitempty"`
	Config json.RawMessage `json:",omitempty"`
	// Activated says that the listener is systemd's, which keeps its file.
	Activated bool `json:",omitempty"`
	// Admin is the descriptor of systemd's socket for virt-admin, and PID that of the pid file
	// PIDFile, which stays locked; 0 if there is none.
	Admin   int    `json:",omitempty"`
	PID     int    `json:",omitempty"`
	PIDFile string `json:",omitempty"`
	// Told is a descriptor from which a byte can be read if that program was told to
	// stop; 0 if there is none.
	Told int `json:",omitempty"`

	replaced  *replaced // if a virtlockd has left it; nil if it was a vmlockd
	listener  *os.File
	handovers []*rpc.Handover
	kept      keptLocks
	back      *os.File // of Back; nil if there is none
	told      bool     // what Told said
	moved     bool     // the listener is of a socket that is not used any more
	given     *given   // what Activated, Admin and PID are of
}

type connection struct {
	FD       int
	ID       uint64    `json:",omitempty"` // 0 if an earlier version has left the state
	Since    time.Time `json:",omitzero"`
	Peer     rpc.Peer
	Pending  []byte
	Sessions []rpc.SessionState
}

func connectionOf(h *rpc.Handover) connection {
	return connection{FD: int(h.File.Fd()), ID: h.ID, Since: h.Since, Peer: h.Peer, Pending: h.Pending, Sessions: h.Sessions}
}

func handoversOf(list []connection, adopt func(fd int, name string) (*os.File, error)) (out []*rpc.Handover, err error) {
	for _, c := range list {
		f, err := adopt(c.FD, "connection")
		if err != nil {
			return nil, err
		}
		out = append(out, &rpc.Handover{ID: c.ID, Since: c.Since, Peer: c.Peer, File: f, Pending: c.Pending, Sessions: c.Sessions})
	}
	return out, nil
}

// listen goes on with the listener, or with systemd's, or makes one.
func (s *state) listen(path string, g *given) (*net.UnixListener, error) {
	if s == nil && g.lock != nil {
		if err := isAt(g.lock, path); err != nil {
			return nil, err
		}
		return rpc.ListenerFromFile(g.lock)
	}
	if s != nil && s.Socket != path && s.Activated {
		return nil, isAt(s.listener, path)
	}
	if s != nil && s.Socket == path {
		l, err := rpc.ListenerFromFile(s.listener)
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	if s != nil { // the configuration names another socket now
		s.moved = true
	}
	return makeListener(path)
}

func makeListener(path string) (*net.UnixListener, error) {
	// libvirt's directory is made by whichever of its daemons starts first.
	if err := os.MkdirAll(filepath.Dir(path), dirMode()); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	return rpc.Listen(path)
}

// done says that a program goes on with it, and cannot fail any more.
func (s *state) done() {
	if s == nil {
		return
	}
	s.listener.Close()
	if s.moved {
		os.Remove(s.Socket)
	}
	s.noWayBack()
}

// noWayBack closes the earlier program's file.
func (s *state) noWayBack() {
	if s != nil && s.back != nil {
		s.back.Close()
		s.back = nil
	}
}

func (s *state) connections() []*rpc.Handover {
	if s == nil {
		return nil
	}
	return s.handovers
}

func (s *state) lastID() uint64 {
	if s == nil {
		return 0
	}
	return s.LastID
}

// keptLocks is what was kept of the earlier program, for who takes it.
func (s *state) keptLocks() *keptLocks {
	if s == nil {
		return &keptLocks{}
	}
	return &s.kept
}

// virtlockd is what there is of one; nil if a vmlockd has left the state, or nobody.
func (s *state) virtlockd() *replaced {
	if s == nil {
		return nil
	}
	return s.replaced
}

// closer is the process that the earlier program left to close the DLM device.
func (s *state) closer() int {
	if s == nil {
		return 0
	}
	return s.Closer
}

// execute replaces this program by the one at path, which then can come back to the
// one in the file back, if that is not nil. It returns only if that fails, or if ctx
// has ended, with s unchanged. The end of told means that the new program is to stop.
func (s *state) execute(ctx, told context.Context, path string, args []string, back *os.File) error {
	if s.kept.here != nil {
		return s.kept.here
	}
	s.Listener, s.Connections, s.Back, s.Told = int(s.listener.Fd()), nil, 0, 0
	keep := append(s.kept.fds(), s.Listener)
	for _, h := range s.handovers {
		c := connectionOf(h)
		s.Connections = append(s.Connections, c)
		keep = append(keep, c.FD)
	}
	keep = append(keep, s.VirtAdmin.fds()...)
	if back != nil {
		s.Back, s.Args = int(back.Fd()), args
		keep = append(keep, s.Back)
	}
	keep = append(keep, s.give()...)
	// What comes after the last look at ctx is told to the new program. Without a
	// descriptor for that it is not.
	if r, w, err := os.Pipe(); err == nil {
		defer r.Close()
		defer w.Close()
		s.Told = int(r.Fd())
		keep = append(keep, s.Told)
		tell := func() { _, _ = w.Write([]byte{1}) }
		if told.Err() != nil {
			tell()
		} else {
			defer context.AfterFunc(told, tell)()
		}
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
	err = inheritable(keep, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return syscall.Exec(path, args, env)
	})
	return fmt.Errorf("execute %s: %w", path, err)
}

// write makes the file for the next program.
func (s *state) write() (*os.File, error) {
	backend, locks, err := s.kept.marshal()
	if err != nil {
		return nil, err
	}
	s.Kept = backend
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
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q is no descriptor", stateEnv, value)
	}
	data, err := readAll(fd)
	if err != nil {
		return nil, fmt.Errorf("read the state of the earlier program: %w", err)
	}
	s := &state{}
	text, locks, _ := bytes.Cut(data, []byte("\n"))
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read the state of the earlier program: %w", err)
	}
	if !CanTakeOver(s.Version) {
		return nil, fmt.Errorf("the state of the earlier program has version %d, and this one knows %d to %d", s.Version, stateConnections, stateAdmin)
	}
	if err := s.kept.unmarshal(s.Kept, locks); err != nil {
		return nil, err
	}
	if err := s.kept.seal(); err != nil {
		return nil, fmt.Errorf("the locks of the earlier program: %w", err)
	}
	os.Unsetenv(stateEnv) // from here on nobody else can begin with it
	unix.Close(fd)
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
	if s.Back != 0 {
		if s.back, err = adopt(s.Back, "program"); err != nil {
			return nil, err
		}
	}
	s.given = &given{activated: s.Activated}
	if s.Admin != 0 {
		if s.given.admin, err = adopt(s.Admin, adminSocketName); err != nil {
			return nil, err
		}
	}
	if s.PID != 0 {
		s.given.pid = adoptPID(s.PID, s.PIDFile)
	}
	if s.Told != 0 {
		told, err := adopt(s.Told, "told")
		if err != nil {
			return nil, err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.Told), Events: unix.POLLIN}}, 0)
		var b [1]byte
		if err == nil && n == 1 {
			n, _ = unix.Read(s.Told, b[:]) // 0 at the end of a pipe that nobody has written to
			s.told = n == 1
		}
		told.Close()
	}
	if s.handovers, err = handoversOf(s.Connections, adopt); err != nil {
		return nil, err
	}
	if err := s.VirtAdmin.inherit(adopt); err != nil {
		return nil, err
	}
	return s, nil
}

// readAll reads a file of a known size, from its beginning, and leaves it open.
func readAll(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size > maxState {
		return nil, fmt.Errorf("it has %d bytes, and %d are the most", st.Size, maxState)
	}
	data := make([]byte, st.Size)
	for have := 0; have < len(data); {
		n, err := unix.Pread(fd, data[have:], int64(have))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return nil, io.ErrUnexpectedEOF
		}
		have += n
	}
	return data, nil
}
