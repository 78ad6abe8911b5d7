package daemon

import (
	"net"
	"os"

	"github.com/vmlockd/vmlockd/internal/adminprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// adminState is what a new program needs to go on with the admin socket, from
// stateAdmin on. A nil one is that of a first start.
type adminState struct {
	Socket      string
	Listener    int // descriptor
	Connections []connection
	LastID      uint64
	Limits      map[string]limits // by server

	listener  *os.File
	handovers []*rpc.Handover
}

// limits are those of a server's clients. What virt-admin has set lives on until the
// configuration says something else than it did then.
type limits struct {
	Configured int
	Clients    int
	Unauth     uint32
}

func limitsOf(s *adminprogram.Server, configured int) limits {
	clients, unauth := s.Limits()
	return limits{Configured: configured, Clients: clients, Unauth: unauth}
}

// clients is the limit of clients with what is configured now.
func (l limits) clients(configured int) int {
	if l.Configured != configured || l.Clients < 1 {
		return configured
	}
	return min(l.Clients, adminprogram.MaxMaxClients)
}

func (l limits) unauth(configured int) uint32 {
	if l.Configured != configured {
		return uint32(configured)
	}
	return l.Unauth
}

func (a *adminState) limits(server string) limits {
	if a == nil {
		return limits{}
	}
	return a.Limits[server]
}

func (a *adminState) lastID() uint64 {
	if a == nil {
		return 0
	}
	return a.LastID
}

func (a *adminState) connections() []*rpc.Handover {
	if a == nil {
		return nil
	}
	return a.handovers
}

// fds are the descriptors that the next program has to inherit. They get their
// numbers for it.
func (a *adminState) fds() (list []int) {
	if a == nil {
		return nil
	}
	a.Listener, a.Connections = int(a.listener.Fd()), nil
	list = append(list, a.Listener)
	for _, h := range a.handovers {
		c := connectionOf(h)
		a.Connections = append(a.Connections, c)
		list = append(list, c.FD)
	}
	return list
}

// inherit makes files of the descriptors.
func (a *adminState) inherit(adopt func(fd int, name string) (*os.File, error)) (err error) {
	if a == nil {
		return nil
	}
	if a.listener, err = adopt(a.Listener, a.Socket); err != nil {
		return err
	}
	a.handovers, err = handoversOf(a.Connections, adopt)
	return err
}

// close gives up what nobody goes on with.
func (a *adminState) close() {
	if a == nil {
		return
	}
	for _, h := range a.handovers {
		h.File.Close()
	}
	a.handovers = nil
	if a.listener != nil {
		a.listener.Close()
		a.listener = nil
	}
}

// adminState is what the earlier program has left of its admin socket, or nil.
func (s *state) adminState() *adminState {
	if s == nil {
		return nil
	}
	return s.VirtAdmin
}

// listenAdmin goes on with the admin listener, or makes one.
func (s *state) listenAdmin(path string) (*net.UnixListener, error) {
	if a := s.adminState(); a != nil {
		defer func() {
			a.listener.Close()
			a.listener = nil
		}()
		if a.Socket == path {
			return rpc.ListenerFromFile(a.listener)
		}
		if s.Admin == 0 && !s.Activated { // otherwise it is systemd's
			os.Remove(a.Socket) // the configuration names another one now
		}
	}
	return makeListener(path)
}
