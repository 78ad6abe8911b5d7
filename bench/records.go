package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	backend "github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/peers"
)

// What is measured of the records that say who holds a lock: what they and the
// daemons' group cost those who take locks, and what it costs to be told. This is
// the backend alone, in a node, without the journal and the socket, which would
// hide a part of it.

// refusedName is held on the other node.
const refusedName = "/bench/refused"

// beside is how many locks are taken, and so published, while pairs are measured.
const beside = 100

const (
	whoPlain     = "backend, no records, no peers"
	whoPublishes = "backend, records and peers"
	whoRatio     = "with both / without, of each round"
)

func records(ctx context.Context, s *series, rounds int, window time.Duration) (err error) {
	b, err := backend.New(backend.Options{Lockspace: "vmlockd"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(ctx, err == nil)) }() // as the daemon does, for who comes next
	r := &recordBench{b: b}
	defer func() { err = errors.Join(err, r.meet(ctx, false)) }()
	for _, clients := range []int{1, 8, 64} {
		for _, others := range []int{0, beside} {
			what := fmt.Sprintf("pairs/s of the backend alone, %d at a time", clients)
			if others > 0 {
				what += fmt.Sprintf(", while %d other locks are new", others)
			}
			progress("%s: %s", s.backend, what)
			// The first of two in a row is at an advantage or not: they take turns at it. So
			// two with peers follow each other, and two without, and the group is joined for
			// every other round only.
			for round := range 4 * rounds {
				perSecond := map[string]float64{}
				order := []string{whoPlain, whoPublishes}
				if round%2 == 1 {
					slices.Reverse(order)
				}
				for _, who := range order {
					if err := r.meet(ctx, who == whoPublishes); err != nil {
						return err
					}
					if perSecond[who], err = r.pairs(ctx, clients, others, who == whoPublishes, window/2); err != nil {
						return err
					}
					s.add(what, who, "", perSecond[who])
				}
				s.add(what, whoRatio, "", perSecond[whoPublishes]/perSecond[whoPlain]).Goal = "0.9"
			}
		}
	}
	progress("%s: refusals", s.backend)
	for range rounds {
		for _, told := range []bool{false, true} {
			took, unnamed, err := r.refusals(ctx, told, window)
			if err != nil {
				return err
			}
			who := "backend, not told who"
			if told {
				who = "backend, told who"
			}
			s.add("a refusal of what the other node has, median", who, "us", float64(took.Microseconds()))
			if told {
				s.add("refusals that name nobody, of a hundred", who, "", unnamed)
			}
		}
	}
	return nil
}

type recordBench struct {
	b     *backend.Backend
	taken atomic.Int64
	leave func() error // ends the membership in the daemons' group; nil without one
}

// meetPatience bounds how long the other node's daemon may take to say hello.
const meetPatience = 30 * time.Second

// meet makes this program a member of the daemons' group, as a daemon is, or ends that. It returns when the other
// node's daemon has said hello, so that none of that falls into what is measured.
func (r *recordBench) meet(ctx context.Context, member bool) error {
	if member == (r.leave != nil) {
		return nil
	}
	if !member {
		leave := r.leave
		r.leave = nil
		return leave()
	}
	group, err := corosync.Join(ctx, corosync.Host(), "vmlockd", peers.GroupOptions())
	if err != nil {
		return err
	}
	p := peers.New(peers.Options{
		Group: group, Self: peers.Info{Name: "bench", Version: "bench", Started: time.Now()},
		Holdings: func() []peers.Holding { return nil },
	})
	run, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- p.Run(run) }()
	r.leave = func() error {
		cancel()
		return <-ended
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(meetPatience); ; {
		if slices.ContainsFunc(p.Members(), func(m peers.Peer) bool { return !m.Self && m.Known }) {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("no other daemon is in the group after %v", meetPatience)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take takes a lock that nobody has.
func (r *recordBench) take(ctx context.Context, name string, described bool) (locking.Handle, error) {
	h, err := r.b.Open(ctx, locking.Ref{Name: name}, false)
	if err != nil {
		return nil, err
	}
	if err := h.Lock(ctx, locking.Exclusive); err != nil {
		h.Close()
		return nil, err
	}
	// With records and without the daemon looks at the clock for each grant (locking.Holder.Since).
	since := time.Now()
	if d, ok := h.(locking.Describer); ok && described {
		d.Describe(ownerOf(1, 0), since)
	}
	return h, nil
}

// pairs is how many locks a second are taken and given back.
func (r *recordBench) pairs(ctx context.Context, clients, others int, described bool, window time.Duration) (float64, error) {
	for range others {
		h, err := r.take(ctx, fmt.Sprint("/bench/other", r.taken.Add(1)), described)
		if err != nil {
			return 0, err
		}
		defer func() { _ = h.Unlock(ctx) }()
	}
	var done atomic.Int64
	errs := make([]error, clients)
	begin := time.Now()
	until := begin.Add(window)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			name := fmt.Sprint("/bench/pair", i)
			for time.Now().Before(until) && errs[i] == nil {
				h, err := r.take(ctx, name, described)
				if err == nil {
					err = h.Unlock(ctx)
				}
				errs[i] = err
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// refusals is the median time of a refusal. With told it also says how many of a hundred name nobody: looking for the
// holder is given up when it takes too long, as it may where other programs want the processors.
func (r *recordBench) refusals(ctx context.Context, told bool, window time.Duration) (took time.Duration, unnamed float64, err error) {
	var list []float64
	named := 0
	for until := time.Now().Add(window); time.Now().Before(until); {
		begin := time.Now()
		_, err := r.take(ctx, refusedName, false)
		var f locking.HolderFinder
		if !errors.Is(err, locking.ErrBusy) || !errors.As(err, &f) {
			return 0, 0, fmt.Errorf("what the other node holds: %w", err)
		}
		if told {
			named += len(f.FindHolders(ctx))
		}
		list = append(list, float64(time.Since(begin)))
	}
	if told && named == 0 {
		return 0, 0, errors.New("the holder on the other node is not named")
	}
	return time.Duration(median(list)), 100 * float64(len(list)-named) / float64(len(list)), nil
}
