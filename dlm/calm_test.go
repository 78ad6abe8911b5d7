package dlm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// membersKernel says when the members have changed, as Host does.
type membersKernel struct {
	*dlmtest.Node
	changed func() (time.Time, error)
}

func (k *membersKernel) MembersChanged(string) (time.Time, error) { return k.changed() }

// TestRemoveWaits: who leaves while others recover from the change before may stay in the kernel for minutes.
func TestRemoveWaits(t *testing.T) {
	const name = "disks"
	type node = *dlmtest.Node
	ago := func(d time.Duration) func() (time.Time, error) {
		at := time.Now().Add(-d)
		return func() (time.Time, error) { return at, nil }
	}
	var late chan struct{} // closed when the kernel answers after all
	hangs := func() func() (time.Time, error) {
		answers := late
		return func() (time.Time, error) { <-answers; return time.Time{}, nil }
	}
	for what, tc := range map[string]struct {
		changed func() func() (time.Time, error)
		before  func(node)
		bounded time.Duration // of the context, 0 for none
		want    time.Duration
	}{
		"nobody has come or gone for long": {changed: func() func() (time.Time, error) { return ago(time.Hour) }},
		"the last one has just gone":       {changed: func() func() (time.Time, error) { return ago(500 * time.Millisecond) }, want: 1500 * time.Millisecond},
		"nobody else is there":             {changed: func() func() (time.Time, error) { return func() (time.Time, error) { return time.Time{}, nil } }},
		"it is not told": {changed: func() func() (time.Time, error) {
			return func() (time.Time, error) { return time.Time{}, errors.New("no") }
		}},
		"the lockspace is stopped for ever": {changed: func() func() (time.Time, error) { return ago(time.Hour) }, before: func(n node) { n.Suspend(name) }, want: 3 * time.Second},
		"the clock was set back":            {changed: func() func() (time.Time, error) { return ago(-time.Hour) }, want: 3 * time.Second},
		"a second is left for leaving":      {changed: func() func() (time.Time, error) { return ago(0) }, bounded: 2 * time.Second, want: time.Second},
		"there is no time":                  {changed: func() func() (time.Time, error) { return ago(0) }, bounded: time.Second},
		"the kernel does not answer":        {changed: hangs, want: 3 * time.Second},
		"nor that in time":                  {changed: hangs, bounded: 2 * time.Second, want: time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			fakeclock.Test(t, func(t *testing.T) {
				late = make(chan struct{})
				defer close(late)
				c := dlmtest.NewCluster(2)
				k := &membersKernel{c.Node(1), tc.changed()}
				ls, err := dlm.Create(t.Context(), k, name, dlm.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if err := ls.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				if tc.before != nil {
					tc.before(k.Node)
				}
				ctx := t.Context()
				if tc.bounded > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.bounded)
					defer cancel()
				}
				begin := time.Now()
				err = dlm.Remove(ctx, k, name, false)
				if took := time.Since(begin).Truncate(100 * time.Millisecond); took != tc.want { // by the bubble's clock
					t.Errorf("left after %v, want %v", took, tc.want)
				}
				fakeclock.Wait() // what is late goes on
				if _, gone := k.Minor(name); !errors.Is(gone, dlm.ErrNoLockspace) {
					t.Errorf("%v; it is still there: %v", err, gone)
				}
			})
		})
	}
}
