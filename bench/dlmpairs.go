package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/lab"
)

// What is measured here is what the daemon adds to a request of the DLM: pairs of
// acquire and release, and refusals, through the daemon's socket and beside that in
// a loop on the bare device. All of them ask for persistent locks without waiting,
// and run in node 1, in turns. The clock is looked at twice for a turn, as each look
// is a system call in a node.

// partDLM is the part of these, for --only.
const partDLM = "dlm"

// most is how many clients there are at most, and so how many resources of a kind.
const most = 64

// lockKind is what is locked.
type lockKind struct {
	what    string // in the table
	prefix  string // of the names; a number follows
	shared  bool
	refused bool   // it is held elsewhere, and cannot be had
	goal    string // for one client, of the daemon's time to the bare loop's
	// daemonOnly: as the daemon sees it, this is something else than for the others, who
	// have names and no files; they lock what localKind has.
	daemonOnly bool
}

// The node which has a resource first keeps the books of it, until nobody has it any
// more. So node 2 keeps those of what it holds.
var (
	localKind     = lockKind{what: "mastered here", prefix: "bench-here-", goal: "2 or less"}
	fileKind      = lockKind{what: "mastered here, by the path of a file", prefix: filepath.Join(lab.SharedDir, "bench-file-"), goal: "2 or less", daemonOnly: true}
	elsewhereKind = lockKind{what: "mastered on the other node", prefix: "bench-elsewhere-", shared: true, goal: "1.3 or less"}
	refusedKind   = lockKind{what: "held on the other node", prefix: "bench-refused-", refused: true, goal: "1.3 or less"}
)

func (k lockKind) name(n int) string { return fmt.Sprint(k.prefix, n) }

// turn is what one of them has done in its time.
type turn struct {
	count     int
	elapsed   time.Duration
	processor time.Duration // of the clients, and of the daemon and its holder
}

func (t turn) perSecond() float64 { return float64(t.count) / t.elapsed.Seconds() }

func (t turn) each() time.Duration { return t.elapsed / time.Duration(max(t.count, 1)) }

// locker is one of those that are compared.
type locker interface {
	who() string
	locksNothing() bool // it only answers
	turn(ctx context.Context, k lockKind, clients int, window time.Duration) (turn, error)
}

// dlmPairs measures all kinds, as often as there are rounds, after a turn of each
// that does not count. The first of the lockers is the daemon, the second the bare
// loop.
func dlmPairs(ctx context.Context, s *series, lockers []locker, rounds int, window time.Duration) error {
	for _, k := range []lockKind{localKind, fileKind, elsewhereKind, refusedKind} {
		for _, clients := range []int{1, most} {
			if clients > 1 && (k.refused || k.daemonOnly) {
				continue
			}
			progress("%s: %s, %d clients", s.backend, k.what, clients)
			for round := range rounds + 1 {
				turns := make([]turn, len(lockers))
				for i := range lockers {
					// Each is first now and then.
					i = (i + round) % len(lockers)
					what := k
					if k.daemonOnly && i > 0 {
						what = localKind
					}
					var err error
					if turns[i], err = lockers[i].turn(ctx, what, clients, window); err != nil {
						return err
					}
				}
				if round > 0 {
					addTurns(s, k, clients, lockers, turns)
				}
			}
		}
	}
	return nil
}

// ratio is how much a takes for each beside b, or with several clients how many it does beside b.
func ratio(a, b turn, clients int) float64 {
	if clients > 1 {
		return a.perSecond() / b.perSecond()
	}
	return float64(a.each()) / float64(b.each())
}

func addTurns(s *series, k lockKind, clients int, lockers []locker, turns []turn) {
	one := "a pair, " + k.what
	if k.refused {
		one = "a refusal of what is " + k.what
	}
	what := one
	if clients > 1 {
		one = fmt.Sprintf("%s, %d clients", one, clients)
		what = fmt.Sprintf("pairs/s, %s, %d clients", k.what, clients)
	}
	for i, t := range turns {
		if clients == 1 {
			s.add(what, lockers[i].who(), "us", float64(t.each().Microseconds()))
		} else {
			s.add(what, lockers[i].who(), "", t.perSecond())
		}
		s.add("processor time for "+one, lockers[i].who(), "us", float64(t.processor.Microseconds())/float64(max(t.count, 1)))
	}
	for i := 1; i < len(turns); i++ {
		goal := k.goal
		if clients > 1 {
			goal = "0.8 or more"
		}
		if lockers[i].locksNothing() {
			// What it takes every daemon must, beside what the bare loop does, so it is no goal.
			goal = ""
			s.add(what, ofEachRound(lockers[i], lockers[1]), "", ratio(turns[i], turns[1], clients))
		}
		s.add(what, ofEachRound(lockers[0], lockers[i]), "", ratio(turns[0], turns[i], clients)).Goal = goal
	}
}

func ofEachRound(a, b locker) string { return fmt.Sprintf("%s / %s, of each round", a.who(), b.who()) }

