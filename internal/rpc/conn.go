package rpc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/internal/stack"
)

// maxKeptReply bounds, in bytes, the memory for replies that a connection keeps.
const maxKeptReply = 16 * 1024

// conn is one connection of a Server. Its goroutine owns everything in it but
// what mu guards.
type conn struct {
	srv  *Server
	sock *net.UnixConn
	peer Peer

	id    uint64    // what start gave, or an earlier Server
	since time.Time // when it was accepted

	in       inbound
	args     Decoder
	out      Encoder
	sessions []Session // by place in Server.programs; nil until the first call
	deadline time.Time // when a write that starts now would be given up
	preload  []byte    // to be received before all else
	place    place
	finished bool // the session that was called last wants the connection to end

	mu          sync.Mutex // guards interrupted, dismissed and the read deadline of sock
	interrupted bool       // no more calls: the read deadline has passed for good
	dismissed   bool       // somebody disconnected it
}

func newConn(s *Server, sock *net.UnixConn, peer Peer) *conn {
	c := &conn{srv: s, sock: sock, peer: peer, since: time.Now()}
	c.in = inbound{r: sock, limit: c.argsLimit, grow: c.takeBigSlot, shrunk: c.leaveBigSlot}
	return c
}

// serve takes calls until the connection ends, and cleans up.
func (c *conn) serve() {
	stack.GrowToLog()
	cause := Failed
	defer func() {
		if p := recover(); p != nil {
			c.logPanic(p)
		}
		c.sock.Close()
		if len(c.in.buf) > smallBuffer {
			c.in.shrunk()
		}
		c.srv.left(c)
		c.end(cause)
	}()
	cause = c.loop()
	if cause == ServerStopped {
		c.srv.handOver(c)
	}
}

// limited is what one connection too many is told.
func (c *conn) limited() error {
	switch c.place {
	case extra:
		return fmt.Errorf("the lock daemon serves %d connections, which is its limit (max_clients)", c.srv.places.max())
	case spare:
		return errors.New("the lock daemon has no descriptors left (LimitNOFILE of its service, RLIMIT_NOFILE)")
	}
	return nil
}

func (c *conn) loop() Cause {
	if err := c.in.preload(c.preload); err != nil {
		return c.readFailed(err)
	}
	c.preload = nil
	for {
		if c.isInterrupted() {
			return c.stopCause()
		}
		m, err := c.in.next()
		if err != nil {
			return c.readFailed(err)
		}
		if err := c.handle(m); err != nil {
			return c.writeFailed(err)
		}
		if c.finished {
			return PeerClosed
		}
	}
}

// handle answers one message.
func (c *conn) handle(m *message) error {
	switch {
	case m.isKeepalive():
		if m.procedure != keepalivePing {
			return nil
		}
		return c.send(header{program: keepaliveProgram, version: keepaliveVersion,
			procedure: keepalivePong, typ: typeMessage}, nil)
	case m.isCall():
		reply := m.header
		reply.typ, reply.status = typeReply, statusOK
		c.out.buf = appendMessage(c.out.buf[:0], reply)
		if err := c.call(m); err != nil {
			reply.status = statusError
			return c.send(reply, asError(err))
		}
		return c.flush()
	default:
		// A reply, an event or a part of a stream, none of which we asked for.
		return nil
	}
}

// call carries out one call and appends its result to c.out.
func (c *conn) call(m *message) error {
	at := c.srv.find(m.header)
	if at < 0 {
		return unknownProgram(m.header)
	}
	if m.status != statusOK {
		return unexpectedStatus(m.header)
	}
	if c.sessions == nil {
		c.sessions = make([]Session, len(c.srv.programs))
	}
	if c.sessions[at] == nil {
		session := c.srv.programs[at].NewSession(c.peer)
		if why := c.limited(); why != nil {
			l, ok := session.(Limited)
			if !ok {
				return NewError(CodeOperationFailed, DomainRPC, why.Error())
			}
			l.Limit(why)
		}
		c.sessions[at] = session
	}
	c.args.Reset(m.payload)
	err := c.sessions[at].Call(c.srv.calls, m.procedure, &c.args, &c.out)
	if f, ok := c.sessions[at].(Finisher); ok {
		c.finished = f.Finished()
	}
	return err
}

