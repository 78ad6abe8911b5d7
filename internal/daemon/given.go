package daemon

import (
	"fmt"
	"net"
	"os"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// given is what belongs to the process, whichever program it executes, and not to one
// instance.
type given struct {
	activated bool     // the listener of libvirt's socket is systemd's
	lock      *os.File // that socket, until somebody listens; else nil
	admin     *os.File // systemd's socket for virt-admin; nil if there is none
	pid       *pidFile
	// late are those who connected while the instance before was retiring; the next one serves them.
	late []*net.UnixConn
	// told is closed when the process is told to stop, and toldAgain has the signals after that; nil if nobody is.
	told      <-chan struct{}
	toldAgain <-chan os.Signal
}

// take takes what systemd has handed over, or the earlier program has left, and locks the pid
// file. What it has taken when it fails is still from's.
func take(from *state, c config.Config) (*given, error) {
	g := &given{}
	if from != nil && from.given != nil {
		g = from.given
	}
	if from.virtlockd() != nil { // it had them, and says which
		g.activated = forThisProcess()
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			os.Unsetenv(name)
		}
	}
	if from == nil {
		a, err := takeActivated()
		if err != nil {
			return g, err
		}
		g.lock, g.admin, g.activated = a.lock, a.admin, a.lock != nil
	}
	if c.Backend == config.BackendCluster && os.Geteuid() != 0 {
		return g, fmt.Errorf("backend \"cluster\" needs root, and this is a daemon of user %d: take backend = \"local\" for a session's virtual machines", os.Geteuid())
	}
	// Opening it once more, by another name, would end its lock when that is closed (fcntl(2)).
	if g.pid != nil && (g.pid.path == c.PIDFile || sameDir(g.pid.path, c.PIDFile)) && g.pid.current() {
		return g, nil
	}
	serves := func() error {
		if g.lock != nil || from != nil { // asking would be a client of our own
			return nil
		}
		return rpc.CanListen(c.Socket)
	}
	p, err := acquirePID(c.PIDFile, pidPatience, serves)
	if err != nil {
		return g, err
	}
	g.pid.release()
	g.pid = p
	return g, nil
}

// release is for the end of the process. g may be nil.
func (g *given) release() {
	if g != nil {
		g.pid.release()
	}
}

// listening is called when somebody listens on lock.
func (g *given) listening() {
	if g.lock != nil {
		g.lock.Close() // the listener is a duplicate
		g.lock = nil
	}
}

// give notes what the next program in this process is to have, and returns the descriptors.
func (s *state) give() (keep []int) {
	s.Activated, s.Admin, s.PID, s.PIDFile = false, 0, 0, ""
	g := s.given
	if g == nil {
		return nil
	}
	s.Activated = g.activated
	if g.admin != nil {
		s.Admin = int(g.admin.Fd())
		keep = append(keep, s.Admin)
	}
	if fd := g.pid.fd(); fd >= 0 {
		s.PID, s.PIDFile = fd, g.pid.path
		keep = append(keep, fd)
	}
	return keep
}

// adminListener is the socket that systemd has for virt-admin, each time as another
// descriptor, which the caller closes; nil if there is none. Who waits there has waited since
// systemd listens, and a restart in place keeps it.
func (i *instance) adminListener() (*net.UnixListener, error) {
	if i.given.admin == nil {
		return nil, nil
	}
	return rpc.ListenerFromFile(i.given.admin)
}
