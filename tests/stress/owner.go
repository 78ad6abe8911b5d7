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

// maxHeld is how many locks an owner has before it only releases.
const maxHeld = 5

// owner is a process that owns locks and the speakers in its name.
type owner struct {
	run  *run
	id   int // in the history
	node int
	proc Process

	killing sync.Mutex  // held while somebody kills it
	dead    atomic.Bool // it was killed

	mu sync.Mutex // guards the two below
	// held is how many locks it has of each resource, and maybe how many calls there
	// were of which it does not know whether they brought or took one. held is below
	// 0 where one of those did, or where a release was noted before its acquisition.
	held, maybe map[int]int
}

func (r *run) newOwner(ctx context.Context, node int) (*owner, error) {
	proc, err := r.sys.Spawn(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("start an owner on node %d: %w", node, err)
	}
	return &owner{
		run: r, node: node, proc: proc, id: r.history.addOwner(node, proc.PID()),
		held: map[int]int{}, maybe: map[int]int{},
	}, nil
}

// note keeps held and maybe up to date.
func (o *owner) note(op Op) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case op.pending():
		o.maybe[op.Resource]++
	case op.Kind == Acquire && op.Answer == Done:
		o.held[op.Resource]++
	case op.Kind == Release && op.Answer == Done:
		o.held[op.Resource]--
	case op.Kind == Release && o.maybe[op.Resource] > 0:
		o.held[op.Resource] = 0 // a release that may have happened did
	}
}

// mayHold lists the resources that it has or may have, in order.
func (o *owner) mayHold() []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []int
	for r := range o.run.numbers() {
		if o.held[r] > 0 || o.maybe[r] > 0 {
			list = append(list, r)
		}
	}
	return list
}

// settled says that it knows what it has.
func (o *owner) settled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.maybe) == 0
}

// next chooses what to do next. It returns false if o is to die.
func (o *owner) next(rng *rand.Rand) (op Op, cut, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var held, maybe []int
	total := 0
	for r := range o.run.numbers() { // in order, for the sake of the seed
		if n := o.held[r]; n > 0 {
			held = append(held, r)
			total += n
		}
		if o.maybe[r] > 0 {
			maybe = append(maybe, r)
		}
	}
	p := rng.Float64()
	cut = rng.Float64() < 0.02
	any := o.run.someResource(rng)
	switch {
	case p < 0.015 && total > 0:
		return Op{}, false, false
	case p < 0.08:
		// Mostly of something that is not its own, or that it lost sight of.
		return Op{Kind: Release, Resource: any}, cut, true
	case p < 0.20 && len(maybe) > 0:
		return Op{Kind: Release, Resource: maybe[rng.IntN(len(maybe))]}, cut, true
	case total >= maxHeld || p < 0.5 && total > 0:
		return Op{Kind: Release, Resource: held[rng.IntN(len(held))]}, cut, true
	}
	op = Op{Kind: Acquire, Resource: any, Mode: locking.Exclusive}
	if rng.Float64() < 0.45 {
		op.Mode = locking.Shared
	}
	return op, cut, true
}

// speak is one connection's share of the owner's life. It ends when all
// operations are done or the owner is dead.
func (o *owner) speak(ctx context.Context, rng *rand.Rand) error {
	s := &speaker{run: o.run, owner: o}
	defer s.close()
	for ctx.Err() == nil && !o.dead.Load() && o.run.take() {
		op, cut, ok := o.next(rng)
		if !ok {
			return o.kill(ctx)
		}
		var err error
		if cut {
			op, err = s.cutOff(ctx, op, rng)
		} else {
			op, err = s.do(ctx, op, callTimeout)
		}
		if errors.Is(err, errOwnerKilled) {
			return nil
		}
		if err != nil {
			return err
		}
		o.note(op)
		// Closing a connection in good order releases nothing either.
		if rng.Float64() < 0.01 {
			s.close()
		}
	}
	return nil
}

// kill ends the process; others may be speaking for it.
func (o *owner) kill(ctx context.Context) error {
	o.killing.Lock()
	defer o.killing.Unlock()
	if o.dead.Load() {
		return nil
	}
	o.run.history.killed(o.id, o.run.history.now())
	if err := o.proc.Kill(ctx); err != nil {
		return fmt.Errorf("kill owner %d: %w", o.id, err)
	}
	o.dead.Store(true)
	return nil
}

// bury waits until the daemon has freed what the owner had when it was killed, and
// notes when that was. Nobody speaks for the owner any more.
func (o *owner) bury(ctx context.Context, by *speaker) error {
	call := o.run.history.killedAt(o.id)
	for _, r := range o.mayHold() {
		if err := by.seeFree(ctx, r, o); err != nil {
			return err
		}
		o.run.history.add(Op{Kind: Death, Resource: r, Owner: o.id, Call: call, Return: o.run.history.now()})
	}
	return nil
}

// seeFree returns once a dead owner has a resource no longer. It asks by trying
// to acquire it: a refusal names those who have it on this node, and if nobody
// there has it, the dead one has not either.
func (s *speaker) seeFree(ctx context.Context, resource int, dead *owner) error {
	deadline := time.Now().Add(s.run.FreeWithin)
	for {
		op, err := s.do(ctx, Op{Kind: Acquire, Resource: resource, Mode: locking.Exclusive}, callTimeout)
		if err != nil {
			return err
		}
		if op.pending() && s.run.Disturb != nil {
			if err := s.giveBack(ctx, resource, false); err != nil {
				return err
			}
		}
		switch {
		case op.Answer == Done:
			return s.giveBack(ctx, resource, true)
		case op.Answer == Busy && !names(op.Text, dead.proc.PID()):
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("resource %d of owner %d (node %d, pid %d), who was killed, is not free after %v; the last answer: %v",
				resource, dead.id, dead.node, dead.proc.PID(), s.run.FreeWithin, op)
		}
		select {
		case <-time.After(s.run.Latency):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// giveBack releases what was granted, or may have been.
func (s *speaker) giveBack(ctx context.Context, resource int, granted bool) error {
	deadline := time.Now().Add(s.run.FreeWithin)
	for {
		op, err := s.do(ctx, Op{Kind: Release, Resource: resource}, callTimeout)
		switch {
		case err != nil:
			return err
		case op.pending():
			granted = false // it may be done
		case op.Answer == Done || !granted:
			return nil
		default:
			return fmt.Errorf("the lock is not there that was just granted: %v", op)
		}
		if s.run.Disturb == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a lock cannot be given back within %v: %v", s.run.FreeWithin, op)
		}
		select {
		case <-time.After(s.run.Latency):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave releases all that the owner has.
func (o *owner) leave(ctx context.Context) error {
	s := &speaker{run: o.run, owner: o}
	defer s.close()
	for _, r := range o.mayHold() {
		for o.held[r] > 0 {
			op, err := s.do(ctx, Op{Kind: Release, Resource: r}, callTimeout)
			if err != nil {
				return err
			}
			o.note(op)
			if op.Answer == NotLocked || op.Answer == NotOwner {
				return fmt.Errorf("a lock is lost: %v", op)
			}
			if op.Answer != Done {
				return nil // it may have happened; the owner's death settles it
			}
		}
	}
	return nil
}
