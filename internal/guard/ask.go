package guard

import (
	"context"
	"errors"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

const (
	// askEvery is how often dlm_controld is asked how the cluster is, and askTimeout
	// how long it may take to answer.
	askEvery   = 500 * time.Millisecond
	askTimeout = time.Second
	// learnEvery is how often it is asked what does not change by itself, and
	// learnSoon how often while that is not known.
	learnEvery = 5 * time.Second
	learnSoon  = 500 * time.Millisecond
	// totemEvery is how often corosync is asked for its timeouts: it makes a connection
	// of megabytes for each question. totemTimeout bounds one attempt.
	totemEvery   = time.Minute
	totemTimeout = 20 * time.Second
)

// ask keeps what dlm_controld knows up to date.
func (g *Guard) ask(ctx context.Context) {
	t := time.NewTicker(askEvery)
	defer t.Stop()
	for {
		begun := g.o.Clock()
		one, cancel := context.WithTimeout(ctx, askTimeout)
		status, err := g.o.Controld.Status(one)
		if err == nil {
			// A daemon that was restarted answers too, and knows no lockspace. Other
			// failures of this question are none.
			if known := g.o.Controld.Known(one, g.o.Lockspace); errors.Is(known, controld.ErrNoLockspace) && g.uses() {
				err = known
			}
		}
		cancel()
		g.mu.Lock()
		if ctx.Err() == nil {
			g.silent = err
			if err == nil {
				g.cluster, g.askedAt, g.asked = status, begun, true
			}
		}
		g.mu.Unlock()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// uses reports whether this host is in the lockspace, or was; otherwise it has not
// joined yet.
func (g *Guard) uses() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used || len(g.owners) > 0
}

// learn asks whether dlm_controld fences.
func (g *Guard) learn(ctx context.Context) {
	again(ctx, learnEvery, askTimeout, func(ctx context.Context) error {
		c, err := g.o.Controld.Config(ctx)
		if err == nil {
			g.takeFencing(c.EnableFencing)
		}
		return err
	})
}

// learnTotem asks for the timeouts of corosync.
func (g *Guard) learnTotem(ctx context.Context) {
	said := ""
	again(ctx, totemEvery, totemTimeout, func(ctx context.Context) error {
		totem, err := g.o.Totem(ctx)
		if err == nil {
			g.takeTotem(totem)
		} else if err.Error() != said {
			said = err.Error()
			g.log.Warn("guard: corosync does not say what its timeouts are; until it has, nothing is granted", "reason", err)
		}
		return err
	})
}

// again asks until ctx ends: every so often, and sooner after a failure.
func again(ctx context.Context, every, timeout time.Duration, ask func(context.Context) error) {
	for {
		one, cancel := context.WithTimeout(ctx, timeout)
		err := ask(one)
		cancel()
		if err == nil {
			err = ctx.Err()
		}
		pause := every
		if err != nil {
			pause = learnSoon
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (g *Guard) takeTotem(totem Totem) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lockedTotem(totem)
}

func (g *Guard) lockedTotem(totem Totem) {
	g.totem = totem
	g.timing.Token, g.timing.Consensus, g.timing.Device = totem.Token, totem.Consensus, totem.Device
	err := g.timing.Check()
	if err != nil && (g.tooFast == nil || g.tooFast.Error() != err.Error()) && g.lockedMode() != Fencing {
		g.log.Error("nothing new is granted, as the guard would not be safe", "event", "guard-unsafe", "reason", err)
	}
	g.tooFast = err
}

func (g *Guard) takeFencing(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fencing != nil && *g.fencing == on {
		return
	}
	g.fencing = &on
	g.log.Info("guard: fencing by dlm_controld is known", "fencing", on, "mode", g.lockedMode().String())
	if g.o.Mode == Fencing && !on {
		g.log.Error("guard.mode is \"fencing\", and dlm_controld does not fence (enable_fencing=0): nothing new is granted", "event", "guard-unsafe")
	}
	g.news()
}
