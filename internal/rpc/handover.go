package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// Handover is a connection between two calls, with all that another Server, in
// this process or in the one that replaces it, needs to go on with it. The
// client notices nothing.
type Handover struct {
	ID    uint64 // of Connection; 0 if an earlier version gave none
	Since time.Time
	Peer  Peer
	// File is the socket, a descriptor of its own. Whoever has it closes it.
	File *os.File
	// Pending is what was received and not looked at: whole messages, or the
	// beginning of one.
	Pending []byte
	// Sessions is the state of each program's session that there is.
	Sessions []SessionState
}

// SessionState is what a Portable session is made of again.
type SessionState struct {
	Program, Version uint32
	State            []byte
}

// Portable is a Session that can be handed over. A connection with one that
// cannot is closed instead (ServerStopped).
type Portable interface {
	Session
	// Export returns what Restorer.RestoreSession needs. Ended(ServerStopped) is
	// called after it.
	Export() ([]byte, error)
}

// Restorer is a Program that can go on with exported sessions.
type Restorer interface {
	Program
	RestoreSession(Peer, []byte) (Session, error)
}

// handoverGrace is how long calls have to be answered once they are cancelled. A
// variable for tests.
var handoverGrace = time.Second

// Handover stops accepting like Shutdown, but does not close connections: it
// returns what Adopt needs to go on with them. It closes the listeners, so one
// that is to live on must have been duplicated (net.UnixListener.File) and told
// not to remove its file (SetUnlinkOnClose).
//
// A connection in the middle of a call is handed over when that call was
// answered. When ctx ends first, calls under way are cancelled and get
// handoverGrace more. The error says how many had not ended then: theirs are
// closed when they do.
func (s *Server) Handover(ctx context.Context) ([]*Handover, error) {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return nil, ErrServerClosed
	}
	s.handing = true
	s.lockedStop()
	s.mu.Unlock()

	defer s.cancelCalls()
	err := s.wait(ctx)
	if err != nil {
		s.cancelCalls()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), handoverGrace)
		defer cancel()
		err = s.wait(grace)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handing = false
	return s.handed, err
}

// Adopt goes on with connections that were handed over, also beyond MaxClients.
// It closes their files. One that fails is closed; the error says why, and the
// others go on.
func (s *Server) Adopt(list []*Handover) error {
	var errs []error
	s.mu.Lock()
	for _, h := range list {
		s.lastID = max(s.lastID, h.ID)
	}
	s.mu.Unlock()
	for _, h := range list {
		if err := s.adopt(h); err != nil {
			errs = append(errs, fmt.Errorf("connection of process %d: %w", h.Peer.PID, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) adopt(h *Handover) error {
	defer h.File.Close()
	nc, err := net.FileConn(h.File)
	if err != nil {
		return err
	}
	sock, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return fmt.Errorf("it is no unix socket but %T", nc)
	}
	c := newConn(s, sock, h.Peer)
	c.id = h.ID
	if !h.Since.IsZero() {
		c.since = h.Since
	}
	for _, state := range h.Sessions {
		if err := c.restore(state); err != nil {
			sock.Close()
			c.end(ServerStopped)
			return err
		}
	}
	c.preload = h.Pending
	c.place = s.places.try(false)
	s.start(c)
	return nil
}

func (c *conn) restore(state SessionState) error {
	at := c.srv.find(header{program: state.Program, version: state.Version})
	if at < 0 {
		return fmt.Errorf("program %#x version %d is not served any more", state.Program, state.Version)
	}
	r, ok := c.srv.programs[at].Program.(Restorer)
	if !ok {
		return fmt.Errorf("program %#x cannot restore a session", state.Program)
	}
	session, err := r.RestoreSession(c.peer, state.State)
	if err != nil {
		return err
	}
	if c.sessions == nil {
		c.sessions = make([]Session, len(c.srv.programs))
	}
	c.sessions[at] = session
	return nil
}

// handOver is called by c's goroutine when it stops between two calls.
func (s *Server) handOver(c *conn) {
	s.mu.Lock()
	handing := s.handing
	s.mu.Unlock()
	if !handing {
		return
	}
	h, err := c.export()
	if err != nil {
		s.log.Error("a connection could not be handed over and is closed", "pid", c.peer.PID, "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.handing { // Handover did not wait for this one
		h.File.Close()
		return
	}
	s.handed = append(s.handed, h)
}

func (c *conn) export() (*Handover, error) {
	h := &Handover{ID: c.id, Since: c.since, Peer: c.peer, Pending: append([]byte(nil), c.in.pending()...)}
	for i, session := range c.sessions {
		if session == nil {
			continue
		}
		p, ok := session.(Portable)
		if !ok {
			return nil, fmt.Errorf("program %#x has a session that cannot be handed over", c.srv.programs[i].id)
		}
		state, err := p.Export()
		if err != nil {
			return nil, err
		}
		h.Sessions = append(h.Sessions, SessionState{c.srv.programs[i].id, c.srv.programs[i].version, state})
	}
	var err error
	h.File, err = c.sock.File()
	return h, err
}
