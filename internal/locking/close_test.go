package locking_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// Close waits for releases under way and starts nothing new.
func TestCloseWaitsForReleases(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		stays, q := w.vm(2)
		w.acquire(g, disk("a"), locking.Exclusive)
		w.acquire(stays, disk("b"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		p.Kill()
		gate.Arrived()
		closed := start(func() error { return w.m.Close(context.Background()) })
		settle()
		w.pending(closed)
		q.Kill() // too late to be noticed: its lock is the next start's business
		settle()
		gate.Open()
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		w.holders(disk("a"))
		w.holders(disk("b"), 2)
		w.b.CheckQuiet(map[string]locking.Mode{"id-b": locking.Exclusive})
	})
}

func TestCloseGivesUpWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		p.Kill()
		gate.Arrived()
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		if err := w.m.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("close: %v", err)
		}
		settle() // what it waited for is given up: the bubble has to be empty
		gate.Open()
		settle()
		w.b.CheckQuiet(nil)
	})
}

// Nobody else would send it its SIGKILL: the next process has no connection of this owner.
func TestCloseWhileAnOwnerIsBeingEnded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		p.Deaf(locking.EndPatience / 2)
		w.acquire(g, disk("a"), locking.Exclusive)
		g.Disconnected()
		<-p.Asked()
		if err := w.m.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Gone():
		default:
			t.Fatal("the owner was not killed")
		}
		w.holders(disk("a"), 1) // the next start releases it
		w.toldIs(locking.Granted, locking.OwnerEnding)
	})
}

// One that the kernel does not end holds up nobody for ever, and that is said.
func TestCloseWhileAnOwnerDoesNotEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stubborn()
		closed := start(func() error { return w.m.Close(context.Background()) })
		advance(locking.EndPatience - 1)
		w.pending(closed)
		advance(1)
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Fatal("it holds up Close")
		}
		w.holders(disk("a"), 1)
		w.toldIs(locking.Granted, locking.OwnerEnding, locking.OwnerEndFailed)
	})
}

// Close has only as much time as its context.
func TestCloseGivesUpAnEndingWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stubborn()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = w.m.Close(ctx)
		settle() // what it waited for is given up: the bubble has to be empty
		w.toldIs(locking.Granted, locking.OwnerEnding, locking.OwnerEndFailed)
	})
}
