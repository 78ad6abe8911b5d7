package locking

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

func TestTurnInOrder(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		var turn turn
		ctx := t.Context()
		if err := turn.take(ctx); err != nil {
			t.Fatal(err)
		}
		var order []int
		for i := range 5 {
			soon, cancel := context.WithTimeout(ctx, time.Minute)
			if i == 2 {
				soon, cancel = context.WithTimeout(ctx, time.Second)
			}
			go func() {
				defer cancel()
				err := turn.take(soon)
				if i == 2 {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("it was refused with %v", err)
					}
					return
				}
				order = append(order, i)
				turn.give()
			}()
			fakeclock.Wait()
		}
		time.Sleep(2 * time.Second)
		turn.give()
		fakeclock.Wait()
		if !slices.Equal(order, []int{0, 1, 3, 4}) {
			t.Errorf("they had their turns in the order %v", order)
		}
		if turn.line != nil {
			t.Errorf("%+v is left", &turn)
		}
	})
}

// Whoever goes away at the moment of his turn loses it for nobody else.
func TestTurnWhileLeaving(t *testing.T) {
	var turn turn
	var inside sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 2000 {
				ctx, cancel := context.WithCancel(context.Background())
				if i%2 == 0 {
					go cancel()
				}
				if turn.take(ctx) == nil {
					if !inside.TryLock() {
						t.Error("two have the turn")
						cancel()
						return
					}
					inside.Unlock()
					turn.give()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if turn.line != nil {
		t.Errorf("%+v is left", &turn)
	}
}