// find returns the place of the program that h is for, or -1.
func (s *Server) find(h header) int {
	for i := range s.programs {
		if s.programs[i].id == h.program && s.programs[i].version == h.version {
			return i
		}
	}
	return -1
}

// argsLimit is how much of a message's payload anybody will look at.
func (c *conn) argsLimit(h header) int {
	if i := c.srv.find(h); i >= 0 && h.isCall() {
		return c.srv.programs[i].maxArgs
	}
	return 0
}

// send sends a message instead of what c.out holds.
func (c *conn) send(h header, e *Error) error {
	c.out.buf = appendMessage(c.out.buf[:0], h)
	if e != nil {
		e.EncodeXDR(&c.out)
	}
	return c.flush()
}

// flush sends what c.out holds.
func (c *conn) flush() error {
	finishMessage(c.out.buf)
	// Setting a deadline costs as much as a small system call, so it is moved on
	// only when half of it is used up.
	if now := time.Now(); c.deadline.Sub(now) < c.srv.writeTimeout {
		c.deadline = now.Add(c.srv.writeTimeout * 3 / 2)
		if err := c.sock.SetWriteDeadline(c.deadline); err != nil {
			return err
		}
	}
	_, err := c.sock.Write(c.out.buf)
	if cap(c.out.buf) > maxKeptReply {
		c.out.buf = nil
	}
	return err
}

func (c *conn) writeFailed(err error) Cause {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.srv.log.Warn("a client was disconnected because it does not read its replies",
			"pid", c.peer.PID, "timeout", c.srv.writeTimeout)
		return PeerStuck
	}
	return c.ioFailed(err)
}

func (c *conn) readFailed(err error) Cause {
	switch {
	case c.isInterrupted():
		return c.stopCause()
	case errors.Is(err, io.EOF):
		return PeerClosed
	case errors.Is(err, io.ErrUnexpectedEOF):
		// Seen when a client is killed while it writes.
		return PeerClosed
	case errors.Is(err, errFraming), errors.Is(err, os.ErrDeadlineExceeded):
		c.srv.log.Warn("a client was disconnected because of what it sent", "pid", c.peer.PID, "err", err)
		return ProtocolError
	}
	return c.ioFailed(err)
}

func (c *conn) ioFailed(err error) Cause {
	if c.isInterrupted() {
		return c.stopCause()
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return PeerClosed
	}
	c.srv.log.Error("a connection failed", "pid", c.peer.PID, "err", err)
	return Failed
}

// end tells the sessions that the connection has ended.
func (c *conn) end(cause Cause) {
	defer func() {
		if p := recover(); p != nil {
			c.logPanic(p)
		}
	}()
	for _, s := range c.sessions {
		if s != nil {
			s.Ended(cause)
		}
	}
}

func (c *conn) logPanic(p any) {
	c.srv.log.Error("a bug: serving a client failed, its connection is closed",
		"pid", c.peer.PID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
}

// interrupt makes the connection end before the next call.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted = true
	// The only error is that it is closed already.
	_ = c.sock.SetReadDeadline(time.Unix(1, 0))
}

// dismiss closes the connection at once.
func (c *conn) dismiss() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted, c.dismissed = true, true
	c.sock.Close()
}

// stopCause is why the connection was interrupted.
func (c *conn) stopCause() Cause {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dismissed {
		return Dismissed
	}
	return ServerStopped
}

func (c *conn) isInterrupted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.interrupted
}

// setReadDeadline does nothing once the connection was interrupted.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.interrupted {
		_ = c.sock.SetReadDeadline(t)
	}
}

var errInterrupted = errors.New("interrupted")

// takeBigSlot waits until there is memory for a large message. That is not for
// long: who has a slot must be done in bigMessageTimeout.
func (c *conn) takeBigSlot() error {
	select {
	case c.srv.bigSlots <- struct{}{}:
	case <-c.srv.stopping:
		return errInterrupted
	}
	c.setReadDeadline(time.Now().Add(bigMessageTimeout))
	return nil
}

func (c *conn) leaveBigSlot() {
	<-c.srv.bigSlots
	c.setReadDeadline(time.Time{})
}
