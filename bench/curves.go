package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/lab"
)

// What is measured here is how the time for a pair grows with the cluster, with what is
// held meanwhile and with how many hold it: through the daemon and in the bare
// lockspace, in turns, in one lab. Times of different points are minutes apart, and
// the machine may have been busier for one of them; that shows in both, and the ratio of
// the two says whether the daemon's curve bends up where the DLM's does not.

// partCurves is the part of these, for --only.
const partCurves = "curves"

// The curves.
const (
	curveNodes  = "nodes"
	curveHeld   = "held"
	curveOwners = "owners"
)

// curveMost bounds the points of each curve.
var curveMost = map[string]int{curveNodes: lab.MaxNodes, curveHeld: 100000, curveOwners: 1000}

var (
	curvePoints = map[string]*string{
		curveNodes:  flag.String("curve-nodes", "1,2,3,5", "how many `nodes` are in the lockspaces, growing, for the part curves; the other curves have all of them"),
		curveHeld:   flag.String("curve-held", "100,1000,10000", "how many `locks` are held while pairs are measured, growing, 1 to 100000; the lab takes a minute for 10,000"),
		curveOwners: flag.String("curve-owners", "1,10,100,1000", "how many `owners` have a connection and a lock each, growing, 1 to 1000"),
	}
	curveName = flag.String("curve", "", "with --inside: the `curve`, and = and its point if there is one, which only the bench itself asks for")
)

// fillers is how many locks are taken at a time before anything is measured.
const fillers = 64

// points are those of a curve.
func points(name string) ([]int, error) {
	list, err := growing(*curvePoints[name], curveMost[name])
	if err != nil {
		err = fmt.Errorf("--curve-%s %w", name, err)
	}
	return list, err
}

// curveMeasure is the row of a point.
func curveMeasure(name string, x int) string {
	what := map[string]string{curveNodes: "nodes in the lockspace", curveHeld: "locks held", curveOwners: "owners"}[name]
	return fmt.Sprintf("%s%d %s", pairPrefix, x, what)
}

// pairPrefix begins the rows with the time for a pair.
const pairPrefix = "a pair, new each time, "

// curves measures all of them in a lab of its own, whose nodes are all there from the
// beginning and enter the lockspaces one after the other.
func curves(ctx context.Context, o *options, r *report, work string) (err error) {
	counts, err := points(curveNodes)
	if err != nil {
		return err
	}
	const config = "/etc/bench-vmlockd.toml"
	cfg := clusterConfig(o, work)
	cfg.Nodes, cfg.LockDaemon, cfg.MemoryMB = counts[len(counts)-1], lab.NoLockDaemon, 1024
	cfg.Files = map[string]string{config: cfg.VMLockdConfig(0)}
	if cfg.LogDir != "" {
		cfg.LogDir += "/curves"
	}
	progress("curves: %d nodes boot", cfg.Nodes)
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	members := 1
	run := func(curve string) error {
		list, err := runInside(ctx, o, l.Node(1), partCurves, "-curve", curve, "-curve-held", *curvePoints[curveHeld], "-curve-owners", *curvePoints[curveOwners])
		r.Results = append(r.Results, list...)
		return err
	}
	for _, count := range counts {
		for ; members < count; members++ {
			n := l.Node(members + 1)
			if _, err := n.Start(ctx, "member", "vmlockd", "--config", config); err != nil {
				return err
			}
			if err := enter(ctx, n); err != nil {
				return err
			}
		}
		if err := run(fmt.Sprintf("%s=%d", curveNodes, count)); err != nil {
			return err
		}
	}
	for _, name := range []string{curveOwners, curveHeld} {
		if err := run(name); err != nil {
			return err
		}
	}
	r.Results = append(r.Results, bends(r.Results)...)
	return nil
}

