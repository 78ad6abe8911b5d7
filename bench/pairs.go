package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// use is what clients do at the same time.
type use struct {
	clients int
	// kept: a connection is kept; otherwise there is a new one for each call, as
	// libvirt's plug-in does it.
	kept bool
	// space: the locks are in a lockspace's directory, where libvirt asks for a file to be
	// made for each lock; otherwise they are on files that are there.
	space bool
}

func (u use) String() string {
	kind := "kept"
	if !u.kept {
		kind = "new"
	}
	if u.space {
		kind += ", lockspace directory"
	}
	return fmt.Sprintf("%d %s", u.clients, kind)
}

// uses are all that is measured.
var uses = []use{
	{1, true, false}, {8, true, false}, {64, true, false},
	{1, false, false}, {8, false, false}, {64, false, false},
	{64, true, true}, {8, false, true},
}

// goalPairs is by how much vmlockd should do better than virtlockd, by use.
var goalPairs = map[string]string{"1 kept": "1.5 x virtlockd", "64 kept": "3 x virtlockd", "8 new": "3 x virtlockd", "64 new": "5 x virtlockd",
	"64 kept, lockspace directory": "3 x virtlockd", "8 new, lockspace directory": "3 x virtlockd"}

// pairs measures how many locks a second are taken and given back. The daemons take turns.
// only is the one use that is measured; all if it is empty.
func pairs(ctx context.Context, r *report, s *series, daemons []*daemon, only string, rounds int, window time.Duration) error {
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
	for _, u := range uses {
		if only != "" && only != u.String() {
			continue
		}
		progress("%s: pairs, %v", s.backend, u)
		for range rounds {
			for _, d := range daemons {
				p, err := d.pairs(ctx, v.owner, u, window)
				if err != nil {
					return err
				}
				row := s.add(fmt.Sprintf("pairs/s, clients %v", u), d.who, "", p.perSecond)
				row.Goal = goalPairs[u.String()]
				if d.isPeer() {
					row.Goal = ""
				}
				s.add(fmt.Sprintf("99th percentile of a pair, clients %v", u), d.who, "ms", p.p99)
				s.add(fmt.Sprintf("daemon's processor time for a pair, clients %v", u), d.who, "us", p.processor)
				s.add(fmt.Sprintf("the clients' own processor time for a pair, clients %v", u), d.who, "us", p.clients)
				if d.counters != nil {
					s.add(fmt.Sprintf("daemon's system calls for a pair, clients %v", u), d.who, "", p.calls)
					s.add(fmt.Sprintf("daemon's context switches for a pair, clients %v", u), d.who, "", p.switches)
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

func (d *daemon) pairs(ctx context.Context, o locking.Owner, u use, window time.Duration) (pairsRound, error) {
	ctx, cancel := context.WithTimeout(ctx, window+time.Minute)
	defer cancel()
	if err := d.makeSpace(ctx, o, u); err != nil {
		return pairsRound{}, err
	}
	lists := make([][]time.Duration, u.clients)
	errs := make([]error, u.clients)
	before, err := d.usage()
	if err != nil {
		return pairsRound{}, err
	}
	own := ownTime()
	begin := time.Now()
	until := begin.Add(window)
	var wg sync.WaitGroup
	for i := range u.clients {
		wg.Go(func() { lists[i], errs[i] = d.client(ctx, o, i, u, until) })
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

// space is the directory of a lockspace.
func (d *daemon) space() string { return filepath.Join(d.dir, "space") }

// makeSpace makes the lockspace that is used, if there is none yet.
func (d *daemon) makeSpace(ctx context.Context, o locking.Owner, u use) error {
	if !u.space || d.spaced {
		return nil
	}
	c, err := d.connect(ctx, o)
	if err != nil {
		return err
	}
	defer c.Close()
	d.spaced = true
	return c.CreateLockspace(ctx, d.space())
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
func (d *daemon) client(ctx context.Context, o locking.Owner, n int, u use, until time.Time) (list []time.Duration, err error) {
	ref, flags := locking.Ref{Name: d.disk(n)}, uint32(0)
	if u.space {
		ref, flags = locking.Ref{Lockspace: d.space(), Name: filepath.Base(ref.Name)}, lockprogram.FlagAutocreate
	} else if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
		return nil, err
	}
	// A context that can end costs the client a goroutine for each call, which is
	// not what is measured; the end of ctx closes the connection instead.
	bare := context.WithoutCancel(ctx)
	one := func(c *lockprogram.Client, acquire bool) error {
		if acquire {
			return c.Acquire(bare, ref, flags)
		}
		return c.Release(bare, ref)
	}
	var open *lockprogram.Client
	if u.kept {
		if open, err = d.connect(ctx, o); err != nil {
			return nil, err
		}
		defer open.Close()
		defer context.AfterFunc(ctx, func() { open.Close() })()
	}
	for now := time.Now(); now.Before(until); {
		for _, acquire := range []bool{true, false} {
			c := open
			if !u.kept {
				if c, err = d.connect(ctx, o); err != nil {
					return nil, err
				}
			}
			err := one(c, acquire)
			if !u.kept {
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
