package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// goalPairs is by how much vmlockd should do better than virtlockd.
var goalPairs = map[string]string{"1 kept": "1.5 x virtlockd", "64 kept": "3 x virtlockd"}

// pairs measures how many locks a second are taken and given back: on kept
// connections, and with a new one for each call, as libvirt's plug-in does it. The
// daemons take turns.
func pairs(ctx context.Context, r *report, s *series, daemons []*daemon, clients []int, rounds int, window time.Duration) error {
	v, err := newVM(0)
	if err != nil {
		return err
	}
	defer v.end()
	for _, d := range daemons {
		if d.counters, err = countersOf(d.pids()...); err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("%s: system calls and context switches for a pair: %v", d.who, err))
			continue
		}
		defer d.counters.close()
	}
	for _, kept := range []bool{true, false} {
		for _, n := range clients {
			kind := fmt.Sprintf("%d kept", n)
			if !kept {
				kind = fmt.Sprintf("%d new", n)
			}
			progress("%s: pairs, %s", s.backend, kind)
			for range rounds {
				for _, d := range daemons {
					p, err := d.pairs(ctx, v.owner, n, kept, window)
					if err != nil {
						return err
					}
					row := s.add("pairs/s, clients "+kind, d.who, "", p.perSecond)
					row.Goal = goalPairs[kind]
					if d.isPeer() {
						row.Goal = ""
					}
					s.add("99th percentile of a pair, clients "+kind, d.who, "ms", p.p99)
					s.add("daemon's processor time for a pair, clients "+kind, d.who, "us", p.processor)
					s.add("the clients' own processor time for a pair, clients "+kind, d.who, "us", p.clients)
					if d.counters != nil {
						s.add("daemon's system calls for a pair, clients "+kind, d.who, "", p.calls)
						s.add("daemon's context switches for a pair, clients "+kind, d.who, "", p.switches)
					}
				}
			}
		}
	}
	return nil
}

type pairsRound struct {
	perSecond float64
	p99       float64 // ms
	longest   float64 // ms
	clients   float64 // us of processor time, of this program
	// Of the daemon and its holder.
	processor float64 // us
	calls     float64 // system calls
	switches  float64 // context switches
}

func (d *daemon) pairs(ctx context.Context, o locking.Owner, clients int, kept bool, window time.Duration) (pairsRound, error) {
	ctx, cancel := context.WithTimeout(ctx, window+time.Minute)
	defer cancel()
	lists := make([][]time.Duration, clients)
	errs := make([]error, clients)
	before, err := d.usage()
	if err != nil {
		return pairsRound{}, err
	}
	own := ownTime()
	begin := time.Now()
	until := begin.Add(window)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { lists[i], errs[i] = d.client(ctx, o, i, kept, until) })
	}
	wg.Wait()
	elapsed := time.Since(begin)
	all := slices.Concat(lists...)
	if err := errors.Join(errs...); err != nil || len(all) == 0 {
		return pairsRound{}, fmt.Errorf("%s: pairs: %d done, %w", d.who, len(all), err)
	}
	own = ownTime() - own
	after, err := d.usage()
	if err != nil {
		return pairsRound{}, err
	}
	used, n := after.since(before), float64(len(all))
	slices.Sort(all)
	return pairsRound{
		perSecond: n / elapsed.Seconds(),
		p99:       float64(all[len(all)*99/100].Microseconds()) / 1000,
		longest:   float64(all[len(all)-1].Microseconds()) / 1000,
		clients:   float64(own.Microseconds()) / n,
		processor: float64(used.processor.Microseconds()) / n,
		calls:     float64(used.calls) / n,
		switches:  float64(used.switches) / n,
	}, nil
}

// usage is what the daemon and its holder have used: without counters only
// the processor time, in steps of 10 ms.
func (d *daemon) usage() (usage, error) {
	if d.counters != nil {
		return d.counters.usage()
	}
	return usage{processor: d.processorTime()}, nil
}

// processorTime is that of the daemon and its holder, in steps of 10 ms.
func (d *daemon) processorTime() (t time.Duration) {
	for _, pid := range d.pids() {
		t += processorTime(pid)
	}
	return t
}

// client takes and gives back one lock, which it shares with nobody, until the
// time is over. It returns how long each pair took.
func (d *daemon) client(ctx context.Context, o locking.Owner, n int, kept bool, until time.Time) (list []time.Duration, err error) {
	ref := locking.Ref{Name: d.disk(n)}
	if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
		return nil, err
	}
	// A context that can end costs the client a goroutine for each call, which is
	// not what is measured; the end of ctx closes the connection instead.
	bare := context.WithoutCancel(ctx)
	one := func(c *lockprogram.Client, acquire bool) error {
		if acquire {
			return c.Acquire(bare, ref, 0)
		}
		return c.Release(bare, ref)
	}
	var open *lockprogram.Client
	if kept {
		if open, err = d.connect(ctx, o); err != nil {
			return nil, err
		}
		defer open.Close()
		defer context.AfterFunc(ctx, func() { open.Close() })()
	}
	for now := time.Now(); now.Before(until); {
		for _, acquire := range []bool{true, false} {
			c := open
			if !kept {
				if c, err = d.connect(ctx, o); err != nil {
					return nil, err
				}
			}
			err := one(c, acquire)
			if !kept {
				c.Close()
			}
			if err != nil {
				return nil, err
			}
		}
		end := time.Now()
		list = append(list, end.Sub(now))
		now = end
	}
	return list, nil
}
