package fakeclock_test

import (
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// With two processors and the race detector, nearly all runs of this end in a race
// that is none, or in the detector's crash.
func TestTimersOfOneBubble(t *testing.T) {
	const workers, rounds = 8, 300
	for range 100 {
		fakeclock.Test(t, func(t *testing.T) {
			began := time.Now()
			var group sync.WaitGroup
			for range workers {
				group.Go(func() {
					for range rounds {
						never, due := time.NewTimer(time.Hour), time.NewTimer(time.Microsecond)
						time.Sleep(2 * time.Microsecond) // by the bubble's clock: so that the goroutines look at their timers at once
						select {
						case <-never.C:
							t.Error("an hour has passed within microseconds")
						default:
						}
						never.Stop()
						<-due.C
					}
				})
			}
			group.Wait()
			if passed := time.Since(began); passed != rounds*2*time.Microsecond {
				t.Fatalf("%v have passed", passed)
			}
		})
	}
}
