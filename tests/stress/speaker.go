package stress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// callTimeout is when the load no longer waits for an answer; a daemon answers
// much earlier.
const callTimeout = 30 * time.Second

// speaker is a connection in the name of an owner, made again when it breaks. It
// is used by one goroutine.
type speaker struct {
	run    *run
	owner  *owner
	client *lockprogram.Client // nil after a break
}

// errOwnerKilled is why no new connection is made in an owner's name.
var errOwnerKilled = errors.New("the owner was killed")

// connect connects and registers, and tries again while the daemon is away.
func (s *speaker) connect(ctx context.Context) error {
	if s.client != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.run.ReconnectWithin)
	defer cancel()
	for {
		err := s.connectOnce(ctx)
		if s.run.Disturb != nil && s.run.history.killedAt(s.owner.id) != never {
			// A daemon that was started after the owner's death has no means to know
			// that this pid was somebody's.
			s.close()
			return errOwnerKilled
		}
		var refused *rpc.Error
		if err == nil || errors.As(err, &refused) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to the daemon of node %d: %w", s.owner.node, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *speaker) connectOnce(ctx context.Context) error {
	conn, err := s.run.sys.Dial(ctx, s.owner.node)
	if err != nil {
		return err
	}
	c := &lockprogram.Client{Client: rpc.NewClient(conn)}
	o := locking.Owner{PID: s.owner.proc.PID(), ID: uint32(s.owner.id) + 1, Name: fmt.Sprintf("owner-%d", s.owner.id)}
	if err := c.Register(ctx, o); err != nil {
		c.Close()
		return err
	}
	s.client = c
	return nil
}

func (s *speaker) close() {
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
}

// do carries out an operation, within patience, and puts it into the history.
func (s *speaker) do(ctx context.Context, o Op, patience time.Duration) (Op, error) {
	o.Owner = s.owner.id
	if err := s.connect(ctx); err != nil {
		return o, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ref := s.run.Ref(o.Resource)
	s.run.queues[o.Resource].Add(1)
	defer s.run.queues[o.Resource].Add(-1)
	var err error
	o.Call = s.run.history.now()
	switch {
	case o.Kind == Release:
		err = s.client.Release(ctx, ref)
	case o.Mode == locking.Shared:
		err = s.client.Acquire(ctx, ref, s.run.Flags|lockprogram.FlagShared)
	default:
		err = s.client.Acquire(ctx, ref, s.run.Flags)
	}
	o.Return = s.run.history.now()
	var bad error
	o.Answer, bad = answerOf(o.Kind, err)
	if err != nil {
		o.Text = err.Error()
	}
	s.run.history.add(o)
	if o.pending() {
		s.run.noOutcome(o.Resource)
	}
	if errors.Is(err, rpc.ErrBroken) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		s.close()
	}
	if bad != nil {
		return o, fmt.Errorf("%v: %w", o, bad)
	}
	return o, nil
}

// cutOff begins an operation and closes the connection in the middle of it,
// unless the answer comes first.
func (s *speaker) cutOff(ctx context.Context, o Op, rng *rand.Rand) (Op, error) {
	if err := s.connect(ctx); err != nil {
		return o, err
	}
	o, err := s.do(ctx, o, time.Duration(rng.Int64N(int64(2*s.run.Latency))))
	s.close()
	return o, err
}
