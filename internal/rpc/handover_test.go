package rpc

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestHandover hands connections over to another server in all states they can
// be in; their clients notice nothing.
func TestHandover(t *testing.T) {
	s := startServer(t, Options{})
	s.l.SetUnlinkOnClose(false)
	ctx := context.Background()

	fresh := s.dial() // has never called anything
	if err := fresh.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	used := s.dial()
	for range 3 {
		if err := echo(used, "x"); err != nil {
			t.Fatal(err)
		}
	}
	busy := s.dial()
	done := make(chan error, 1)
	go func() { done <- busy.Call(ctx, 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered

	// One has sent a call, then a second one while the first is carried out, and
	// a part of a third one.
	pipelined := s.raw()
	block := appendMessage(nil, header{program: 77, version: 2, procedure: procBlock, serial: 1})
	finishMessage(block)
	second := appendMessage(nil, header{program: 77, version: 2, procedure: procNumber, serial: 2})
	finishMessage(second)
	third := appendMessage(nil, header{program: 77, version: 2, procedure: procNumber, serial: 3})
	finishMessage(third)
	if _, err := pipelined.Write(append(append(block, second...), third[:10]...)); err != nil {
		t.Fatal(err)
	}
	<-s.prog.entered

	result := make(chan []*Handover, 1)
	go func() {
		list, err := s.Handover(ctx)
		if err != nil {
			t.Error(err)
		}
		result <- list
	}()
	s.wantEnded(ServerStopped) // the one that was used
	close(s.prog.unblock)
	list := <-result
	if len(list) != 4 {
		t.Fatalf("%d connections were handed over", len(list))
	}
	if err := <-done; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if _, err := s.Handover(ctx); !errors.Is(err, ErrServerClosed) {
		t.Errorf("a second Handover: %v", err)
	}

	next := startServer(t, Options{MaxClients: 2})
	if err := next.Adopt(list); err != nil {
		t.Fatal(err)
	}
	if err := echo(fresh, "fresh"); err != nil {
		t.Error(err)
	}
	var n number
	if err := used.Call(ctx, 77, 2, procNumber, nil, &n); err != nil || n != 4 {
		t.Errorf("the session has had %d calls, %v", n, err)
	}
	if err := echo(busy, "busy"); err != nil {
		t.Error(err)
	}
	if _, err := pipelined.Write(third[10:]); err != nil {
		t.Fatal(err)
	}
	var replies [28 + 32 + 32]byte
	if _, err := io.ReadFull(pipelined, replies[:]); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]byte{23: 1, 28 + 23: 2, 28 + 31: 2, 60 + 23: 3, 60 + 31: 3} {
		if replies[i] != want {
			t.Errorf("byte %d of the replies is %d, want %d", i, replies[i], want)
		}
	}
	// Two of them have no slot; the limit is kept by those that come.
	for _, c := range []*Client{fresh, used, busy} {
		c.Close()
		next.wantEnded(PeerClosed)
	}
	pipelined.Close()
	next.wantEnded(PeerClosed)
	for range 5 {
		c := next.dial()
		if err := echo(c, "new"); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestHandoverCancelsWhatTakesTooLong(t *testing.T) {
	defer func(grace time.Duration) { handoverGrace = grace }(handoverGrace)
	handoverGrace = time.Minute // all that this machine may need, and not what is tested
	s := startServer(t, Options{})
	busy := s.dial()
	done := make(chan error, 1)
	go func() { done <- busy.Call(context.Background(), 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	list, err := s.Handover(ctx)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d connections, %v", len(list), err)
	}
	wantCode(t, <-done, CodeOperationFailed, "operation failed: cancelled")
	next := startServer(t, Options{})
	if err := next.Adopt(list); err != nil {
		t.Fatal(err)
	}
	if err := echo(busy, "again"); err != nil {
		t.Error(err)
	}
}

func TestAdoptFails(t *testing.T) {
	s := startServer(t, Options{})
	c := s.dial()
	if err := echo(c, "x"); err != nil {
		t.Fatal(err)
	}
	list, err := s.Handover(context.Background())
	if err != nil || len(list) != 1 {
		t.Fatalf("%d connections, %v", len(list), err)
	}
	list[0].Sessions[0].Program = 5
	next := startServer(t, Options{})
	if err := next.Adopt(list); err == nil {
		t.Error("a session of an unknown program was adopted")
	}
	if err := echo(c, "x"); !errors.Is(err, ErrBroken) {
		t.Errorf("the client: %v", err)
	}
}

// TestHandoverLosesNobody replaces the server again and again under clients
// that come, call and go, and under some that stay: no call fails.
func TestHandoverLosesNobody(t *testing.T) {
	s := startServer(t, Options{})
	s.l.SetUnlinkOnClose(false)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var calls atomic.Int64
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			var c *Client
			for n := 0; ; n++ {
				select {
				case <-stop:
					if c != nil {
						c.Close()
					}
					return
				default:
				}
				if c == nil {
					var err error
					if c, err = Dial(ctx, s.path); err != nil {
						t.Error(err)
						return
					}
				}
				if err := echo(c, strings.Repeat("x", n%6000)); err != nil {
					t.Errorf("call %d of client %d: %v", n, i, err)
					c.Close()
					return
				}
				calls.Add(1)
				if i%2 == 0 {
					c.Close()
					c = nil
				}
			}
		})
	}
	server, listener := s.Server, s.l
	served := make(chan error, 1)
	served <- ErrServerClosed // of the first server the cleanup of s waits
	for range 30 {
		for before := calls.Load(); calls.Load() < before+20 && !t.Failed(); {
			runtime.Gosched()
		}
		f, err := listener.File()
		if err != nil {
			t.Fatal(err)
		}
		list, err := server.Handover(ctx)
		if err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Error(err)
		}
		next := NewServer(Options{Programs: []Program{s.prog}})
		if listener, err = ListenerFromFile(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := next.Adopt(list); err != nil {
			t.Error(err)
		}
		go func() { served <- next.Serve(ctx, listener) }()
		server = next
	}
	close(stop)
	wg.Wait()
	if err := server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, ErrServerClosed) {
		t.Error(err)
	}
}
