package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// The kernels of the nodes, 6.1, now and then wait for each other for ever when a node is
// lost (docs/faults.md), with the daemon as without. A round in which that happens has no figure; it is
// played again in a new lab, and the report says so.

const (
	// hungAfter is how long a recovery says nothing new; lab.Node.Recovery has why.
	hungAfter = 30 * time.Second
	// recoveryTries is how often a round is played.
	recoveryTries = 3
)

var errHung = errors.New("KERNEL HANG: the DLM of the nodes' kernels does not get to the end of a recovery")

// recoveryBench has the lab of the rounds of recovery.
type recoveryBench struct {
	cfg  lab.Config
	r    *report
	l    *lab.Lab // nil before and after each
	labs int      // so far
}

func (b *recoveryBench) close() error {
	if b.l == nil {
		return nil
	}
	l := b.l
	b.l = nil
	return l.Close()
}

// start starts a lab, and makes its nodes members of both lockspaces.
func (b *recoveryBench) start(ctx context.Context) (err error) {
	cfg := b.cfg
	b.labs++
	if cfg.LogDir != "" {
		cfg.LogDir += fmt.Sprintf("/recovery%d", b.labs)
	}
	progress("recovery: %d nodes boot", cfg.Nodes)
	if b.l, err = lab.Start(ctx, cfg); err != nil {
		return err
	}
	for _, n := range b.l.Nodes() {
		if err := enter(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// play plays a round, which is told whether the lab is new. Rows are added only at its end.
func (b *recoveryBench) play(ctx context.Context, name string, round func(ctx context.Context, fresh bool) error) error {
	for try := 1; ; try++ {
		err := b.playOnce(ctx, round)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errHung) || try == recoveryTries:
			return fmt.Errorf("recovery, round %s: %w", name, err)
		}
		progress("recovery, round %s: %v", name, err)
		b.r.Missing = append(b.r.Missing, fmt.Sprintf("recovery, round %s, the first time, as it was played again: %v", name, err))
		if err := b.close(); err != nil {
			return err
		}
	}
}

func (b *recoveryBench) playOnce(ctx context.Context, round func(ctx context.Context, fresh bool) error) error {
	fresh := b.l == nil
	if fresh {
		if err := b.start(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	consoles := func() (said [][]string) {
		for _, n := range b.l.Nodes() {
			for _, space := range []string{"vmlockd", bareSpace} {
				lines, _ := n.Recovery(ctx, space)
				said = append(said, lines)
			}
		}
		return said
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	ended := make(chan struct{})
	defer func() { <-ended }()
	defer cancel(nil)
	go func() {
		defer close(ended)
		for w := new(hungWatch); ; {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if w.look(now, consoles()) {
					cancel(errHung)
				}
			}
		}
	}()
	err := round(ctx, fresh)
	if err != nil && errors.Is(context.Cause(ctx), errHung) {
		return errHung
	}
	return err
}

// hungWatch looks at recoveries again and again.
type hungWatch struct {
	last  [][]string
	since []time.Time
}

// look reports whether one that is under way has said the same for hungAfter. said has what each has said, of
// the same ones each time; one that is not under way has said nothing.
func (w *hungWatch) look(now time.Time, said [][]string) bool {
	for i, lines := range said {
		if i == len(w.last) {
			w.last, w.since = append(w.last, nil), append(w.since, now)
		}
		switch {
		case len(lines) == 0 || !slices.Equal(lines, w.last[i]):
			w.last[i], w.since[i] = lines, now
		case now.Sub(w.since[i]) >= hungAfter:
			return true
		}
	}
	return false
}
