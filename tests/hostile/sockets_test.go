package hostile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmlockd/vmlockd/internal/adminprogram"
	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// frame is a message of libvirt's RPC.
func frame(program uint32, procedure int32, typ uint32, payload []byte) []byte {
	b := make([]byte, 0, 28+len(payload))
	for _, v := range []uint32{uint32(28 + len(payload)), program, 1, uint32(procedure), typ, 1, 0} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return append(b, payload...)
}

// text is a string as XDR has it.
func text(s string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(s)))
	return append(append(b, s...), make([]byte, -len(s)&3)...)
}

func numbers(list ...uint32) (b []byte) {
	for _, n := range list {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// streams are what clients of an RPC server send that do most of what can be done, and what no client should.
func streams(program uint32, calls ...[]byte) [][]byte {
	all := join(calls...)
	huge := frame(program, 1, 0, nil)
	binary.BigEndian.PutUint32(huge, 33_554_436) // of which nothing comes
	return append(calls, all, bytes.Repeat(all, 20), all[:len(all)-3], huge, append(bytes.Clone(all), huge...),
		frame(0x6b656570, 1, 2, nil), // a keepalive
		frame(program, 1, 4, numbers(3)), frame(program, 99, 0, nil), frame(program+1, 1, 0, nil), frame(program, 1, 77, nil),
		numbers(27), numbers(0xffffffff), []byte("GET / HTTP/1.1\r\n\r\n"))
}

// FuzzLockSocket: whatever one client sends, others are served, and the locks of others stay.
func FuzzLockSocket(f *testing.F) {
	owner := func(pid uint32) []byte {
		return frame(lockprogram.ProgramNumber, lockprogram.ProcRegister, 0, join(make([]byte, 16), text("vm"), numbers(1, pid, 0)))
	}
	resource := func(procedure int32, flags uint32) []byte {
		return frame(lockprogram.ProgramNumber, procedure, 0, join(text("/space"), text("disk"), numbers(flags)))
	}
	for i, stream := range streams(lockprogram.ProgramNumber,
		owner(7), owner(uint32(os.Getpid())),
		frame(lockprogram.ProgramNumber, lockprogram.ProcCreateLockspace, 0, text("/space")),
		frame(lockprogram.ProgramNumber, lockprogram.ProcNew, 0, join(text("/other"), numbers(0))),
		resource(lockprogram.ProcCreateResource, 0), resource(lockprogram.ProcAcquireResource, 1), resource(lockprogram.ProcReleaseResource, 0),
		resource(lockprogram.ProcDeleteResource, 0), resource(lockprogram.ProcAcquireResource, 3),
		frame(lockprogram.ProgramNumber, lockprogram.ProcRestrict, 0, numbers(0))) {
		f.Add(stream, uint16(13*i))
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		m := newLocks(t)
		socket := serve(t, rpc.NewServer(rpc.Options{Programs: []rpc.Program{lockprogram.New(m)}}))
		// The name has no place in a message of the one who attacks, but for one that is found on purpose.
		mine := locking.Ref{Name: "/held by another, whose name nobody guesses"}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		other, err := lockprogram.Dial(ctx, socket)
		must(t, err)
		defer other.Close()
		must(t, other.Register(ctx, locking.Owner{PID: 7, ID: 1, Name: "another"}))
		must(t, other.CreateResource(ctx, mine))
		must(t, other.Acquire(ctx, mine, 0))
		bounded(t, socket, in, cut, func() {
			// It has the lock, so that it is refused: which is an answer.
			var e *rpc.Error
			if err := other.Acquire(ctx, mine, 0); !errors.As(err, &e) || e.Code != rpc.CodeResourceBusy {
				t.Errorf("another client asks for what it has: %v", err)
			}
		})
		must(t, other.Release(ctx, mine))
	})
}

// FuzzAdminSocket: whatever a client of the admin program sends, other clients of the program are served.
func FuzzAdminSocket(f *testing.F) {
	call := func(procedure int32, args ...[]byte) []byte {
		return frame(adminprogram.ProgramNumber, procedure, 0, join(args...))
	}
	calls := [][]byte{call(adminprogram.ProcConnectOpen, numbers(0)), call(adminprogram.ProcListServers, numbers(1, 0)), call(adminprogram.ProcGetLibVersion)}
	for procedure := range int32(20) {
		calls = append(calls, call(procedure, text("server"), numbers(1, 0)), call(procedure, text("server"), numbers(0, 2, 0)))
	}
	for i, stream := range streams(adminprogram.ProgramNumber, calls...) {
		f.Add(stream, uint16(13*i))
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		program := adminprogram.New(adminprogram.Options{Logging: &logging{}, SetTimeout: func(uint32) error { return nil }})
		s := rpc.NewServer(rpc.Options{Programs: []rpc.Program{program}})
		program.Add(&adminprogram.Server{Name: "server", Clients: unlimited{s}, MaxUnauth: 5, MayDisconnect: func(rpc.Connection) error {
			return errors.New("it stays")
		}})
		socket := serve(t, s)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		other, err := rpc.Dial(ctx, socket)
		must(t, err)
		defer other.Close()
		bounded(t, socket, in, cut, func() {
			if err := other.Call(ctx, adminprogram.ProgramNumber, adminprogram.Version, adminprogram.ProcGetLibVersion, nil, nil); err != nil {
				t.Errorf("another client asks for the version: %v", err)
			}
		})
	})
}

