package stress

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// run is one run of the load.
type run struct {
	Options
	sys     System
	history *History
	left    atomic.Int64   // operations
	queues  []atomic.Int32 // by resource: who is at it at the moment
	pending []atomic.Int32 // by resource: how many operations on it had no outcome
	// retired says how often a place in the curve has got another resource. Resource n has
	// place n modulo Resources.
	retired []atomic.Int32
	// disturbances are those that are not over yet, and taken has an element for
	// each operation that is taken while one of them waits for its moment.
	disturbances atomic.Int64
	taken        chan struct{}
}

// maxAtOnce bounds how many choose a resource at the same time. The number of
// orders in which the checker may have to look at them grows much faster.
const maxAtOnce = 5

// maxPending is how many operations on a resource may have no outcome, and maxRetired how often another one
// may take its place then. What the checker has to try grows with each of them.
const (
	maxPending = 12
	maxRetired = 50
)

// Run loads the daemons until Options.Operations are done, sees that everything
// becomes free again, and returns what was done. An error is something that the
// history does not show: answers that no rule knows, locks that stay after all
// have released theirs, or a load that met no resistance. The history is good for Check in that case too.
func Run(ctx context.Context, sys System, o Options) (*History, error) {
	r := &run{Options: o, sys: sys, history: newHistory()}
	r.prepare()
	r.Log("seed %d: %d operations, %d resources, %d nodes with %d owners each", r.Seed, r.Operations, r.Resources, sys.Nodes(), r.Owners)
	err := r.load(ctx)
	r.Log("the load took %v: %s", r.history.now().Round(time.Millisecond), r.history.Summary())
	if err == nil {
		err = r.history.effect(r.Operations) // before allFree, which is granted a lot
	}
	if err == nil {
		err = r.allFree(ctx)
	}
	return r.history, err
}

func (r *run) prepare() {
	r.Options = r.withDefaults()
	r.left.Store(int64(r.Operations))
	r.disturbances.Store(int64(r.Disturbances))
	r.taken = make(chan struct{})
	r.queues = make([]atomic.Int32, r.Resources*(maxRetired+1))
	r.pending = make([]atomic.Int32, len(r.queues))
	r.retired = make([]atomic.Int32, r.Resources)
}

// load is everything but the check at the end.
func (r *run) load(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				cancel(err) // the first one counts, the others follow from it
			}
		})
	}
	var begun atomic.Int64
	for node := range r.sys.Nodes() {
		start(func() error { return r.disturb(ctx, node, &begun) })
	}
	for node := range r.sys.Nodes() {
		for slot := range r.Owners {
			start(func() error { return r.lives(ctx, node, slot) })
		}
	}
	wg.Wait()
	return context.Cause(ctx)
}

// errUncounted is returned by Disturb after a disturbance that is not among those that
// were asked for.
var errUncounted = errors.New("it does not count")

// disturb disturbs one node at random moments, as long as the disturbances of
// all nodes, of which begun is the number, are not enough.
func (r *run) disturb(ctx context.Context, node int, begun *atomic.Int64) error {
	rng := rand.New(rand.NewPCG(r.Seed, uint64(node)<<32|1<<31))
	counted := true
	for !counted || begun.Add(1) <= int64(r.Disturbances) {
		for range rng.IntN(2*r.DisturbEvery + 1) {
			select {
			case <-r.taken:
			case <-ctx.Done():
				return nil
			}
		}
		o := Outage{Node: node, From: r.history.now(), Until: never}
		seen, err := r.Disturb(ctx, node, rng)
		if seen {
			o.Until = r.history.now()
		}
		r.history.addOutage(o)
		counted = !errors.Is(err, errUncounted)
		if err != nil && counted {
			return fmt.Errorf("disturb node %d: %w", node, err)
		}
		if counted {
			r.disturbances.Add(-1)
		}
	}
	return nil
}

// more says whether the load goes on.
func (r *run) more() bool { return r.left.Load() > 0 || r.disturbances.Load() > 0 }

// take takes one of the operations that are left.
func (r *run) take() bool {
	if !r.more() {
		return false
	}
	r.left.Add(-1)
	select {
	case r.taken <- struct{}{}:
	default: // no disturbance is to come, or all of them are under way
	}
	return true
}

