package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

const (
	// askTimeout bounds a question to dlm_controld. It answers within a few
	// milliseconds, unless it hangs or is busy stopping the lockspace.
	askTimeout = 400 * time.Millisecond
	// answerAge is how old an answer may be to be given again.
	answerAge = 200 * time.Millisecond
)

// answer is what dlm_controld said.
type answer struct {
	at     time.Time
	status controld.Status
	err    error // of package controld; ErrNoLockspace if it does not know the lockspace that this host uses
}

// asker asks dlm_controld how the cluster is: one question at a time for any
// number of waiting requests, and not again for a moment. It asks only what may
// be asked by a program that can be killed at any time (see package controld).
type asker struct {
	client *controld.Client // nil: nobody to ask
	ctx    context.Context  // ends with the backend
	work   *group

	mu     sync.Mutex // guards what follows
	name   string     // of the lockspace that this host is in; empty while it is in none
	last   answer
	flight chan struct{} // nil unless a question is under way; closed when it is answered
}

// get returns an answer that is not older than answerAge, or one to say that
// there was none before ctx ended.
func (a *asker) get(ctx context.Context) answer {
	if a.client == nil {
		return answer{at: time.Now(), status: controld.Status{Quorate: true}}
	}
	a.mu.Lock()
	if !a.last.at.IsZero() && time.Since(a.last.at) < answerAge {
		defer a.mu.Unlock()
		return a.last
	}
	if a.flight == nil {
		name := a.name
		if !a.work.start(func() { a.ask(name) }) {
			a.mu.Unlock()
			return answer{at: time.Now(), err: errStopping}
		}
		a.flight = make(chan struct{})
	}
	flight := a.flight
	a.mu.Unlock()
	select {
	case <-flight:
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.last
	case <-ctx.Done():
		return answer{at: time.Now(), err: controld.ErrNoAnswer}
	}
}

// joined says which lockspace this host is in from now on.
func (a *asker) joined(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.name != name {
		a.name, a.last = name, answer{}
	}
}

func (a *asker) ask(name string) {
	ctx, cancel := context.WithTimeout(a.ctx, askTimeout)
	defer cancel()
	status, err := a.client.Status(ctx)
	if err == nil && name != "" {
		// Not every failure here is one: the status is what counts.
		if known := a.client.Known(ctx, name); errors.Is(known, controld.ErrNoLockspace) {
			err = known
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = answer{at: time.Now(), status: status, err: err}
	close(a.flight)
	a.flight = nil
}

// group is goroutines that are waited for.
type group struct {
	mu     sync.Mutex // guards closed, and wg against a start during the wait
	closed bool
	wg     sync.WaitGroup
}

// start runs f on a goroutine of its own, or returns false after close.
func (g *group) start(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(f)
	return true
}

// close waits for all goroutines, and lets none begin.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
