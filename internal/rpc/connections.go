package rpc

import (
	"cmp"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Connection is one of a client, for who looks at a Server from outside.
type Connection struct {
	// ID is not used again, as long as Options.LastID is what the Server before had.
	ID    uint64
	Peer  Peer
	Since time.Time // when it was accepted
	sock  *net.UnixConn
}

// Label is the security context of the client, as SELinux or AppArmor call it, at
// the moment when it connected (SO_PEERSEC, unix(7)); "" if there is none or the
// connection has ended.
func (c Connection) Label() string {
	if c.sock == nil { // of a test
		return ""
	}
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return ""
	}
	var label string
	_ = raw.Control(func(fd uintptr) {
		label, err = unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_PEERSEC)
	})
	if err != nil {
		return ""
	}
	return strings.TrimRight(label, "\x00\n")
}

func (c *conn) connection() Connection {
	return Connection{ID: c.id, Peer: c.peer, Since: c.since, sock: c.sock}
}

// Connections returns all connections, the oldest first.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	list := make([]Connection, 0, len(s.conns))
	for _, c := range s.conns {
		list = append(list, c.connection())
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b Connection) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Connection returns the connection with that id, if there is one.
func (s *Server) Connection(id uint64) (Connection, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.conns[id]
	if !ok {
		return Connection{}, false
	}
	return c.connection(), true
}

// Disconnect closes a connection. What it has called for is carried out, but not
// answered. Its sessions are told Dismissed. It reports whether there is one with
// that id.
func (s *Server) Disconnect(id uint64) bool {
	s.mu.Lock()
	c, ok := s.conns[id]
	s.mu.Unlock()
	if !ok {
		return false
	}
	c.dismiss()
	return true
}

// SetMaxClients changes Options.MaxClients, for connections that are accepted from
// now on. n is 1 at least.
func (s *Server) SetMaxClients(n int) {
	s.places.setMax(max(n, 1))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warned = false
}

// LastID is the highest id that a connection has had.
func (s *Server) LastID() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastID
}