// bends says by how much each curve grows from its first point to its last, and by how much the ratio of the daemon's
// time to the DLM's does, which is of turns that followed each other.
func bends(list []result) []result {
	s := &series{backend: "cluster"}
	for _, name := range []string{curveNodes, curveOwners, curveHeld} {
		for _, who := range []string{whoDaemon, whoBare, whoDaemon + " / " + whoBare + ", of each round"} {
			var first, last result
			for _, x := range list {
				if x.Curve != name || x.Who != who || !strings.HasPrefix(x.Measure, pairPrefix) {
					continue
				}
				if last.X == 0 {
					first = x
				}
				last = x
			}
			if first.X == last.X {
				continue
			}
			row := s.add(fmt.Sprintf("growth of the median: %s instead of %g", curveMeasure(name, int(last.X)), first.X), who, "x", last.Median/first.Median)
			if who != whoDaemon && who != whoBare {
				row.Goal = "about 1 or less"
			}
		}
	}
	return s.results()
}

// curveBench is what the points of a curve have in common, in a node.
type curveBench struct {
	s      *series
	d      *daemon
	space  *dlm.Lockspace
	rounds int
	window time.Duration
	vms    []*vm
	conns  []*lockprogram.Client // of each of vms
	held   int                   // through the daemon, and as many in the bare lockspace
	bare   []*dlm.Lock           // those
	pairs  int                   // so far
}

// curvesInside measures a curve, or a point of it, in node 1.
func curvesInside(ctx context.Context, s *series, o *options) (err error) {
	name, at, alone := strings.Cut(*curveName, "=")
	if curvePoints[name] == nil {
		return fmt.Errorf("--curve %q: no such curve", *curveName)
	}
	list, err := points(name)
	if alone {
		var x int
		x, err = strconv.Atoi(at)
		list = []int{x}
	}
	if err != nil {
		return err
	}
	// Twice as many as of other parts, as what is to be told is not by how much but whether.
	c := &curveBench{s: s, rounds: 2 * o.rounds, window: o.window}
	if c.d, err = newVmlockd(ctx, whoDaemon, "cluster", []string{o.vmlockd}, o.guardLine()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.d.close()) }()
	if c.space, err = dlm.Create(ctx, dlm.Host(), bareSpace, dlm.Options{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end(ctx, name)) }()
	if err := c.grow(ctx, 1, 0); err != nil {
		return err
	}
	if err := c.granted(ctx); err != nil {
		return err
	}
	for _, x := range list {
		begin := time.Now()
		switch name {
		case curveOwners:
			err = c.grow(ctx, x, x)
		case curveHeld:
			err = c.grow(ctx, min(owners, x), x)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", curveMeasure(name, x), err)
		}
		progress("curves: %s; ready after %v", curveMeasure(name, x), time.Since(begin).Round(time.Second/10))
		if err := c.point(ctx, name, x); err != nil {
			return fmt.Errorf("%s: %w", curveMeasure(name, x), err)
		}
	}
	return nil
}

// end gives back what is held, so that the next curve begins with nothing. What is held
// for the last curve, which may take long to give back, ends with the lab.
func (c *curveBench) end(ctx context.Context, name string) error {
	defer endAll(c.vms)
	for _, conn := range c.conns {
		defer conn.Close()
	}
	if name == curveHeld {
		return c.space.Close(ctx)
	}
	var errs []error
	for _, l := range c.bare {
		errs = append(errs, l.Unlock(ctx))
	}
	for n := range c.held {
		errs = append(errs, c.conns[n%len(c.conns)].Release(ctx, heldRef(n)))
	}
	// In order, so that it leaves its lockspace: the next one would take what it
	// finds there for locks that it does not know.
	return errors.Join(errors.Join(errs...), c.space.Close(ctx), c.d.stop(ctx))
}

func heldRef(n int) locking.Ref { return locking.Ref{Name: fmt.Sprintf("bench-held-%06d", n)} }

