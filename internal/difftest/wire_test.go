package difftest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// request is a message as a test wants it, right or wrong.
type request struct {
	program, version uint32
	procedure        int32
	typ, status      uint32
	payload          []byte
	zeros            int    // bytes of zero behind the payload, and part of it
	length           uint32 // what the length word says; 0 is the true length
	fds              int    // descriptors to pass along, each with its byte
}

// req is a well-formed call of the lock program.
func req(procedure int32, payload []byte) request {
	return request{program: lockprogram.ProgramNumber, version: 1, procedure: procedure, payload: payload}
}

// bytes is the message, but for the zeros.
func (r request) bytes(serial uint32) []byte {
	b := make([]byte, 28, 28+len(r.payload))
	length := r.length
	if length == 0 {
		length = uint32(28 + len(r.payload) + r.zeros)
	}
	for i, v := range []uint32{length, r.program, r.version, uint32(r.procedure), r.typ, serial, r.status} {
		binary.BigEndian.PutUint32(b[4*i:], v)
	}
	return append(b, r.payload...)
}

func (r request) String() string {
	p := fmt.Sprintf("%q", r.payload)
	if len(p) > 200 {
		p = fmt.Sprintf("%s... (%d bytes)", p[:200], len(r.payload))
	}
	if r.zeros > 0 {
		p = fmt.Sprintf("%s and %d bytes of zero", p, r.zeros)
	}
	return fmt.Sprintf("program %#x v%d procedure %d type %d status %d length %d fds %d payload %s",
		r.program, r.version, r.procedure, r.typ, r.status, r.length, r.fds, p)
}

// reply is what came back.
type reply struct {
	Program, Version uint32
	Procedure        int32
	Type             uint32
	Serial           uint32
	Status           uint32
	Payload          string // if Status is 0
	Error            rpc.Error
	Rest             int // bytes after the error
}

// outcome is all that came back for one request.
type outcome struct {
	Replies []reply
	Closed  bool
}

// ioTimeout is how long anything may take that must happen.
const ioTimeout = time.Minute

// conn is a connection to one of the daemons.
type conn struct {
	t      *testing.T
	d      *daemon
	c      *net.UnixConn
	r      *bufio.Reader // of c
	serial uint32
	closed bool
}

func (d *daemon) dial(t *testing.T) *conn {
	t.Helper()
	c, err := net.Dial("unix", d.socket)
	if err != nil {
		t.Fatalf("%s: %v", d.name, err)
	}
	t.Cleanup(func() { c.Close() })
	return &conn{t: t, d: d, c: c.(*net.UnixConn), r: bufio.NewReader(c)}
}

// expand puts the daemon's directory in the place of $D. Lengths in XDR would
// be wrong then, so it is done to strings before they are encoded.
func (d *daemon) expand(s string) string { return strings.ReplaceAll(s, "$D", d.dir) }

// sentinel is a procedure that does not exist: the answer to it says that
// everything before it was answered, or never will be.
const sentinel int32 = 0x5e47

// zeros is sent again and again: the race detector looks at every byte that is copied.
var zeros [1 << 20]byte

// do sends requests and a sentinel, and collects what comes before the answer to
// the sentinel.
func (c *conn) do(rs ...request) outcome {
	c.t.Helper()
	c.send(rs...)
	return c.collect()
}

// send is the first half of do, so that both daemons can be at work at once.
func (c *conn) send(rs ...request) {
	c.t.Helper()
	if c.closed {
		return
	}
	_ = c.c.SetDeadline(time.Now().Add(ioTimeout))
	var b []byte
	for _, r := range rs {
		c.serial++
		b = append(b, r.bytes(c.serial)...)
		if r.zeros == 0 && r.fds == 0 {
			continue
		}
		c.write(b)
		b = nil
		for left := r.zeros; left > 0; left -= min(left, len(zeros)) {
			c.write(zeros[:min(left, len(zeros))])
		}
		for range r.fds {
			c.writeFD()
		}
	}
	c.serial++
	c.write(append(b, req(sentinel, nil).bytes(c.serial)...))
}

// collect is the second half of do.
func (c *conn) collect() (o outcome) {
	c.t.Helper()
	for !c.closed {
		p, ok := c.read()
		switch {
		case !ok:
			c.closed = true
		case p.Procedure == sentinel && p.Serial == c.serial:
			return o
		default:
			o.Replies = append(o.Replies, p)
		}
	}
	o.Closed = true
	return o
}

// write ignores that the other side has closed: read says so.
func (c *conn) write(b []byte) {
	c.t.Helper()
	if _, err := c.c.Write(b); err != nil && !isClosed(err) {
		c.t.Fatalf("%s: write: %v", c.d.name, err)
	}
}

func (c *conn) writeFD() {
	c.t.Helper()
	_, _, err := c.c.WriteMsgUnix([]byte{0}, syscall.UnixRights(1), nil)
	if err != nil && !isClosed(err) {
		c.t.Fatalf("%s: sendmsg: %v", c.d.name, err)
	}
}

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// read returns false when the other side has closed.
func (c *conn) read() (reply, bool) {
	c.t.Helper()
	var head [28]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		if isClosed(err) {
			return reply{}, false
		}
		c.t.Fatalf("%s: read: %v", c.d.name, err)
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(head[4*i:]) }
	p := reply{Program: word(1), Version: word(2), Procedure: int32(word(3)), Type: word(4), Serial: word(5), Status: word(6)}
	payload := make([]byte, word(0)-28)
	if _, err := io.ReadFull(c.r, payload); err != nil {
		c.t.Fatalf("%s: read: %v", c.d.name, err)
	}
	if p.Status == 0 {
		p.Payload = string(payload)
		return p, true
	}
	d := rpc.NewDecoder(payload)
	p.Error.DecodeXDR(d)
	if !d.OK() {
		c.t.Fatalf("%s: an error that is cut short: %q", c.d.name, payload)
	}
	p.Rest = d.Remaining()
	for _, s := range []*string{&p.Error.Message, &p.Error.Str1, &p.Error.Str2, &p.Error.Str3} {
		*s = strings.ReplaceAll(*s, c.d.dir, "$D")
	}
	return p, true
}

// enc builds payloads; strings get the daemon's directory.
type enc struct {
	d *daemon
	*rpc.Encoder
}

func (d *daemon) enc() enc { return enc{d, rpc.NewEncoder(nil)} }

func (e enc) str(s string) enc { e.String(e.d.expand(s)); return e }
func (e enc) num(v uint32) enc { e.Uint32(v); return e }
func (e enc) uuid() enc        { e.Opaque([]byte("0123456789abcdef")); return e }
