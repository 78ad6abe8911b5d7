package stress

import (
	"context"
	"errors"
	"fmt"
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
	left    atomic.Int64 // operations
	disturb chan struct{}
	queues  []atomic.Int32 // by resource: who is at it at the moment
}

// maxAtOnce bounds how many choose a resource at the same time. The number of
// orders in which the checker may have to look at them grows much faster.
const maxAtOnce = 5

// Run loads the daemons until Options.Operations are done, sees that everything
// becomes free again, and returns what was done. An error is something that the
// history does not show: answers that no rule knows, locks that stay after all
// have released theirs. The history is good for Check in that case too.
func Run(ctx context.Context, sys System, o Options) (*History, error) {
	r := &run{Options: o, sys: sys, history: newHistory(), disturb: make(chan struct{}, 1)}
	r.prepare()
	r.Log("seed %d: %d operations, %d resources, %d nodes with %d owners each", r.Seed, r.Operations, r.Resources, sys.Nodes(), r.Owners)
	err := r.load(ctx)
	r.Log("the load took %v: %s", r.history.now().Round(time.Millisecond), r.history.Summary())
	if err == nil {
		err = r.allFree(ctx)
	}
	return r.history, err
}

func (r *run) prepare() {
	r.Options = r.withDefaults()
	r.left.Store(int64(r.Operations))
	r.queues = make([]atomic.Int32, r.Resources)
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
	stopDisturbing := context.CancelFunc(func() {})
	var disturbing sync.WaitGroup
	if r.Disturb != nil {
		var during context.Context
		during, stopDisturbing = context.WithCancel(ctx)
		disturbing.Go(func() {
			for {
				select {
				case <-during.Done():
					return
				case <-r.disturb:
				}
				// Not ended with the load: what it began, such as a restart, it finishes.
				if err := r.Disturb(ctx); err != nil {
					cancel(fmt.Errorf("disturb: %w", err))
				}
			}
		})
	}
	for node := range r.sys.Nodes() {
		for slot := range r.Owners {
			start(func() error { return r.lives(ctx, node, slot) })
		}
	}
	wg.Wait()
	stopDisturbing()
	disturbing.Wait()
	return context.Cause(ctx)
}

// take takes one of the operations that are left.
func (r *run) take() bool {
	n := r.left.Add(-1)
	if n >= 0 && r.Disturb != nil && n%int64(r.DisturbEvery) == 0 {
		select {
		case r.disturb <- struct{}{}:
		default: // the last time is not over yet
		}
	}
	return n >= 0
}

// someResource prefers low numbers, so that some are wanted by many at once.
func (r *run) someResource(rng *rand.Rand) int {
	for {
		u := rng.Float64()
		n := int(u * u * float64(r.Resources))
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
	for r.left.Load() > 0 && ctx.Err() == nil {
		if err := r.life(ctx, node, rng, by); err != nil {
			return err
		}
	}
	return undertaker.proc.Kill(ctx)
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
// the last node. (Where the dead one was, asking for what it had would free it.)
func (r *run) allFree(ctx context.Context) error {
	testator, err := r.newOwner(ctx, 0)
	if err != nil {
		return err
	}
	if err := r.takeAll(ctx, testator); err != nil {
		return err
	}
	start := time.Now()
	if err := testator.kill(ctx); err != nil {
		return err
	}
	heir, err := r.newOwner(ctx, r.sys.Nodes()-1)
	if err != nil {
		return err
	}
	if err := r.takeAll(ctx, heir); err != nil {
		return err
	}
	r.Log("all %d resources were taken over %v after the death of their owner", r.Resources, time.Since(start).Round(time.Millisecond))
	if err := heir.leave(ctx); err != nil {
		return err
	}
	return heir.kill(ctx)
}

func (r *run) takeAll(ctx context.Context, o *owner) error {
	s := &speaker{run: r, owner: o}
	defer s.close()
	deadline := time.Now().Add(r.FreeWithin)
	for resource := range r.Resources {
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
			// death takes it back.
			if op.Answer != Busy || time.Now().After(deadline) {
				return fmt.Errorf("everything was released, and this is not free: %v", op)
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
