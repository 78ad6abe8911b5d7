package daemon

import (
	"runtime/metrics"
	"sync"
	"sync/atomic"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// crowdEvery is how many locks are granted, given back or refused between two looks. A look takes 0.1 us.
	crowdEvery = 32
	// crowdLooks is how many looks make one judgement, so that no single burst decides.
	crowdLooks = 8
	// A daemon with one processor is crowded when crowdedFrom goroutines or more wait for it, in the mean of these
	// looks, and calm again when fewer than calmBelow do. Measured with one processor and with two alike: one client
	// makes 0 to 0.9, eight make 2.7 and 6 at most, and 64 make 26 and 9 at least. Eight are served faster by one.
	crowdedFrom = 8
	calmBelow   = 4
)

// crowd finds out whether more clients ask at the same time than one processor serves well. No timer runs for it: it
// looks when something was done for a client. Its zero value looks at nothing until tellCrowded is called.
type crowd struct {
	watched  atomic.Bool
	events   atomic.Uint32
	runnable func() int // how many goroutines wait for a processor; for tests, nil otherwise

	mu      sync.Mutex // guards all below
	tell    func(crowded bool)
	looks   int
	sum     int
	crowded bool
	sample  [1]metrics.Sample
}

// tellCrowded has tell called with true when the daemon has become crowded, and with false when it is calm again. tell
// is called in the goroutine of a request. A nil tell ends that.
func (c *crowd) tellCrowded(tell func(crowded bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell, c.looks, c.sum, c.crowded = tell, 0, 0, false
	c.sample[0].Name = "/sched/goroutines/runnable:goroutines"
	c.watched.Store(tell != nil)
}

// observe is told of what is done for clients.
func (c *crowd) observe(locking.Event) {
	if !c.watched.Load() || c.events.Add(1)%crowdEvery != 0 {
		return
	}
	if !c.mu.TryLock() { // somebody looks, and may be telling: that waits for a collection of garbage under way
		return
	}
	defer c.mu.Unlock()
	if c.tell == nil {
		return
	}
	c.sum += c.lockedRunnable()
	c.looks++
	if c.looks < crowdLooks {
		return
	}
	sum := c.sum
	c.looks, c.sum = 0, 0
	switch {
	case !c.crowded && sum >= crowdedFrom*crowdLooks:
		c.crowded = true
	case c.crowded && sum < calmBelow*crowdLooks:
		c.crowded = false
	default:
		return
	}
	c.tell(c.crowded)
}

func (c *crowd) lockedRunnable() int {
	if c.runnable != nil {
		return c.runnable()
	}
	metrics.Read(c.sample[:])
	if c.sample[0].Value.Kind() != metrics.KindUint64 { // a Go that does not know it
		return 0
	}
	return int(c.sample[0].Value.Uint64())
}
