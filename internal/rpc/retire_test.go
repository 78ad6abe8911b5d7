package rpc

import (
	"context"
	"net"
	"testing"
	"time"
)

// TestRetire: a server with a client does not; one without asks last, and then either
// goes on as if nothing had been, or has stopped.
func TestRetire(t *testing.T) {
	s := startServer(t, Options{})
	asked := 0
	answer := func(yes bool) func(*net.UnixListener) bool {
		return func(l *net.UnixListener) bool {
			asked++
			if l != s.l {
				t.Error("last was given another listener")
			}
			return yes
		}
	}
	c := s.dial()
	if err := echo(c, "x"); err != nil {
		t.Fatal(err)
	}
	if s.Retire(t.Context(), answer(true)) || asked != 0 {
		t.Fatalf("it retired with a client, or asked (%d)", asked)
	}
	c.Close()
	waitFor(t, "the client to leave", func() bool { return s.Clients() == 0 })
	if s.Retire(t.Context(), answer(false)) || asked != 1 {
		t.Fatalf("it retired although last said no, or did not ask (%d)", asked)
	}
	if !s.Answers(t.Context()) {
		t.Error("it does not answer")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // either is right, and nothing between
		before := asked
		if s.Retire(ended, answer(false)) || asked > before+1 {
			t.Fatal("it retired although last said no")
		}
	}
	c = s.dial()
	if err := echo(c, "x"); err != nil {
		t.Fatalf("after a no it does not go on: %v", err)
	}
	c.Close()
	waitFor(t, "the client to leave", func() bool { return s.Clients() == 0 })
	if !s.Retire(t.Context(), answer(true)) {
		t.Fatal("it did not retire")
	}
	if s.Retire(t.Context(), answer(true)) || s.Answers(t.Context()) {
		t.Error("a server that has stopped answers")
	}
	if n := s.Stats().Accepted; n != 2 {
		t.Errorf("%d connections were accepted", n)
	}
}

// TestRetireLosesNobody: whoever connects while it retires is served, or waits in the
// backlog, which last can see.
func TestRetireLosesNobody(t *testing.T) {
	s := startServer(t, Options{})
	waitFor(t, "the server to serve", func() bool { return s.Answers(t.Context()) })
	var late net.Conn
	last := func(*net.UnixListener) bool {
		var err error
		if late, err = net.Dial("unix", s.path); err != nil {
			t.Error(err)
		}
		return false // it has seen it
	}
	if s.Retire(t.Context(), last) || late == nil {
		t.Fatal("it retired")
	}
	defer late.Close()
	waitFor(t, "the late client to be served", func() bool { return s.Clients() == 1 })
}

// waitFor waits for something that is going to happen.
func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