// loop lets clients work until the time is over. one makes the work of a client: what
// it is to do again and again.
func loop(clients int, window time.Duration, processor func() time.Duration, one func(n int) (work func() error, end func(), err error)) (turn, error) {
	works, ends := make([]func() error, clients), make([]func(), clients)
	for n := range clients {
		var err error
		if works[n], ends[n], err = one(n); err != nil {
			return turn{}, err
		}
		defer ends[n]()
	}
	var over atomic.Bool
	counts, errs := make([]int, clients), make([]error, clients)
	used, begin := processor(), time.Now()
	defer time.AfterFunc(window, func() { over.Store(true) }).Stop()
	var wg sync.WaitGroup
	for n, work := range works {
		wg.Go(func() {
			for !over.Load() && errs[n] == nil {
				errs[n] = work()
				counts[n]++
			}
		})
	}
	wg.Wait()
	t := turn{elapsed: time.Since(begin), processor: processor() - used}
	for _, n := range counts {
		t.count += n
	}
	return t, errors.Join(errs...)
}

// bareLoop is a loop on the bare device, with package dlm.
type bareLoop struct{ space *dlm.Lockspace }

func (bareLoop) who() string { return whoBare }

func (bareLoop) locksNothing() bool { return false }

func (b bareLoop) turn(ctx context.Context, k lockKind, clients int, window time.Duration) (turn, error) {
	mode := dlm.EX
	if k.shared {
		mode = dlm.PR
	}
	t, err := loop(clients, window, ownTime, func(n int) (func() error, func(), error) {
		name := k.name(n)
		return func() error {
			l, err := b.space.Lock(ctx, name, mode, dlm.LockOptions{NoQueue: true, Persistent: true})
			switch {
			case k.refused && errors.Is(err, dlm.ErrBusy):
				return nil
			case k.refused && err == nil:
				return errors.Join(fmt.Errorf("%s is not held on the other node", name), l.Unlock(ctx))
			case err != nil:
				return err
			}
			return l.Unlock(ctx)
		}, func() {}, nil
	})
	if err != nil {
		err = fmt.Errorf("%s, %s: %w", b.who(), k.what, err)
	}
	return t, err
}

// daemonLoop has the daemon take and give back, each client on a connection of its own
// that is kept.
type daemonLoop struct {
	d     *daemon
	owner locking.Owner
	empty bool // d is the empty server, which grants everything
}

func (l daemonLoop) who() string { return l.d.who }

func (l daemonLoop) locksNothing() bool { return l.empty }

func (l daemonLoop) turn(ctx context.Context, k lockKind, clients int, window time.Duration) (turn, error) {
	var flags uint32
	if k.shared {
		flags = lockprogram.FlagShared
	}
	processor := func() time.Duration { return ownTime() + l.d.processorTime() }
	// A context that can end costs the client a goroutine for each call, which is not what is measured.
	bare := context.WithoutCancel(ctx)
	t, err := loop(clients, window, processor, func(n int) (func() error, func(), error) {
		ref := locking.Ref{Name: k.name(n)}
		if filepath.IsAbs(ref.Name) {
			if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
				return nil, nil, err
			}
		}
		c, err := l.d.connect(ctx, l.owner)
		if err != nil {
			return nil, nil, err
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		return func() error {
			err := c.Acquire(bare, ref, flags)
			switch {
			case k.refused && (refused(err) || err == nil && l.empty): // a refusal is one call
				return nil
			case k.refused && err == nil:
				return errors.Join(fmt.Errorf("%s is not held on the other node", ref.Name), c.Release(bare, ref))
			case err != nil:
				return err
			}
			return c.Release(bare, ref)
		}, func() { stop(); c.Close() }, nil
	})
	if err != nil {
		err = fmt.Errorf("%s, %s: %w", l.who(), k.what, err)
	}
	return t, err
}

// dlmInside measures in the node.
func dlmInside(ctx context.Context, s *series, d *daemon, rounds int, window time.Duration) (err error) {
	space, err := dlm.Create(ctx, dlm.Host(), bareSpace, dlm.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, space.Close(ctx)) }()
	v, err := newVM(0)
	if err != nil {
		return err
	}
	defer v.end()
	nothing, err := newEmpty(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nothing.close()) }()
	lockers := []locker{daemonLoop{d: d, owner: v.owner}, bareLoop{space}, daemonLoop{nothing, v.owner, true}}
	c, err := newLibdlmLoop()
	if err != nil {
		return err
	}
	if c != nil {
		lockers = append(lockers, *c)
	}
	return dlmPairs(ctx, s, lockers, rounds, window)
}

// holdElsewhere is what the other node holds meanwhile, in the bare lockspace, until
// this program is ended.
func holdElsewhere(ctx context.Context) error {
	space, err := dlm.Create(ctx, dlm.Host(), bareSpace, dlm.Options{})
	if err != nil {
		return err
	}
	take := func(name string, mode dlm.Mode) {
		if err == nil {
			_, err = space.Lock(ctx, name, mode, dlm.LockOptions{NoQueue: true})
		}
	}
	for n := range most {
		take(elsewhereKind.name(n), dlm.PR)
	}
	take(refusedKind.name(0), dlm.EX)
	if err != nil {
		return err
	}
	fmt.Println(readyLine)
	<-ctx.Done()
	return space.Close(context.WithoutCancel(ctx))
}

// holdForPairs makes the other node hold what is mastered there: in the bare
// lockspace, and through its daemon by this connection.
func holdForPairs(ctx context.Context, other *lab.Node, c *lockprogram.Client) error {
	for n := range most {
		if err := c.Acquire(ctx, locking.Ref{Name: elsewhereKind.name(n)}, lockprogram.FlagShared); err != nil {
			return err
		}
	}
	if err := c.Acquire(ctx, locking.Ref{Name: refusedKind.name(0)}, 0); err != nil {
		return err
	}
	_, err := startRole(ctx, other, "bare-holder", roleHold)
	return err
}
