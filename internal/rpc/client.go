package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// Marshaler is an argument or a result that knows how to encode itself.
type Marshaler interface{ EncodeXDR(*Encoder) }

// Unmarshaler is one that knows how to decode itself. Whether all of it was
// there is asked of the Decoder.
type Unmarshaler interface{ DecodeXDR(*Decoder) }

// Client is the client's end of a connection. Many goroutines may use it; their
// calls go one after the other.
type Client struct {
	sock net.Conn

	mu     sync.Mutex // is held during a call; guards what follows
	in     inbound
	answer Decoder
	out    Encoder
	serial uint32
	broken error // why no more calls are possible
}

// Dial connects to the server that listens at path. When its backlog is full it
// tries again until ctx ends.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return NewClient(c), nil
		}
		// A blocking connect would wait in this case; Go's never blocks.
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("dial unix %s: its backlog is full: %w", path, ctx.Err())
		}
	}
}

// NewClient makes a Client of a connection, which it owns from then on. It is a
// unix socket or a pipe to one.
func NewClient(sock net.Conn) *Client {
	return &Client{sock: sock, in: inbound{
		r:      sock,
		limit:  func(header) int { return maxMessage },
		grow:   func() error { return nil },
		shrunk: func() {},
	}}
}

// Peer is the process that made the server's socket.
func (c *Client) Peer() (Peer, error) {
	sock, ok := c.sock.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("peer credentials: %T is no unix socket", c.sock)
	}
	return PeerOf(sock)
}

// Close closes the connection, also under a call that is waiting.
func (c *Client) Close() error { return c.sock.Close() }

// ErrBroken is the base of the errors of a Client whose connection can no longer
// be used. The call that gets it first may have been carried out.
var ErrBroken = errors.New("rpc: the connection is broken")

// Call calls a procedure and waits for the answer. args and result may be nil.
// An *Error is the server's answer; after any other error the connection cannot
// be used any more, and the call may have been carried out or not.
func (c *Client) Call(ctx context.Context, program, version uint32, procedure int32, args Marshaler, result Unmarshaler) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	defer c.watch(ctx)()
	c.serial++
	h := header{program: program, version: version, procedure: procedure, typ: typeCall, serial: c.serial}
	err := c.roundTrip(h, args, result)
	if _, answered := err.(*Error); err == nil || answered {
		return err
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return c.fail(err)
}

// watch makes reading and writing fail when ctx ends, until the function that
// it returns is called.
func (c *Client) watch(ctx context.Context) (done func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.sock.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !stop() && c.broken == nil {
			// The deadline has passed or is about to be set, so this call was the last one.
			_ = c.fail(ctx.Err())
		}
	}
}

// fail notes that the connection cannot be used any more.
func (c *Client) fail(err error) error {
	c.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	c.sock.Close()
	return c.broken
}

func (c *Client) roundTrip(h header, args Marshaler, result Unmarshaler) error {
	c.out.buf = appendMessage(c.out.buf[:0], h)
	if args != nil {
		args.EncodeXDR(&c.out)
	}
	if err := c.flush(); err != nil {
		return err
	}
	m, err := c.next()
	if err != nil {
		return err
	}
	if m.program != h.program || m.version != h.version || m.procedure != h.procedure ||
		m.typ != typeReply || m.serial != h.serial {
		return fmt.Errorf("%w: the answer is to another call", errFraming)
	}
	d := &c.answer
	d.Reset(m.payload)
	switch m.status {
	case statusOK:
		if result != nil {
			result.DecodeXDR(d)
		}
	case statusError:
		e := new(Error)
		e.DecodeXDR(d)
		if d.OK() {
			return e
		}
	default:
		return fmt.Errorf("%w: a status of %d", errFraming, m.status)
	}
	if !d.OK() {
		return fmt.Errorf("%w: the answer is cut short", errFraming)
	}
	return nil
}

// next waits for something that is not about keepalive.
func (c *Client) next() (*message, error) {
	for {
		m, err := c.in.next()
		if err != nil || !m.isKeepalive() {
			return m, err
		}
		if m.procedure != keepalivePing {
			continue
		}
		c.out.buf = appendMessage(c.out.buf[:0], header{program: keepaliveProgram, version: keepaliveVersion,
			procedure: keepalivePong, typ: typeMessage})
		if err := c.flush(); err != nil {
			return nil, err
		}
	}
}

func (c *Client) flush() error {
	finishMessage(c.out.buf)
	if len(c.out.buf) > maxMessage {
		return fmt.Errorf("%w: a call of %d bytes", errFraming, len(c.out.buf))
	}
	_, err := c.sock.Write(c.out.buf)
	return err
}

// Ping asks the server for a sign of life, by libvirt's keepalive protocol.
func (c *Client) Ping(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	defer c.watch(ctx)()
	c.out.buf = appendMessage(c.out.buf[:0], header{program: keepaliveProgram, version: keepaliveVersion,
		procedure: keepalivePing, typ: typeMessage})
	if err := c.flush(); err != nil {
		return c.fail(err)
	}
	m, err := c.in.next()
	if err != nil {
		return c.fail(err)
	}
	if !m.isKeepalive() || m.procedure != keepalivePong {
		return c.fail(fmt.Errorf("%w: no pong", errFraming))
	}
	return nil
}
