package local

import (
	"context"
	"runtime"
	"sync"
	"testing"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestKeepWorkers: goroutines wait for the next call, as many as was said and no more, and end when
// none is to. That none is left is what the bubble says: it fails when a goroutine stays.
func TestKeepWorkers(t *testing.T) {
	path := disk(t)
	fakeclock.Test(t, func(t *testing.T) {
		const most, calls = 2, 5
		b := New()
		b.KeepWorkers(most)
		var all sync.WaitGroup
		release := make(chan struct{})
		for range calls {
			all.Go(func() {
				err := b.call(context.Background(), path, func() error { <-release; return nil }, func() {})
				if err != nil {
					t.Error(err)
				}
			})
		}
		fakeclock.Wait()
		idle := func() int {
			b.workers.mu.Lock()
			defer b.workers.mu.Unlock()
			return len(b.workers.idle)
		}
		if n := idle(); n != 0 {
			t.Errorf("%d goroutines wait while %d calls are under way", n, calls)
		}
		close(release)
		all.Wait()
		fakeclock.Wait()
		if n := idle(); n != most {
			t.Errorf("%d goroutines wait, want %d", n, most)
		}
		before := runtime.NumGoroutine()
		pair(t, b, path)
		fakeclock.Wait()
		if n := runtime.NumGoroutine(); n != before {
			t.Errorf("%d goroutines after some calls, %d before", n, before)
		}
		b.KeepWorkers(0)
		pair(t, b, path)
	})
}

// TestKeptWorkerAbandoned: a call whose caller has gone away has its answer kept from the next call.
func TestKeptWorkerAbandoned(t *testing.T) {
	path, other := disk(t), disk(t)
	fakeclock.Test(t, func(t *testing.T) {
		b := New()
		b.KeepWorkers(1)
		defer b.KeepWorkers(0)
		release, undone := make(chan struct{}), false
		ctx, cancel := context.WithCancel(context.Background())
		answer := make(chan error)
		go func() {
			answer <- b.call(ctx, path, func() error { <-release; return context.DeadlineExceeded }, func() { undone = true })
		}()
		fakeclock.Wait()
		cancel()
		if err := <-answer; err != context.Canceled {
			t.Errorf("a call that was given up: %v", err)
		}
		pair(t, b, other)
		if undone {
			t.Error("undone before it had returned")
		}
		close(release)
		fakeclock.Wait()
		if !undone || b.Unsettled() != 0 || len(b.slots) != 0 {
			t.Errorf("after it has returned: undone %v, %d unsettled, %d under way", undone, b.Unsettled(), len(b.slots))
		}
		pair(t, b, path)
	})
}

// TestAllocationsOfAPair: what a pair allocates, beside the path as the kernel wants it, twice, is the
// handle and what it is known by.
func TestAllocationsOfAPair(t *testing.T) {
	limit := 4.0
	if testenv.WithRace {
		limit += 3 * 2 // pools forget some of what is put into them, at random: a job and its channel
	}
	b, path := New(), disk(t)
	b.KeepWorkers(4)
	defer b.KeepWorkers(0)
	if n := testing.AllocsPerRun(200, func() { pair(t, b, path) }); n > limit {
		t.Errorf("%v allocations, want %v at most", n, limit)
	}
}
