package rpc

import (
	"context"
	"net"
	"sync/atomic"
	"time"
)

// between has f called by the goroutine of Serve while it is between two connections:
// none is accepted that is not known to the server yet, and none is until f returns. It
// reports false if that was not to be had: nothing serves, or ctx has ended, and then f
// may be called yet.
//
// It is for a server that serves one listener.
func (s *Server) between(ctx context.Context, f func(*net.UnixListener)) bool {
	s.mu.Lock()
	if s.stopped || len(s.listeners) != 1 {
		s.mu.Unlock()
		return false
	}
	done := make(chan bool, 1)
	s.asked = append(s.asked, askedBetween{f, done})
	for l := range s.listeners {
		_ = l.(*net.UnixListener).SetDeadline(time.Unix(1, 0)) // wakes it
	}
	s.mu.Unlock()
	select {
	case ok := <-done:
		return ok
	case <-ctx.Done():
		return false
	}
}

type askedBetween struct {
	f    func(*net.UnixListener)
	done chan<- bool // has room for the answer
}

// answerBetween is called by Serve when its deadline has passed.
func (s *Server) answerBetween(l *net.UnixListener) {
	s.mu.Lock()
	list := s.asked
	s.asked = nil
	_ = l.SetDeadline(time.Time{}) // before the lock is free: somebody may ask next
	s.mu.Unlock()
	for _, a := range list {
		a.f(l)
		a.done <- true
	}
}

// refuseBetween is called by Serve when it ends.
func (s *Server) refuseBetween() {
	s.mu.Lock()
	list := s.asked
	s.asked = nil
	s.mu.Unlock()
	for _, a := range list {
		a.done <- false
	}
}

// Retire stops the server for good if it has no connection and last says yes, which is
// called when no connection can come meanwhile: what connects then waits in the backlog
// of the listener, which it is given to look. It reports whether it stopped; last is not
// called any more when it has returned, be it as ctx ended.
func (s *Server) Retire(ctx context.Context, last func(*net.UnixListener) bool) (retired bool) {
	if s.Clients() > 0 {
		return false
	}
	var taken atomic.Bool // by who calls last, or by who gives up
	yes := make(chan bool, 1)
	asked := s.between(ctx, func(l *net.UnixListener) {
		if !taken.CompareAndSwap(false, true) {
			return
		}
		stop := s.Clients() == 0 && last(l)
		if stop {
			s.mu.Lock()
			s.lockedStop()
			s.mu.Unlock()
		}
		yes <- stop
	})
	if !asked && taken.CompareAndSwap(false, true) {
		return false
	}
	return <-yes
}

// Answers reports whether the server accepts connections: the goroutine that does so
// answers before ctx ends, or waits for one of as many clients as there may be to leave.
func (s *Server) Answers(ctx context.Context) bool {
	if s.Clients() >= s.Stats().MaxClients {
		return true
	}
	return s.between(ctx, func(*net.UnixListener) {})
}
