package guard

import (
	"errors"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// held is a process that owns locks and is not stopped.
type held struct {
	proc Process
	seen uint64 // the step at which it was an owner last
}

// hold keeps every owner open, so that it can be stopped also when descriptors have run out.
// Only the goroutine of Run calls it. Opening 10,000 takes a while, so nobody waits for that.
func (g *Guard) hold(owners []Owner) {
	g.steps++
	var missing []Owner
	g.mu.Lock()
	if g.lockedMode() == Fencing {
		owners = nil // nobody is stopped
	}
	for _, o := range owners {
		key := ownerKey{o.PID, o.Start}
		if h := g.held[key]; h != nil {
			h.seen = g.steps
		} else if _, ok := g.unopened[key]; o.Start != 0 && !ok && g.frozen[key] == nil {
			missing = append(missing, o)
		}
	}
	var over []Process
	for key, h := range g.held {
		if h.seen != g.steps {
			delete(g.held, key)
			over = append(over, h.proc)
		}
	}
	g.mu.Unlock()

	for _, p := range over {
		p.Close()
	}
	found := map[ownerKey]*held{}
	var failed error
	var of Owner
	for _, o := range missing {
		p, err := g.o.Processes.Open(o.PID, o.Start)
		if err == nil {
			found[ownerKey{o.PID, o.Start}] = &held{p, g.steps}
		} else if failed == nil && !errors.Is(err, locking.ErrNoProcess) {
			failed, of = err, o
		}
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	for key, h := range found {
		g.held[key] = h
	}
	if failed == nil {
		g.unheld = ""
	} else if text := failed.Error(); g.unheld != text {
		g.unheld = text
		g.log.Error("a process with cluster locks cannot be opened, and so perhaps not be stopped: this host gives no promise until it can be", "event", "guard-failed",
			"pid", of.PID, "vm", of.Name, "reason", failed)
	}
}

// lockedTake gives a process that is to be stopped. The caller closes it.
func (g *Guard) lockedTake(o Owner) (Process, error) {
	key := ownerKey{o.PID, o.Start}
	h := g.held[key]
	if h == nil {
		return g.o.Processes.Open(o.PID, o.Start)
	}
	delete(g.held, key)
	select {
	case <-h.proc.Gone():
		h.proc.Close()
		return nil, locking.ErrNoProcess
	default:
		return h.proc, nil
	}
}
