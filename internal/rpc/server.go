package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Defaults and bounds of Options.
const (
	DefaultMaxClients   = 4096
	DefaultWriteTimeout = 10 * time.Second

	// bigMessageTimeout is how long a client may take over a message that is
	// larger than smallBuffer, from the moment memory was set aside for it.
	bigMessageTimeout = 30 * time.Second
	// bigMemory bounds, in bytes, the memory for such messages of all clients.
	bigMemory = 32 << 20
)

// Options are for NewServer. Only Programs must be set.
type Options struct {
	Programs []Program
	// MaxClients is how many connections are served at once. Others wait in the
	// listener's backlog until one of them ends. 0 means DefaultMaxClients.
	MaxClients int
	// Reserve is how many further connections are served, with Limited sessions,
	// when there are MaxClients or when descriptors have run out.
	Reserve int
	// WriteTimeout is how long a client may leave no room for a reply before its
	// connection is closed; it may be half as long again. 0 means
	// DefaultWriteTimeout.
	WriteTimeout time.Duration
	// Allow says who is served. nil means SameUserOrRoot. Others are
	// disconnected at once.
	Allow func(Peer) bool
	// LastID is the highest id that a client of an earlier Server has had: see
	// Server.LastID.
	LastID uint64
	// Log may be nil.
	Log *slog.Logger
}

// Server serves programs to the clients of any number of listeners.
type Server struct {
	programs     []program
	allow        func(Peer) bool
	log          *slog.Logger
	writeTimeout time.Duration

	places places // for connections
	spares spares // descriptors for connections when there are no others
	// descriptors is how many this process may have, 0 if that is not known.
	descriptors uint64
	bigSlots    chan struct{} // one for each large message that may be in memory
	refused     occasionally
	failing     occasionally
	full        occasionally
	scarce      occasionally
	counts      counts

	calls       context.Context // ends when calls under way shall give up
	cancelCalls context.CancelFunc
	stopping    chan struct{}  // closed when no more calls are taken
	work        sync.WaitGroup // every Serve and every connection

	mu        sync.Mutex // guards what follows
	stopped   bool
	listeners map[net.Listener]struct{}
	conns     map[uint64]*conn // by id
	lastID    uint64
	warned    bool // that the number of clients is close to the limit
	handing   bool // Handover is waiting for connections
	handed    []*Handover
	asked     []askedBetween
}

// program is a Program with what does not change about it.
type program struct {
	Program
	id, version uint32
	maxArgs     int
}

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("rpc: the server is closed")

// NewServer makes a Server that waits for Serve.
func NewServer(o Options) *Server {
	if o.MaxClients <= 0 {
		o.MaxClients = DefaultMaxClients
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = DefaultWriteTimeout
	}
	if o.Allow == nil {
		o.Allow = SameUserOrRoot
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		allow:        o.Allow,
		log:          o.Log,
		writeTimeout: o.WriteTimeout,
		places:       places{limit: o.MaxClients, few: o.Reserve},
		stopping:     make(chan struct{}),
		listeners:    map[net.Listener]struct{}{},
		conns:        map[uint64]*conn{},
		lastID:       o.LastID,
	}
	s.spares.taken = make(chan struct{}, o.Reserve)
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		s.descriptors = limit.Cur
	}
	largest := smallBuffer
	for _, p := range o.Programs {
		id, version := p.ID()
		s.programs = append(s.programs, program{p, id, version, p.MaxArgs()})
		largest = max(largest, minMessage+4+p.MaxArgs())
	}
	s.bigSlots = make(chan struct{}, max(bigMemory/largest, 1))
	s.calls, s.cancelCalls = context.WithCancel(context.Background())
	return s
}

// Clients is the number of connections.
func (s *Server) Clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Serve takes connections from l until ctx ends or Shutdown is called, and
// closes l. It returns nil when ctx has ended, ErrServerClosed after Shutdown,
// and any other error only if l is of no use any more. Connections go on after
// it has returned.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	defer l.Close()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.work.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		s.refuseBetween()
		s.work.Done()
	}()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()

	s.spares.fill()
	defer s.spares.drop()
	for {
		place := s.takePlace(ctx)
		if place == noPlace {
			return s.serveResult(ctx, nil)
		}
		c, err := l.AcceptUnix()
		if outOfDescriptors(err) && s.spares.give() {
			// With those that were kept back, who wants to release something can.
			c, err = l.AcceptUnix()
			if err == nil {
				s.places.leave(place)
				place = spare
				s.spares.taken <- struct{}{}
			} else {
				s.spares.fill()
			}
		}
		if err != nil {
			s.places.leave(place)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				s.answerBetween(l)
				continue
			}
			if errors.Is(err, net.ErrClosed) || !s.acceptAgain(ctx, err) {
				return s.serveResult(ctx, err)
			}
			continue
		}
		switch {
		case place == ordinary && !s.places.within():
			// The limit was lowered while this loop waited for a connection. Without
			// a place it is closed, or handed over.
			s.places.leave(place)
			place = s.takePlace(ctx)
		case place == extra && s.places.try(false) == ordinary:
			// It was raised meanwhile, or somebody has left.
			s.places.leave(place)
			place = ordinary
		}
		s.accepted(c, place)
	}
}

