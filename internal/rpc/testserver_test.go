package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testProgram is a Program for tests. Its procedures:
const (
	procEcho   int32 = 1 // returns the string that it gets
	procError  int32 = 2 // fails with that string
	procPanic  int32 = 3
	procBlock  int32 = 4 // tells entered, and waits for unblock or the context
	procNumber int32 = 5 // how many calls the session has had
	procBig    int32 = 6 // returns a megabyte
)

type testProgram struct {
	entered chan struct{}
	unblock chan struct{}
	ended   chan Cause
	maxArgs int
}

func newTestProgram() *testProgram {
	return &testProgram{
		entered: make(chan struct{}, 100),
		unblock: make(chan struct{}),
		ended:   make(chan Cause, 10000),
		maxArgs: 100_000,
	}
}

func (*testProgram) ID() (uint32, uint32)        { return 77, 2 }
func (p *testProgram) MaxArgs() int              { return p.maxArgs }
func (p *testProgram) NewSession(q Peer) Session { return &testSession{p: p} }

func (p *testProgram) RestoreSession(_ Peer, state []byte) (Session, error) {
	d := NewDecoder(state)
	return &testSession{p: p, calls: d.Uint32()}, nil
}

type testSession struct {
	p     *testProgram
	calls uint32
}

func (s *testSession) Ended(c Cause) {
	select {
	case s.p.ended <- c:
	default: // a benchmark, which does not ask
	}
}

func (s *testSession) Export() ([]byte, error) {
	e := NewEncoder(nil)
	e.Uint32(s.calls)
	return e.Bytes(), nil
}

func (s *testSession) Call(ctx context.Context, procedure int32, args *Decoder, result *Encoder) error {
	s.calls++
	switch procedure {
	case procEcho, procError:
		text := args.String(1 << 20)
		if !args.OK() {
			return ErrDecode
		}
		if procedure == procError {
			result.String("to be thrown away")
			return errors.New(string(text))
		}
		result.String(string(text))
	case procPanic:
		panic("told to")
	case procBlock:
		s.p.entered <- struct{}{}
		select {
		case <-s.p.unblock:
		case <-ctx.Done():
			return NewError(CodeOperationFailed, DomainRPC, "cancelled")
		}
	case procNumber:
		result.Uint32(s.calls)
	case procBig:
		result.String(strings.Repeat("x", 1<<20))
	default:
		return UnknownProcedure(procedure)
	}
	return nil
}

type text string

func (s *text) EncodeXDR(e *Encoder) { e.String(string(*s)) }
func (s *text) DecodeXDR(d *Decoder) { *s = text(d.String(maxString)) }

type number uint32

func (n *number) DecodeXDR(d *Decoder) { *n = number(d.Uint32()) }

type testServer struct {
	*Server
	t      testing.TB
	path   string
	prog   *testProgram
	log    *testenv.Log
	l      *net.UnixListener
	served chan error
}

func startServer(t testing.TB, o Options) *testServer {
	t.Helper()
	s := &testServer{t: t, prog: newTestProgram(), log: new(testenv.Log), served: make(chan error, 1)}
	s.path = filepath.Join(t.TempDir(), "sock")
	var err error
	if s.l, err = Listen(s.path); err != nil {
		t.Fatal(err)
	}
	if o.Programs == nil {
		o.Programs = []Program{s.prog}
	}
	o.Log = slog.New(slog.NewTextHandler(s.log, nil))
	s.Server = NewServer(o)
	go func() { s.served <- s.Serve(context.Background(), s.l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-s.served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		s.work.Wait()
	})
	return s
}

func (s *testServer) dial() *Client {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Dial(ctx, s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func echo(c *Client, in string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args, result := text(in), text("")
	if err := c.Call(ctx, 77, 2, procEcho, &args, &result); err != nil {
		return err
	}
	if string(result) != in {
		return fmt.Errorf("%q came back as %q", in, result)
	}
	return nil
}

// raw is a connection without a Client.
func (s *testServer) raw() *net.UnixConn {
	s.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func (s *testServer) wantEnded(want Cause) {
	s.t.Helper()
	select {
	case got := <-s.prog.ended:
		if got != want {
			s.t.Errorf("the session ended because: %v; want: %v", got, want)
		}
	case <-time.After(time.Minute):
		s.t.Fatal("the session does not end")
	}
}

func wantClosed(t testing.TB, c net.Conn) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	var ne net.Error
	if n != 0 || errors.As(err, &ne) && ne.Timeout() {
		t.Errorf("%d bytes, then %v; want a closed connection", n, err)
	}
}

func wantCode(t testing.TB, err error, code Code, message string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code || e.Message != message {
		t.Errorf("got %#v, want %d %q", err, code, message)
	}
}
