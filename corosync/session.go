package corosync

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// minAgain and maxAgain are the pauses after ErrTryAgain.
	minAgain, maxAgain = time.Millisecond, 50 * time.Millisecond
	// maxStarting is how long corosync may say "try again" to one that wants to connect.
	maxStarting = 3 * time.Second
)

// session is one connection. Its goroutine alone calls it.
type session struct {
	l     *link
	term  int
	sends chan *sending
	up    chan struct{} // closed when connected; conn's fixed properties are set by then
	hung  chan struct{} // closed when a call takes too long
	dead  chan struct{} // closed when the link has given it up
	done  chan struct{} // closed at its end; err is set by then
	err   error

	hang       sync.Once
	self       Member
	maxMessage int
}

// sending is a message on its way to corosync.
type sending struct {
	ctx   context.Context
	data  []byte
	reply chan error // buffered
}

func newSession(l *link) *session {
	return &session{
		l: l, term: l.q.begin(), sends: make(chan *sending),
		up: make(chan struct{}), hung: make(chan struct{}), dead: make(chan struct{}), done: make(chan struct{}),
	}
}

func (s *session) run() {
	defer close(s.done)
	s.err = s.work()
}

// call makes a call of the library, and says so when it takes too long.
func (s *session) call(f func() error) error {
	t := time.AfterFunc(s.l.opts.Patience, func() { s.hang.Do(func() { close(s.hung) }) })
	defer t.Stop()
	return f()
}

// given says whether the link has given this session up.
func (s *session) given() bool {
	select {
	case <-s.dead:
		return true
	default:
		return false
	}
}

func (s *session) work() error {
	slow := false
	conn, err := s.connect(func(ev Event) {
		if slow {
			return
		}
		switch e := ev.(type) {
		case Message:
			if len(e.Data) > s.l.opts.MaxMessage {
				return
			}
		case Membership:
			e.sort()
		}
		if !s.l.q.push(s.term, ev) {
			slow = true
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = s.call(conn.Close) }()
	s.self = conn.Self()
	s.maxMessage = s.l.opts.MaxMessage
	cpg, _ := conn.(CPG)
	if cpg != nil {
		s.maxMessage = min(s.maxMessage, cpg.MaxMessage())
	}
	if !s.l.take(s) {
		return ErrDown
	}
	if !s.l.q.push(s.term, Up{Self: s.self}) {
		return ErrSlow
	}
	close(s.up)

	ready := conn.Ready()
	var pending *sending
	var again <-chan time.Time
	pause := minAgain
	for {
		sends := s.sends
		if pending != nil || cpg == nil {
			sends = nil
		}
		select {
		case <-s.dead:
			return ErrDown
		case _, ok := <-ready:
			if err := s.call(conn.Dispatch); err != nil && !errors.Is(err, ErrTryAgain) {
				return err
			}
			if !ok {
				return ErrDown
			}
			if slow {
				return ErrSlow
			}
			continue
		case pending = <-sends:
			pause = minAgain
		case <-again:
		}
		if pending.ctx.Err() != nil {
			pending.reply <- ended(pending.ctx, ErrTryAgain)
			pending = nil
			continue
		}
		err := s.call(func() error { return cpg.Send(pending.data) })
		if errors.Is(err, ErrTryAgain) {
			again = time.After(pause)
			pause = min(2*pause, maxAgain)
			continue
		}
		pending.reply <- err
		pending, again = nil, nil
		if errors.Is(err, ErrNotRunning) {
			return err
		}
	}
}

// connect opens the connection, and waits for a corosync that is starting.
func (s *session) connect(deliver func(Event)) (Conn, error) {
	began, pause := time.Now(), minAgain
	for {
		var conn Conn
		err := s.call(func() (err error) { conn, err = s.l.open(deliver); return })
		if !errors.Is(err, ErrTryAgain) || time.Since(began) > maxStarting {
			return conn, err
		}
		select {
		case <-time.After(pause):
		case <-s.dead:
			return nil, ErrDown
		}
		pause = min(2*pause, maxAgain)
	}
}
