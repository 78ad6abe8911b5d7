package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCalls(t *testing.T) {
	ctx := context.Background()
	s := startServer(t, Options{})
	c := s.dial()
	for _, n := range []int{0, 1, 100, smallBuffer - minMessage - 4, smallBuffer - minMessage, smallBuffer, 99_996} {
		if err := echo(c, strings.Repeat("x", n)); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	long := text(strings.Repeat("x", 99_997))
	wantCode(t, c.Call(ctx, 77, 2, procEcho, &long, nil), CodeRPC, "Unable to decode message payload")
	huge := text(strings.Repeat("x", 30_000_000))
	wantCode(t, c.Call(ctx, 77, 2, procEcho, &huge, nil), CodeRPC, "Unable to decode message payload")
	words := text("words")
	wantCode(t, c.Call(ctx, 77, 2, procError, &words, nil), CodeInternal, "internal error: words")
	wantCode(t, c.Call(ctx, 77, 2, 99, &words, nil), CodeRPC, "unknown procedure: 99")
	wantCode(t, c.Call(ctx, 77, 3, procEcho, &words, nil), CodeRPC, "Cannot find program 77 version 3")
	wantCode(t, c.Call(ctx, 1, 0, procEcho, &words, nil), CodeRPC, "Cannot find program 1 version 0")
	if err := c.Ping(ctx); err != nil {
		t.Error(err)
	}
	var n number
	if err := c.Call(ctx, 77, 2, procNumber, nil, &n); err != nil || n != 12 {
		t.Errorf("the session has had %d calls, %v", n, err)
	}
	big := text("")
	if err := c.Call(ctx, 77, 2, procBig, nil, &big); err != nil || len(big) != 1<<20 {
		t.Errorf("%d bytes, %v", len(big), err)
	}
	c.Close()
	s.wantEnded(PeerClosed)
	if err := echo(c, "x"); !errors.Is(err, ErrBroken) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed client: %v", err)
	}
}

func TestKeepaliveOnTheWire(t *testing.T) {
	s := startServer(t, Options{})
	c := s.raw()
	ping := appendMessage(nil, header{program: keepaliveProgram, version: 1, procedure: keepalivePing, typ: typeMessage, serial: 9})
	finishMessage(ping)
	// What follows a pong or a wrong version is not answered, so the second reply
	// is the one to the second ping.
	pong := bytes.Clone(ping)
	pong[15] = 2
	other := bytes.Clone(ping)
	other[11] = 2
	if _, err := c.Write(bytes.Join([][]byte{ping, pong, other, ping}, nil)); err != nil {
		t.Fatal(err)
	}
	want := appendMessage(nil, header{program: keepaliveProgram, version: 1, procedure: keepalivePong, typ: typeMessage})
	finishMessage(want)
	replies := make([]byte, 2*len(want))
	if _, err := io.ReadFull(c, replies); err != nil || !bytes.Equal(replies, append(want, want...)) {
		t.Errorf("%q, %v", replies, err)
	}
}

