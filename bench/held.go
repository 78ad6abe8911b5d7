package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// owners is how many processes share the locks that are held.
const owners = 10

// peer is what the restart is compared with: the bare work on as many locks.
type peer interface {
	who() []string
	// grow makes the peer ready for count locks.
	grow(ctx context.Context, count int) error
	// run does the work once, for all of who.
	run(ctx context.Context) ([]time.Duration, error)
	close(ctx context.Context) error
}

// held measures what depends on the number of locks held: restart, restart in
// place, memory. theirs is nil if there is no virtlockd, bare if there is nothing
// to compare with.
func held(ctx context.Context, s *series, ours, theirs *daemon, bare peer, counts []int, rounds int) error {
	vms, err := newVMs(owners)
	if err != nil {
		return err
	}
	defer endAll(vms)
	daemons := []*daemon{ours}
	if theirs != nil {
		daemons = append(daemons, theirs)
	}
	empty := map[*daemon]size{}
	for _, d := range daemons {
		// As later: what the look at it needs is none of the locks' memory.
		d.rest(ctx)
		empty[d] = d.size()
	}
	for round := range rounds {
		if err := restart(ctx, s, ours, nil, 0, round); err != nil {
			return err
		}
	}
	had := 0
	for _, count := range counts {
		progress("%s: %d locks held", s.backend, count)
		for _, d := range daemons {
			if err := d.fill(ctx, vms, had, count); err != nil {
				return err
			}
		}
		if bare != nil {
			if err := bare.grow(ctx, count); err != nil {
				return err
			}
		}
		had = count
		if count == counts[len(counts)-1] {
			for _, d := range daemons {
				d.perLock(ctx, s, "after they were taken", empty[d], count)
			}
		}
		for round := range rounds {
			if err := restart(ctx, s, ours, bare, count, round); err != nil {
				return err
			}
			for _, d := range daemons {
				if err := reexecRound(ctx, s, d, vms[0].owner, count, round); err != nil {
					return err
				}
			}
		}
	}
	if had > 0 {
		if _, err := killAndStart(ctx, ours); err != nil {
			return err
		}
		ours.perLock(ctx, s, "after a restart", empty[ours], had)
		return ours.stillHeld(ctx, vms, had)
	}
	return nil
}

// restart measures one restart after SIGKILL, and then the peer.
func restart(ctx context.Context, s *series, d *daemon, bare peer, count, round int) error {
	what := fmt.Sprintf("SIGKILL to serving, %d locks", count)
	took, err := killAndStart(ctx, d)
	if err != nil {
		return err
	}
	row := s.addTime(what, d.who, took)
	if count == 10000 {
		row.Goal = "0.3 s"
		if s.backend == "cluster" {
			row.Goal = "1.5 x adoption alone"
		}
	}
	if bare == nil {
		return nil
	}
	list, err := bare.run(ctx)
	if err != nil {
		return err
	}
	for i, took := range list {
		s.addTime(what, bare.who()[i], took)
	}
	return nil
}

