package rpc

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// ids are those of all connections.
func (s *testServer) ids() (list []uint64) {
	for _, c := range s.Connections() {
		list = append(list, c.ID)
	}
	return list
}

func TestConnections(t *testing.T) {
	begin := time.Now()
	s := startServer(t, Options{LastID: 41})
	a, b := s.dial(), s.dial()
	for _, c := range []*Client{a, b} {
		if err := echo(c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	list := s.Connections()
	if len(list) != 2 || list[0].ID != 42 || list[1].ID != 43 || s.LastID() != 43 {
		t.Fatalf("%+v, last %d", list, s.LastID())
	}
	for _, c := range list {
		if c.Peer.PID != int32(os.Getpid()) || c.Since.Before(begin) || c.Since.After(time.Now()) {
			t.Errorf("%+v", c)
		}
		// What the kernel says of this process, where it has such labels at all.
		if label := c.Label(); strings.ContainsAny(label, "\x00\n") {
			t.Errorf("label %q", label)
		}
		if got, ok := s.Connection(c.ID); !ok || got != c {
			t.Errorf("%+v, %v", got, ok)
		}
	}
	if _, ok := s.Connection(44); ok {
		t.Error("there is a connection 44")
	}
	b.Close()
	s.wantEnded(PeerClosed)
	if err := echo(s.dial(), "x"); err != nil {
		t.Fatal(err)
	}
	if ids := s.ids(); len(ids) != 2 || ids[0] != 42 || ids[1] != 44 {
		t.Errorf("%v: an id was used again, or is missing", ids)
	}
	if label := list[1].Label(); label != "" {
		t.Errorf("a connection that has ended has label %q", label)
	}
}

func TestDisconnect(t *testing.T) {
	s := startServer(t, Options{})
	if s.Disconnect(1) {
		t.Error("somebody who is not there was disconnected")
	}
	idle := s.dial()
	if err := echo(idle, "x"); err != nil {
		t.Fatal(err)
	}
	if !s.Disconnect(s.ids()[0]) {
		t.Error("not disconnected")
	}
	s.wantEnded(Dismissed)
	if err := echo(idle, "x"); err == nil {
		t.Error("served after that")
	}
	// In the middle of a call, which goes on.
	busy := s.dial()
	done := make(chan error, 1)
	go func() { done <- busy.Call(context.Background(), 77, 2, procBlock, nil, nil) }()
	<-s.prog.entered
	id := s.ids()[0]
	for range 2 {
		if !s.Disconnect(id) {
			t.Error("not disconnected")
		}
	}
	if err := <-done; err == nil {
		t.Error("the call was answered")
	}
	select {
	case cause := <-s.prog.ended:
		t.Fatalf("the session ended during its call: %v", cause)
	default:
	}
	close(s.prog.unblock)
	s.wantEnded(Dismissed)
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("what somebody asked for is logged as an error:\n%s", s.log)
	}
}

// finishing ends its connections after a call of procNumber.
type finishing struct{ *testProgram }

func (f finishing) NewSession(p Peer) Session {
	return &finishingSession{testSession: testSession{p: f.testProgram}}
}

type finishingSession struct {
	testSession
	done bool
}

func (s *finishingSession) Call(ctx context.Context, procedure int32, args *Decoder, result *Encoder) error {
	s.done = procedure == procNumber
	return s.testSession.Call(ctx, procedure, args, result)
}

func (s *finishingSession) Finished() bool { return s.done }

func TestFinisher(t *testing.T) {
	p := newTestProgram()
	s := startServer(t, Options{Programs: []Program{finishing{p}}})
	s.prog = p
	c := s.dial()
	if err := echo(c, "x"); err != nil {
		t.Fatal(err)
	}
	var n number
	if err := c.Call(context.Background(), 77, 2, procNumber, nil, &n); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	s.wantEnded(PeerClosed)
	if err := echo(c, "x"); err == nil {
		t.Error("served after the end")
	}
}

// answered makes a call on c and sends what comes of it.
func (s *testServer) answered(c *Client) <-chan error {
	done := make(chan error, 1)
	go func() { done <- echo(c, "x") }()
	return done
}

// wantNoAnswer makes calls on another connection meanwhile, as waiting for
// something that must not happen needs an end.
func wantNoAnswer(t *testing.T, done <-chan error, other *Client) {
	t.Helper()
	for range 100 {
		if err := echo(other, "x"); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-done:
		t.Fatalf("served beyond the limit: %v", err)
	default:
	}
}

func TestSetMaxClients(t *testing.T) {
	s := startServer(t, Options{MaxClients: 10})
	first, second := s.dial(), s.dial()
	for _, c := range []*Client{first, second} {
		if err := echo(c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	// The server waits for a third one already, and has a place for it.
	s.SetMaxClients(2)
	if st := s.Stats(); st.MaxClients != 2 || st.Clients != 2 {
		t.Errorf("%+v", st)
	}
	third := s.answered(s.dial())
	wantNoAnswer(t, third, first)
	s.SetMaxClients(3)
	if err := <-third; err != nil {
		t.Fatal(err)
	}
	// Below what is there: nobody is cut off, and two have to leave before one comes.
	s.SetMaxClients(2)
	fourth := s.answered(s.dial())
	wantNoAnswer(t, fourth, first)
	second.Close()
	s.wantEnded(PeerClosed)
	wantNoAnswer(t, fourth, first)
	first.Close()
	if err := <-fourth; err != nil {
		t.Fatal(err)
	}
	// Never so low that nobody can change it again.
	s.SetMaxClients(0)
	if st := s.Stats(); st.MaxClients != 1 {
		t.Errorf("%+v", st)
	}
}

// TestLimitLoweredToTheReserve: who comes when the limit was lowered gets one of
// the few further places.
func TestLimitLoweredToTheReserve(t *testing.T) {
	s := startServer(t, Options{MaxClients: 10, Reserve: 1})
	if err := echo(s.dial(), "x"); err != nil {
		t.Fatal(err)
	}
	s.SetMaxClients(1)
	// testSession is not Limited, so it is told why it gets nothing.
	err := echo(s.dial(), "x")
	wantCode(t, err, CodeOperationFailed, "operation failed: the lock daemon serves 1 connections, which is its limit (max_clients)")
	s.SetMaxClients(2)
	if err := echo(s.dial(), "x"); err != nil {
		t.Fatal(err)
	}
}

// TestExtraPlaceBecomesOrdinary: the server waits for a connection with one of the few
// further places, and has a better one when it comes.
func TestExtraPlaceBecomesOrdinary(t *testing.T) {
	s := startServer(t, Options{MaxClients: 1, Reserve: 1})
	first := s.dial()
	if err := echo(first, "x"); err != nil {
		t.Fatal(err)
	}
	s.untilTaken(1, 1)
	s.SetMaxClients(2)
	second := s.dial()
	if err := echo(second, "x"); err != nil {
		t.Errorf("after the limit was raised: %v", err)
	}
	s.untilTaken(2, 1)
	first.Close()
	s.wantEnded(PeerClosed)
	s.untilTaken(1, 1)
	if err := echo(s.dial(), "x"); err != nil {
		t.Errorf("after somebody has left: %v", err)
	}
}

// untilTaken waits until so many places are taken, that of who comes next included.
func (s *testServer) untilTaken(ordinary, extra int) {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for {
		s.places.mu.Lock()
		taken := s.places.taken
		s.places.mu.Unlock()
		if taken == [2]int{ordinary, extra} {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			s.t.Fatalf("%v places are taken", taken)
		}
	}
}

// TestHandoverKeepsIDs: connections are the same ones in the next Server.
func TestHandoverKeepsIDs(t *testing.T) {
	s := startServer(t, Options{LastID: 6})
	a, b, c := s.dial(), s.dial(), s.dial()
	for _, c := range []*Client{a, b, c} {
		if err := echo(c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	before := s.Connections()
	c.Close()
	s.wantEnded(PeerClosed)
	list, err := s.Handover(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	// Of an earlier version, which knew no ids.
	at := 0
	if list[1].ID == 7 {
		at = 1
	}
	list[at].ID, list[at].Since = 0, time.Time{}
	next := startServer(t, Options{LastID: s.LastID()})
	if err := next.Adopt(list); err != nil {
		t.Fatal(err)
	}
	after := next.Connections()
	if len(after) != 2 || after[0].ID != 8 || !after[0].Since.Equal(before[1].Since) || after[1].ID != 10 || after[1].Since.IsZero() {
		t.Errorf("%+v became %+v", before, after)
	}
}