// grow sees to it that there are so many owners, each with a connection, and that they hold so
// many locks. These are shared ones: nobody else wants them, and the daemon writes no owner into
// them, which would go on beside the measurement for minutes.
func (c *curveBench) grow(ctx context.Context, owners, held int) error {
	for len(c.vms) < owners {
		v, err := newVM(len(c.vms))
		if err != nil {
			return err
		}
		c.vms = append(c.vms, v)
		conn, err := c.d.connect(ctx, v.owner)
		if err != nil {
			return err
		}
		c.conns = append(c.conns, conn)
	}
	from := c.held
	c.held = held
	c.bare = append(c.bare, make([]*dlm.Lock, held-from)...)
	if err := inParallel(func(worker int) error {
		for n := from + worker; n < held; n += fillers {
			if err := c.conns[n%len(c.conns)].Acquire(ctx, heldRef(n), lockprogram.FlagShared); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return inParallel(func(worker int) (err error) {
		for n := from + worker; n < held; n += fillers {
			if c.bare[n], err = c.space.Lock(ctx, heldRef(n).Name, dlm.PR, dlm.LockOptions{NoQueue: true, Persistent: true}); err != nil {
				return err
			}
		}
		return nil
	})
}

// inParallel has all fillers do it.
func inParallel(f func(worker int) error) error {
	errs := make([]error, fillers)
	var wg sync.WaitGroup
	for i := range fillers {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// granted waits until the daemon grants, which it does not until it has joined the lockspace.
func (c *curveBench) granted(ctx context.Context) error {
	return lab.WaitFor(ctx, "the daemon to grant", func(ctx context.Context) (bool, error) {
		ref := locking.Ref{Name: "bench-joined"}
		if err := c.conns[0].Acquire(ctx, ref, 0); err != nil {
			return false, nil
		}
		return true, c.conns[0].Release(ctx, ref)
	})
}

// point measures the pairs of one caller. A round that does not count comes first.
func (c *curveBench) point(ctx context.Context, name string, x int) error {
	// A context that can end costs the client a goroutine for each call.
	bare := context.WithoutCancel(ctx)
	whos := []struct {
		who       string
		processor func() time.Duration
		pair      func(n int) error
	}{
		{whoDaemon, func() time.Duration { return ownTime() + c.d.processorTime() }, func(n int) error {
			conn, ref := c.conns[n%len(c.conns)], locking.Ref{Name: pairName(n)}
			if err := conn.Acquire(bare, ref, 0); err != nil {
				return err
			}
			return conn.Release(bare, ref)
		}},
		{whoBare, ownTime, func(n int) error {
			l, err := c.space.Lock(ctx, pairName(n), dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
			if err != nil {
				return err
			}
			return l.Unlock(ctx)
		}},
	}
	measure := curveMeasure(name, x)
	for round := range c.rounds + 1 {
		for i := range whos {
			w := whos[(i+round)%len(whos)] // each is first now and then
			t, err := loop(1, c.window, w.processor, func(int) (func() error, func(), error) {
				return func() error { c.pairs++; return w.pair(c.pairs) }, func() {}, nil
			})
			if err != nil {
				return fmt.Errorf("%s: %w", w.who, err)
			}
			if round > 0 {
				for _, row := range []*result{
					c.s.add(measure, w.who, "us", float64(t.each().Microseconds())),
					c.s.add("processor time for "+measure, w.who, "us", float64(t.processor.Microseconds())/float64(max(t.count, 1))),
				} {
					row.Curve, row.X = name, float64(x)
				}
			}
		}
		if round > 0 {
			row := c.s.ratio(measure, whoDaemon, whoBare, "")
			row.Curve, row.X = name, float64(x)
		}
	}
	return nil
}

// pairName is a name that no node has in its books, so that the DLM asks the node whose
// number follows from it, as it does for a virtual machine that is started.
func pairName(n int) string { return fmt.Sprintf("bench-new-%d", n) }
