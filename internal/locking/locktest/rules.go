package locktest

import (
	"context"
	"sync"
)

// rule is what is to happen to calls that match.
type rule struct {
	match func(Call) bool
	times int // how many calls more; negative means all
	err   error
	gate  *Gate
}

// On matches calls of one operation on one resource: an ID for Lock and Unlock,
// a name or, for CreateLockspace, a path for the others. "" matches all.
func On(op Op, what string) func(Call) bool {
	return func(c Call) bool {
		if c.Op != op {
			return false
		}
		switch {
		case what == "":
			return true
		case op == OpLock || op == OpUnlock:
			return c.ID == what
		case op == OpCreateLockspace:
			return c.Ref.Lockspace == what
		}
		return c.Ref.Name == what
	}
}

// Fail makes the next calls that match fail with err, this many times.
func (b *Backend) Fail(match func(Call) bool, err error, times int) {
	b.addRule(&rule{match: match, times: times, err: err})
}

// Block makes calls that match wait at a Gate until it is opened.
func (b *Backend) Block(match func(Call) bool) *Gate {
	g := &Gate{arrived: make(chan Call, 1024), opened: make(chan struct{})}
	b.addRule(&rule{match: match, times: -1, gate: g})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gates = append(b.gates, g)
	return g
}

func (b *Backend) addRule(r *rule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = append(b.rules, r)
}

// match uses up one time of the first rule that matches.
func (b *Backend) match(c Call) *rule {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rules {
		if r.times == 0 || !r.match(c) || r.gate != nil && r.gate.isOpen() {
			continue
		}
		if r.times > 0 {
			r.times--
		}
		return r
	}
	return nil
}

// OpenAll opens all gates.
func (b *Backend) OpenAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.gates {
		g.Open()
	}
}

// Forget removes all rules. Calls that wait at a gate go on waiting.
func (b *Backend) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = nil
}

// Gate is where calls wait.
type Gate struct {
	arrived chan Call
	opened  chan struct{}
	once    sync.Once
	err     error // set before opened is closed
	deaf    bool
}

// Deaf makes calls at the gate not notice that their context ended, as a kernel
// that answers when it likes. Call it before any call arrives.
func (g *Gate) Deaf() *Gate {
	g.deaf = true
	return g
}

// Arrived waits for a call at the gate.
func (g *Gate) Arrived() Call { return <-g.arrived }

// Open lets all calls go on, those that come later too.
func (g *Gate) Open() { g.OpenWith(nil) }

// OpenWith makes the calls that wait fail with err, unless it is nil. Calls that
// come later pass.
func (g *Gate) OpenWith(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.opened)
	})
}

func (g *Gate) isOpen() bool {
	select {
	case <-g.opened:
		return true
	default:
		return false
	}
}

func (g *Gate) arrive(c Call) {
	select {
	case g.arrived <- c:
	default: // nobody counts that many
	}
}

func (g *Gate) patience(ctx context.Context) <-chan struct{} {
	if g.deaf {
		return nil
	}
	return ctx.Done()
}
