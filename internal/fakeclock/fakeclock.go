// Package fakeclock runs a test in a bubble of testing/synctest, where time
// passes only when everything waits.
//
// It is there for one error in Go (seen with 1.26.8; golang.org/issue/78156):
// under the race detector all timers of a bubble share one context of the
// detector, also when goroutines on several processors look at their timers'
// channels at once. The detector then reports races that are none, or crashes.
// TestTimersOfOneBubble fails where this package does not help.
package fakeclock

import (
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// Test is synctest.Test. Under the race detector, the program has one processor
// meanwhile: what the detector knows of an order does not depend on that. Two of
// these must not run at once.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if testenv.WithRace {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	synctest.Test(t, f)
}

// Wait is synctest.Wait.
func Wait() { synctest.Wait() }
