package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// freeAtOnce is how many locks are asked for at the same time: one takes as long
	// as messages between nodes do, and there are a hundred.
	freeAtOnce = 8
	// freeAgain is the pause before one that somebody has is asked for again.
	freeAgain = 200 * time.Millisecond
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
	for {
		start := time.Now()
		err := c.Acquire(ctx, ref, 0)
		if err == nil {
			return c.Release(ctx, ref)
		}
		if ctx.Err() != nil {
			return err
		}
		fmt.Println(line(start, err, ""))
		select {
		case <-time.After(freeAgain):
		case <-ctx.Done():
			return err
		}
	}
}