// unlimited is a server of which a client of the admin program cannot reduce the places, as it otherwise may.
type unlimited struct{ *rpc.Server }

func (unlimited) SetMaxClients(int) {}

// logging is a log that can be set to anything.
type logging struct {
	mu               sync.Mutex // guards what follows
	outputs, filters string
}

func (l *logging) Outputs() (string, int)    { return l.get(&l.outputs), 1 }
func (l *logging) SetOutputs(s string) error { return l.set(&l.outputs, s) }
func (l *logging) Filters() (string, int)    { return l.get(&l.filters), 1 }
func (l *logging) SetFilters(s string) error { return l.set(&l.filters, s) }

func (l *logging) get(p *string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *p
}

func (l *logging) set(p *string, s string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	*p = s
	return nil
}

// FuzzControlSocket: whatever one sends to the control API's socket, other operators are answered.
func FuzzControlSocket(f *testing.F) {
	get := func(path string) []byte { return []byte("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n") }
	post := func(path, body string) []byte {
		return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	for i, stream := range [][]byte{
		get("/v1/status"), get("/v1/holders?path=*"), get("/v1/who?path=/a"), get("/v1/refused"), get("/v1/identify?path=/a"),
		get("/v1/events?follow=true"), get("/v1/events?since=0"), post("/v1/release", `{"resource":"/a","force":true,"reason":"x"}`),
		post("/v1/drain", `{"reason":"x"}`), post("/v1/confirm-dead", `{"node":"3","reason":"x"}`), post("/v1/drain", "{")[:60],
		bytes.Repeat(get("/v1/status"), 20), []byte("GET /v1/status HTTP/1.0\r\n\r\n"), []byte("POST /v1/drain HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"),
		[]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"), []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		append([]byte("GET /"), bytes.Repeat([]byte("a"), 10000)...), {0x16, 3, 1, 0, 5}, []byte("\r\n\r\n\r\n"),
	} {
		f.Add(stream, uint16(7*i))
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		s := control.New(control.Options{Version: "1", Backend: "local", Node: "host", Locks: newLocks(t), Drain: &drain{}, Events: &control.Events{}})
		l, socket := listen(t)
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
		t.Cleanup(func() {
			client.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := errors.Join(s.Close(ctx), <-done); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		bounded(t, socket, in, cut, func() {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vmlockd/v1/status", nil)
			must(t, err)
			answer, err := client.Do(r)
			if err != nil {
				t.Errorf("another operator asks for the status: %v", err)
				return
			}
			defer answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Errorf("another operator asks for the status: %s", answer.Status)
			}
		})
	})
}

// drain is a control.Drainer without a host.
type drain struct {
	now atomic.Pointer[control.Drained]
}

func (d *drain) Drained() *control.Drained { return d.now.Load() }

func (d *drain) Drain(now *control.Drained) error {
	d.now.Store(now)
	return nil
}
