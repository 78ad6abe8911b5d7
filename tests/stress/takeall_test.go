package stress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// notYet is a backend of a daemon that cannot grant anything for a while, as one that has to find out what the one before had.
type notYet struct {
	locking.Backend
	refuses atomic.Int32 // so many requests
}

func (b *notYet) Open(ctx context.Context, ref locking.Ref, autocreate bool) (locking.Handle, error) {
	h, err := b.Backend.Open(ctx, ref, autocreate)
	return handleNotYet{h, b}, err
}

type handleNotYet struct {
	locking.Handle
	b *notYet
}

func (h handleNotYet) Lock(ctx context.Context, mode locking.Mode) error {
	if h.b.refuses.Add(-1) >= 0 {
		return &locking.Error{Kind: locking.KindUnavailable, Op: "acquire", Err: locking.ErrNotYet}
	}
	return h.Handle.Lock(ctx, mode)
}

// TestTakeAll: a daemon that was started last may refuse for a while, and one that nobody has disturbed may not.
func TestTakeAll(t *testing.T) {
	for _, disturbed := range []bool{true, false} {
		t.Run(fmt.Sprintf("disturbed %v", disturbed), func(t *testing.T) {
			ref := func(n int) locking.Ref { return locking.Ref{Name: fmt.Sprintf("/disks/%d", n)} }
			b := &notYet{Backend: locktest.NewBackend(t)}
			for n := range 2 {
				if err := b.CreateResource(t.Context(), ref(n)); err != nil {
					t.Fatal(err)
				}
			}
			b.refuses.Store(3)
			s := &inProcess{t: t, processes: locktest.NewProcesses(t)}
			defer s.stop()
			s.serve(b, func(context.Context) error { return nil })
			r := &run{sys: s, history: newHistory(), Options: Options{Resources: 2, FreeWithin: time.Minute, Ref: ref}}
			if disturbed {
				r.Disturb = func(context.Context, int, *rand.Rand) (bool, error) { return true, nil }
			}
			r.prepare()
			o, err := r.newOwner(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			err = r.takeAll(t.Context(), o)
			if disturbed && err != nil || !disturbed && (err == nil || !strings.Contains(err.Error(), "is not free")) {
				t.Error(err)
			}
			if err := errors.Join(o.leave(t.Context()), o.kill(t.Context())); err != nil {
				t.Error(err)
			}
		})
	}
}
