package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// endingWindow is longer than it takes to end an owner that ignores SIGTERM: SIGKILL
	// comes 1.6 s later.
	endingWindow = 3 * time.Second
	// endingAfter is when it begins, in the window.
	endingAfter = endingWindow / 10
)

// endings measures what clients get while an owner, which ignores SIGTERM, is ended because it
// has closed its connection and holds a lock.
func endings(ctx context.Context, s *series, daemons []*daemon, rounds int) error {
	v, err := newVM(0)
	if err != nil {
		return err
	}
	defer v.end()
	u := use{clients: hangClients, kept: true}
	for _, ends := range []bool{false, true} {
		what := "nobody is ended"
		if ends {
			what = "an owner is ended"
		}
		progress("%s: pairs, %v, %s", s.backend, u, what)
		for round := range rounds {
			for _, d := range daemons {
				p, err := d.besideEnding(ctx, v.owner, u, ends, round)
				if err != nil {
					return err
				}
				s.add(fmt.Sprintf("pairs/s, clients %v, %s", u, what), d.who, "", p.perSecond)
				s.add(fmt.Sprintf("99th percentile of a pair, clients %v, %s", u, what), d.who, "ms", p.p99)
				s.add(fmt.Sprintf("longest pair, clients %v, %s", u, what), d.who, "ms", p.longest)
			}
		}
	}
	return nil
}

// besideEnding is pairs, while an owner is ended.
func (d *daemon) besideEnding(ctx context.Context, o locking.Owner, u use, ends bool, round int) (p pairsRound, err error) {
	if !ends {
		return d.pairs(ctx, o, u, endingWindow)
	}
	ref := locking.Ref{Name: d.disk(1000 + round)} // nobody else's
	if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
		return p, err
	}
	owner, err := ownerWithConnection(d, ref, round)
	if err != nil {
		return p, err
	}
	defer owner.end()
	leave := time.AfterFunc(endingAfter, func() { _, _ = owner.stdin.Write([]byte("\n")) })
	defer leave.Stop()
	p, err = d.pairs(ctx, o, u, endingWindow)
	if err != nil {
		return p, err
	}
	select {
	case <-owner.ended:
		return p, nil
	case <-time.After(deathTimeout):
		return p, errors.New(d.who + ": an owner that has closed its connection and holds a lock is not ended")
	case <-ctx.Done():
		return p, ctx.Err()
	}
}