// killAndStart returns the time from the signal to the first answer.
func killAndStart(ctx context.Context, d *daemon) (time.Duration, error) {
	begin := time.Now()
	d.kill()
	if _, err := d.start(ctx); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// fill takes the locks from one number to another, in the names of vms.
func (d *daemon) fill(ctx context.Context, vms []*vm, from, to int) error {
	var next atomic.Int64
	next.Store(int64(from))
	errs := make([]error, len(vms))
	var wg sync.WaitGroup
	for i, v := range vms {
		wg.Go(func() {
			c, err := d.connect(ctx, v.owner)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			for {
				n := int(next.Add(1)) - 1
				if n >= to {
					return
				}
				name := d.disk(n)
				if err := os.WriteFile(name, nil, 0o600); err != nil {
					errs[i] = err
					return
				}
				if err := c.Acquire(ctx, locking.Ref{Name: name}, 0); err != nil {
					errs[i] = fmt.Errorf("%s: lock %d: %w", d.who, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stillHeld looks whether what was measured was right: locks that were lost take
// no time to take back.
func (d *daemon) stillHeld(ctx context.Context, vms []*vm, count int) error {
	stranger, err := newVM(owners)
	if err != nil {
		return err
	}
	defer stranger.end()
	c, err := d.connect(ctx, stranger.owner)
	if err != nil {
		return err
	}
	defer c.Close()
	for n := 0; n < count; n += max(1, count/100) {
		if c.Acquire(ctx, locking.Ref{Name: d.disk(n)}, 0) == nil {
			return fmt.Errorf("%s has lost %s", d.who, d.disk(n))
		}
	}
	return nil
}

// size is what a daemon needs, in KiB.
type size struct {
	daemon, holder float64
	heap           float64 // of daemon: what its heap has objects for; 0 if it does not say
	what           string
}

func (d *daemon) size() size {
	var z size
	z.daemon, z.what = memory(d.cmd.Process.Pid)
	if d.holder != 0 {
		z.holder, _ = memory(d.holder)
	}
	z.heap = d.heap
	return z
}

// calm is how long nothing was done before memory is measured. The daemon gives back what is
// left over one to two seconds after it.
const calm = 3 * time.Second

// restMost bounds how long is waited for that. In the lab it takes minutes to write the
// owners of 10,000 locks into them, one after the other.
const restMost = 4 * time.Minute

// rest waits until the daemon has done next to nothing for a while, and has nothing left to do.
// It returns what is in the way of that after restMost; "" if it rests.
func (d *daemon) rest(ctx context.Context) (note string) {
	tick := time.NewTicker(calm)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, restMost)
	defer cancel()
	for {
		before := processorTime(d.cmd.Process.Pid)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Sprintf("; measured before it had come to rest: %s", note)
		}
		used := processorTime(d.cmd.Process.Pid) - before // without what it takes to say how it is, which in the lab is much
		left, heap, err := d.says(ctx)
		d.heap = heap / 1024
		switch {
		case err != nil:
			note = "it does not say how many owners are yet to be written into their locks: " + err.Error()
		case left > 0:
			note = fmt.Sprintf("%d owners were yet to be written into their locks", left)
		case used >= calm/100:
			note = fmt.Sprintf("it had worked for %v of the last %v", used, calm)
		default:
			return ""
		}
	}
}

// says is how many locks have an owner that is yet to be written into them, and how many bytes there are in objects of the
// heap. Of both there is nothing for virtlockd, and of the first nothing for the backend local.
func (d *daemon) says(ctx context.Context) (pending int, heap float64, err error) {
	if d.isPeer() {
		return 0, 0, nil
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.state, "run", "control.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vmlockd/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	return readMetrics(res.Body)
}

// readMetrics finds what the daemon says in its metrics.
func readMetrics(metrics io.Reader) (pending int, heap float64, err error) {
	known := false
	lines := bufio.NewScanner(metrics)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "vmlockd_holder_up": // the backend local
			known = true
			continue
		case "vmlockd_owner_records_pending", "go_memstats_heap_alloc_bytes":
		default:
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, 0, err
		}
		if name == "vmlockd_owner_records_pending" {
			known, pending = true, int(n)
		} else {
			heap = n
		}
	}
	if err := lines.Err(); err != nil || known {
		return pending, heap, err
	}
	return 0, 0, errors.New("its metrics have no vmlockd_owner_records_pending")
}

// perLock adds the rows about memory.
func (d *daemon) perLock(ctx context.Context, s *series, when string, empty size, count int) {
	note := d.rest(ctx)
	z := d.size()
	row := s.add(fmt.Sprintf("memory for a lock, %d %s", count, when), d.who, "byte", (z.daemon-empty.daemon+z.holder-empty.holder)*1024/float64(count))
	row.Goal = "1024"
	if d.isPeer() {
		row.Goal = ""
	}
	row.Note = fmt.Sprintf("%s of the daemon %.0f KiB with no lock, %.0f KiB with %d", z.what, empty.daemon, z.daemon, count)
	if z.heap > 0 {
		row.Note += fmt.Sprintf("; in objects of its heap %.0f and %.0f KiB", empty.heap, z.heap)
	}
	row.Note += note
	if d.holder != 0 {
		row.Note += fmt.Sprintf("; of its holder %.0f and %.0f KiB", empty.holder, z.holder)
	}
}