func (s *Server) serveResult(ctx context.Context, err error) error {
	select {
	case <-s.stopping:
		return ErrServerClosed
	default:
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accepting connections: %w", err)
}

// takePlace waits until one more connection may exist. It returns noPlace if there
// will not be another one.
func (s *Server) takePlace(ctx context.Context) place {
	if got := s.places.try(false); got != noPlace {
		return got
	}
	s.full.do(func(since int) {
		s.log.Warn("the limit of clients is reached: a few more can release what they hold, others wait until one leaves",
			"max_clients", s.places.max(), "few", s.places.few, "times", since)
	})
	return s.places.take(ctx, s.stopping)
}

// acceptAgain says whether a failed accept is worth another try, after a pause:
// most of its errors are about the one connection, or about memory and
// descriptors that somebody may give back (accept(2)).
func (s *Server) acceptAgain(ctx context.Context, err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	pause := 50 * time.Millisecond
	switch errno {
	case syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP, syscall.EFAULT:
		return false
	case syscall.ECONNABORTED, syscall.EINTR:
		pause = 0
	}
	s.counts.failures.Add(1)
	s.failing.do(func(since int) {
		s.log.Error("a connection cannot be accepted", "err", err, "times", since)
	})
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stopping:
	case <-ctx.Done():
	}
	return false
}

// ServeConn serves a connection that a listener of nobody's any more has accepted, as Serve does. It waits
// for nothing: where there is no place for it, c is closed.
func (s *Server) ServeConn(c *net.UnixConn) {
	if got := s.places.try(true); got != noPlace {
		s.accepted(c, got)
	} else {
		c.Close()
	}
}

// accepted starts to serve c, for which a place was taken.
func (s *Server) accepted(c *net.UnixConn, in place) {
	peer, err := PeerOf(c)
	if err != nil || !s.allow(peer) {
		s.counts.refused.Add(1)
		c.Close()
		s.leavePlace(in)
		s.refused.do(func(since int) {
			s.log.Warn("a client was refused: only root and the daemon's own user are served",
				"uid", peer.UID, "pid", peer.PID, "err", err, "times", since)
		})
		return
	}
	s.counts.accepted.Add(1)
	s.log.Debug("a client has connected", "pid", peer.PID, "uid", peer.UID)
	s.warnOfDescriptors(c)
	nc := newConn(s, c, peer)
	nc.place = in
	s.start(nc)
}

// leavePlace is told that a connection is closed.
func (s *Server) leavePlace(p place) {
	switch p {
	case ordinary, extra:
		s.places.leave(p)
	case spare:
		<-s.spares.taken
		s.spares.fill()
	}
}

// start runs c in a goroutine of its own.
func (s *Server) start(c *conn) {
	s.mu.Lock()
	if s.handing {
		// It was accepted just before the listener was closed, and must not be lost.
		c.interrupt()
	} else if s.stopped {
		s.mu.Unlock()
		c.sock.Close()
		s.leavePlace(c.place)
		c.end(ServerStopped)
		return
	}
	if c.id == 0 || s.conns[c.id] != nil {
		s.lastID++
		c.id = s.lastID
	}
	s.conns[c.id] = c
	s.work.Add(1)
	n, limit := len(s.conns), s.places.max()
	warn := !s.warned && n >= nearLimit(limit)
	s.warned = s.warned || warn
	s.mu.Unlock()
	if warn {
		s.log.Warn("the limit of clients is near", "clients", n, "max_clients", limit)
	}
	go func() {
		defer s.work.Done()
		c.serve()
	}()
}

// left is told by c that its socket is closed.
func (s *Server) left(c *conn) {
	s.mu.Lock()
	delete(s.conns, c.id)
	if len(s.conns) < nearLimit(s.places.max())*8/9 {
		s.warned = false
	}
	s.mu.Unlock()
	s.log.Debug("the connection of a client has ended", "pid", c.peer.PID, "uid", c.peer.UID)
	s.leavePlace(c.place)
}

// nearLimit is the number of clients from which on the log warns.
func nearLimit(limit int) int { return max(limit-limit/10, 1) }

// Shutdown stops accepting, lets calls under way end and be answered, and
// closes all connections. When ctx ends first it cancels the calls, cuts the
// connections, and returns an error without waiting for them any longer.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.lockedStop()
	s.mu.Unlock()

	defer s.cancelCalls()
	err := s.wait(ctx)
	if err != nil {
		s.cancelCalls()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.conns {
			c.sock.Close()
		}
	}
	return err
}

// wait returns nil when all connections have ended, or an error when ctx has.
func (s *Server) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("rpc: calls of %d clients have not ended: %w", s.Clients(), ctx.Err())
	}
}

// lockedStop makes all listeners and connections stop.
func (s *Server) lockedStop() {
	if !s.stopped {
		s.stopped = true
		close(s.stopping)
	}
	for l := range s.listeners {
		l.Close()
	}
	for _, c := range s.conns {
		c.interrupt()
	}
}
