package daemon

import (
	"runtime"
	"slices"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestCrowd(t *testing.T) {
	waiting := 0
	c := crowd{runnable: func() int { return waiting }}
	var told []bool
	c.tellCrowded(func(crowded bool) { told = append(told, crowded) })
	for _, step := range []struct {
		waiting int
		want    []bool
	}{
		{0, nil},
		{calmBelow, nil},            // a few clients
		{crowdedFrom, []bool{true}}, // and no second time
		{crowdedFrom, []bool{true}},
		{calmBelow, []bool{true}}, // between the two nothing changes
		{0, []bool{true, false}},
		{0, []bool{true, false}},
		{20, []bool{true, false, true}},
	} {
		waiting = step.waiting
		for range crowdEvery * crowdLooks {
			c.observe(locking.Event{})
		}
		if !slices.Equal(told, step.want) {
			t.Fatalf("%d wait: told %v, want %v", step.waiting, told, step.want)
		}
	}
	// One burst among calm looks does not make a crowd.
	c.tellCrowded(func(bool) { t.Error("told of a single burst") })
	waiting = crowdedFrom*crowdLooks - 1
	for range crowdEvery {
		c.observe(locking.Event{})
	}
	waiting = 0
	for range crowdEvery * (crowdLooks - 1) {
		c.observe(locking.Event{})
	}
	c.tellCrowded(nil)
	waiting = 20
	for range crowdEvery * crowdLooks {
		c.observe(locking.Event{}) // nobody to tell
	}
}

// TestCrowdOfGoroutines: what Go says of itself is what is meant, the goroutines that wait for a processor.
func TestCrowdOfGoroutines(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var c crowd
	crowded := false
	c.tellCrowded(func(is bool) { crowded = is })
	const others = 2 * crowdedFrom
	stop, ended := make(chan struct{}), make(chan struct{})
	for range others {
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
					runtime.Gosched()
				}
			}
		}()
	}
	for n := 0; !crowded; n++ {
		if n > 100_000*crowdEvery {
			t.Fatalf("%d goroutines want the one processor, and none is seen to wait", others)
		}
		c.observe(locking.Event{})
		if n%crowdEvery == 0 {
			runtime.Gosched()
		}
	}
	close(stop)
	for range others {
		<-ended
	}
}
