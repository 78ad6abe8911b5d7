package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

const (
	// freeAtOnce is how many locks are asked for at the same time: one takes as long
	// as messages between nodes do, and there are a hundred.
	freeAtOnce = 8
	// takeAgain is the pause before a lock that was refused is asked for again.
	takeAgain = 200 * time.Millisecond
)

// free finds out that nobody keeps a lock: each is taken, and given back in good
// order. It prints a line for every refusal, and ends when ctx does.
func free(ctx context.Context, owner int, prefix string, count int) error {
	names := make(chan string)
	errs := make([]error, freeAtOnce)
	var asking sync.WaitGroup
	for i := range errs {
		asking.Go(func() {
			for name := range names {
				if err := freeOne(ctx, owner, name); err != nil {
					errs[i] = errors.Join(errs[i], fmt.Errorf("%s: %w", name, err))
				}
			}
		})
	}
	for i := range count {
		names <- fmt.Sprintf("%s-%d", prefix, i)
	}
	close(names)
	asking.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println("all free")
	return nil
}

func freeOne(ctx context.Context, owner int, name string) error {
	c, err := dial(ctx, owner, vm)
	if err != nil {
		return err
	}
	defer c.Close()
	ref := locking.Ref{Name: name}
	if err := take(ctx, c, ref, func(error) bool { return false }); err != nil {
		return err
	}
	return c.Release(ctx, ref)
}

// isHeld: somebody has the lock, so that asking again is no use. All else that a daemon
// refuses for may pass: that dlm_controld of a busy machine is silent, or that another
// node joins just now.
func isHeld(err error) bool {
	var e *rpc.Error
	return !errors.As(err, &e) || e.Code == rpc.CodeResourceBusy
}

// take asks for a lock until it is granted, a refusal is final or ctx ends. It prints a
// line for every other refusal.
func take(ctx context.Context, c *lockprogram.Client, ref locking.Ref, final func(error) bool) error {
	for {
		start := time.Now()
		err := c.Acquire(ctx, ref, 0)
		if err == nil || ctx.Err() != nil || final(err) {
			return err
		}
		fmt.Println(line(start, err, ""))
		select {
		case <-time.After(takeAgain):
		case <-ctx.Done():
			return err
		}
	}
}