// numbers is by what the numbers of all resources are exceeded.
func (r *run) numbers() int {
	most := int32(0)
	for i := range r.retired {
		most = max(most, r.retired[i].Load())
	}
	return r.Resources * (1 + int(most))
}

// noOutcome notes that of an operation on a resource nobody knows what came of it. If
// that is so of many, nobody begins with it any more.
func (r *run) noOutcome(resource int) {
	place := &r.retired[resource%r.Resources]
	if r.pending[resource].Add(1) == maxPending && place.Load() < maxRetired {
		place.Add(1)
	}
}

// someResource prefers low numbers, so that some are wanted by many at once. With a steeper
// curve the checker meets more calls that were cut off on the first than it can order.
func (r *run) someResource(rng *rand.Rand) int {
	for {
		u := rng.Float64()
		n := int(u * math.Sqrt(u) * float64(r.Resources))
		n += r.Resources * int(r.retired[n].Load())
		if r.queues[n].Load() < maxAtOnce {
			return n
		}
	}
}

// lives are those of one owner after the other, until all operations are done.
func (r *run) lives(ctx context.Context, node, slot int) error {
	rng := rand.New(rand.NewPCG(r.Seed, uint64(node)<<32|uint64(slot)))
	undertaker, err := r.newOwner(ctx, node)
	if err != nil {
		return err
	}
	by := &speaker{run: r, owner: undertaker}
	defer by.close()
	for r.more() && ctx.Err() == nil {
		if err := r.life(ctx, node, rng, by); err != nil {
			return err
		}
	}
	return undertaker.kill(ctx)
}

func (r *run) life(ctx context.Context, node int, rng *rand.Rand, by *speaker) error {
	o, err := r.newOwner(ctx, node)
	if err != nil {
		return err
	}
	connections := 1 + rng.IntN(2)
	errs := make([]error, connections)
	var wg sync.WaitGroup
	for i := range connections {
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		wg.Go(func() { errs[i] = o.speak(ctx, own) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !o.dead.Load() && o.settled() {
		if err := o.leave(ctx); err != nil {
			return err
		}
	}
	// A clean leaver's death frees nothing; that of the others is waited for.
	if err := o.kill(ctx); err != nil {
		return err
	}
	return o.bury(ctx, by)
}

// allFree sees that nothing is held that the history does not account for, and
// that death frees without anybody's help: one owner takes everything at once,
// exclusively, on the first node, and is killed. Then another one takes it on
// the next node, and so on. (Where the dead one was, asking for what it had would
// free it.)
func (r *run) allFree(ctx context.Context) error {
	var heir *owner
	for node := range r.sys.Nodes() {
		start := time.Now()
		if heir != nil {
			if err := heir.kill(ctx); err != nil {
				return err
			}
		}
		var err error
		if heir, err = r.newOwner(ctx, node); err != nil {
			return err
		}
		if err := r.takeAll(ctx, heir); err != nil {
			return err
		}
		if node > 0 {
			r.Log("all %d resources were taken over %v after the death of their owner", r.numbers(), time.Since(start).Round(time.Millisecond))
		}
	}
	if err := heir.leave(ctx); err != nil {
		return err
	}
	return heir.kill(ctx)
}

func (r *run) takeAll(ctx context.Context, o *owner) error {
	s := &speaker{run: r, owner: o}
	defer s.close()
	deadline := time.Now().Add(r.FreeWithin)
	for resource := range r.numbers() {
		for {
			op, err := s.do(ctx, Op{Kind: Acquire, Resource: resource, Mode: locking.Exclusive}, callTimeout)
			if err != nil {
				return err
			}
			o.note(op)
			if op.Answer == Done {
				break
			}
			// A call that was cut off may have been carried out late, for an owner whose
			// death takes it back; and a daemon that was started last may not know yet what
			// the one before had.
			notYet := op.pending() && r.Disturb != nil
			if op.Answer != Busy && !notYet || time.Now().After(deadline) {
				return fmt.Errorf("everything was released, and this is not free: %v", op)
			}
			if notYet {
				if err := s.giveBack(ctx, resource, false); err != nil {
					return err
				}
			}
			select {
			case <-time.After(r.Latency):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}
