package locking_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// quorate is what a backend may say of itself.
type quorate struct{ error }

func (quorate) Cause() string { return "quorum" }

func TestCause(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, _ := w.vm(1)
		w.b.Fail(locktest.On(locktest.OpLock, "id-a"), &locking.Error{Kind: locking.KindUnavailable, Err: quorate{errIO}}, 1)
		err := g.Acquire(context.Background(), disk("a"), locking.Exclusive, false)
		if c := locking.Cause(fmt.Errorf("wrapped: %w", err)); c != "quorum" {
			t.Errorf("of %v: %q", err, c)
		}
		stuck := w.b.Block(locktest.On(locktest.OpLock, "id-a"))
		err = g.Acquire(context.Background(), disk("a"), locking.Exclusive, false)
		if c := locking.Cause(err); c != "timeout" {
			t.Errorf("of %v: %q", err, c)
		}
		stuck.Open()
		for _, err := range []error{nil, errIO, errors.Join(errIO), context.Canceled} {
			if c := locking.Cause(err); c != "" {
				t.Errorf("of %v: %q", err, c)
			}
		}
		g.Close()
		settle()
		if err := w.m.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		_, err = w.m.Register(locking.Owner{PID: 3})
		if c := locking.Cause(err); c != "stopping" {
			t.Errorf("of %v: %q", err, c)
		}
	})
}
