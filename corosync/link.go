package corosync

import (
	"context"
	"sync"
	"time"
)

// link keeps one connection to corosync at a time, for as long as it is open. Its own goroutine starts a session, waits
// for its end, says Down, and after a pause starts the next. A session that hangs is Down at once, and its end is
// waited for before the next begins.
type link struct {
	open func(deliver func(Event)) (Conn, error)
	opts Options
	q    *queue
	// ended, if there is one, is called when a connection has ended, before Down is said.
	ended func()

	stop     chan struct{} // closed by Close
	stopOnce sync.Once
	done     chan struct{} // closed when nothing of the link runs any more
	first    chan error    // gets the outcome of the first attempt

	mu  sync.Mutex // guards cur
	cur *session   // nil when down
}

func newLink(opts Options, open func(deliver func(Event)) (Conn, error)) *link {
	l := &link{
		open: open, opts: opts, stop: make(chan struct{}), done: make(chan struct{}), first: make(chan error, 1),
	}
	l.q = newQueue(opts.Queue, l.stop)
	return l
}

// start runs the link, and unless it is to connect in the background, waits for its first connection. If there is an
// error, the link is closed.
func (l *link) start(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(l.q.pump)
	wg.Go(l.run)
	go func() {
		wg.Wait()
		close(l.done)
	}()
	if l.opts.Background {
		return nil
	}
	var err error
	select {
	case err = <-l.first:
	case <-ctx.Done():
		err = ended(ctx, ErrNoAnswer)
	}
	if err != nil {
		l.end()
	}
	return err
}

func (l *link) run() {
	pause := l.opts.MinRetry
	for {
		began := time.Now()
		s := newSession(l)
		go s.run()
		select {
		case <-s.up:
			l.report(nil)
			select {
			case <-s.done:
			case <-s.hung:
			case <-l.stop:
			}
		case <-s.done:
		case <-s.hung:
		case <-l.stop:
		}
		l.giveUp(s)
		err := ErrNoAnswer
		select {
		case <-s.done:
			err = s.err
		default:
		}
		if l.ended != nil {
			l.ended()
		}
		if !l.stopping() {
			l.q.down(err)
			l.report(err)
		}
		<-s.done
		if l.ended != nil { // again: it may have heard something after all
			l.ended()
		}
		if time.Since(began) > 2*l.opts.MaxRetry {
			pause = l.opts.MinRetry
		}
		select {
		case <-time.After(pause):
		case <-l.stop:
			return
		}
		pause = min(2*pause, l.opts.MaxRetry)
	}
}

// report tells start, the first time.
func (l *link) report(err error) {
	select {
	case l.first <- err:
	default:
	}
}

// take makes a session the current one, unless it has been given up. The session calls it before it says Up, so that who
// hears that can send.
func (l *link) take(s *session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.given() {
		return false
	}
	l.cur = s
	return true
}

func (l *link) giveUp(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur = nil
	close(s.dead)
}

// current is the session that is up, or nil.
func (l *link) current() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur
}

func (l *link) stopping() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *link) end() { l.stopOnce.Do(func() { close(l.stop) }) }

// close ends the link and waits for the end of its goroutines, but not longer than ctx and Patience.
func (l *link) close(ctx context.Context) error {
	l.end()
	t := time.NewTimer(l.opts.Patience)
	defer t.Stop()
	select {
	case <-l.done:
		return nil
	case <-t.C:
		return ErrNoAnswer
	case <-ctx.Done():
		return ended(ctx, ErrNoAnswer)
	}
}