func TestMalformedMessageClosesTheConnection(t *testing.T) {
	s := startServer(t, Options{})
	for _, b := range []string{"\x00\x00\x00\x00", "\x00\x00\x00\x1b", "\x02\x00\x00\x05", "\xff\xff\xff\xff"} {
		c := s.raw()
		if _, err := c.Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
		wantClosed(t, c)
	}
	c := s.raw()
	m := testMessage(typeCall, nil)
	copy(m[4:], "\x00\x00\x00\x4d\x00\x00\x00\x02\x00\x00\x00\x05")
	m[27] = 0
	if _, err := c.Write(append(m, 0, 0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, c)
	s.wantEnded(ProtocolError)
}

func TestPanicEndsOnlyItsConnection(t *testing.T) {
	s := startServer(t, Options{})
	other := s.dial()
	if err := echo(other, "before"); err != nil {
		t.Fatal(err)
	}
	c := s.dial()
	if err := c.Call(context.Background(), 77, 2, procPanic, nil, nil); !errors.Is(err, ErrBroken) {
		t.Errorf("got %v", err)
	}
	s.wantEnded(Failed)
	if err := echo(other, "after"); err != nil {
		t.Error(err)
	}
	if log := s.log.String(); !strings.Contains(log, "told to") || !strings.Contains(log, "server_test.go") {
		t.Errorf("the log does not say where it failed:\n%s", log)
	}
}

func TestRefusedUser(t *testing.T) {
	s := startServer(t, Options{Allow: func(p Peer) bool { return p.UID == 12345 }})
	begin := time.Now()
	for range 20 {
		wantClosed(t, s.raw())
	}
	n := strings.Count(s.log.String(), "refused")
	if most := 1 + int(time.Since(begin)/logInterval); n < 1 || n > most {
		t.Errorf("%d lines in the log, want 1 to %d:\n%s", n, most, s.log)
	}
	if st := s.Stats(); st.Refused != 20 || st.MaxClients != DefaultMaxClients || st.Clients != 0 {
		t.Errorf("%+v", st)
	}
	if SameUserOrRoot(Peer{UID: 12345}) || !SameUserOrRoot(Peer{UID: 0}) {
		t.Error("SameUserOrRoot")
	}
}

func TestStuckClientStallsNobody(t *testing.T) {
	// Longer than this process may have to wait for a processor in the middle of a reply.
	s := startServer(t, Options{WriteTimeout: 3 * time.Second})
	// One is in a call, one has sent half a message, one more a large part of a
	// large one, and one never reads.
	blocked := s.dial()
	done := make(chan error, 1)
	go func() { done <- blocked.Call(context.Background(), 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered
	half := s.raw()
	if _, err := half.Write(testMessage(typeCall, []byte("text"))[:29]); err != nil {
		t.Fatal(err)
	}
	large := s.raw()
	m := testMessage(typeCall, make([]byte, 50_000))
	copy(m[4:], "\x00\x00\x00\x4d\x00\x00\x00\x02")
	if _, err := large.Write(m[:40_000]); err != nil {
		t.Fatal(err)
	}
	deaf := s.raw()
	b := appendMessage(nil, header{program: 77, version: 2, procedure: procBig})
	finishMessage(b)
	if _, err := deaf.Write(bytes.Repeat(b, 10)); err != nil {
		t.Fatal(err)
	}
	c := s.dial()
	for i := range 100 {
		if err := echo(c, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	s.wantEnded(PeerStuck)
	close(s.prog.unblock)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLimitOfClients(t *testing.T) {
	s := startServer(t, Options{MaxClients: 10})
	var clients []*Client
	for range 10 {
		c := s.dial()
		if err := echo(c, "x"); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	if !strings.Contains(s.log.String(), "limit of clients is near") {
		t.Errorf("the log does not warn:\n%s", s.log)
	}
	// One more is connected by the kernel, and waits for an answer.
	late := s.dial()
	done := make(chan error, 1)
	go func() { done <- echo(late, "late") }()
	for i := range 100 {
		if err := echo(clients[i%10], "x"); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-done:
		t.Fatalf("a client beyond the limit was served: %v", err)
	default:
	}
	clients[3].Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s.Clients() > 10 {
		t.Errorf("%d clients", s.Clients())
	}
	if !strings.Contains(s.log.String(), "limit of clients is reached") {
		t.Errorf("the log does not say that the limit was reached:\n%s", s.log)
	}
}

func TestShutdown(t *testing.T) {
	s := startServer(t, Options{})
	idle := s.dial()
	if err := echo(idle, "x"); err != nil {
		t.Fatal(err)
	}
	busy := s.dial()
	done := make(chan error, 1)
	go func() { done <- busy.Call(context.Background(), 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(context.Background()) }()
	s.wantEnded(ServerStopped) // the idle one
	select {
	case err := <-stopped:
		t.Fatalf("Shutdown did not wait for the call: %v", err)
	default:
	}
	close(s.prog.unblock)
	if err := <-done; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	s.wantEnded(ServerStopped)
	if _, err := net.Dial("unix", s.path); err == nil {
		t.Error("the socket still takes connections")
	}
}

func TestShutdownCancelsCalls(t *testing.T) {
	s := startServer(t, Options{})
	busy := s.dial()
	done := make(chan error, 1)
	go func() { done <- busy.Call(context.Background(), 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-done; err == nil {
		t.Error("the call succeeded")
	}
	s.wantEnded(ServerStopped)
}

func TestServeEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}
