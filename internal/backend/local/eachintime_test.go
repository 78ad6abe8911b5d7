package local

import (
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// As many locks as are taken back at a time may hang, and all others are taken back
// soon, each once.
func TestEachInTime(t *testing.T) {
	for _, hanging := range []int{0, 1, restorers - 1} {
		fakeclock.Test(t, func(t *testing.T) {
			const n = 3000
			list := make([]int, n)
			for i := range list {
				list[i] = i
			}
			heal := make(chan struct{})
			rest := make(chan struct{})
			var mu sync.Mutex
			calls := make([]int, n)
			ended := 0
			begin := time.Now()
			returned := make(chan struct{})
			go func() {
				eachInTime(list, func(i int) {
					mu.Lock()
					calls[i]++
					mu.Unlock()
					if i < hanging {
						<-heal
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if ended++; ended == n-hanging {
						close(rest)
					}
				})
				close(returned)
			}()
			<-rest
			if took := time.Since(begin); took > 100*time.Millisecond {
				t.Errorf("with %d that hang the others took %v", hanging, took)
			}
			if hanging > 0 {
				select {
				case <-returned:
					t.Error("it has returned, and calls are under way")
				default:
				}
			}
			close(heal)
			<-returned
			for i, c := range calls {
				if c != 1 {
					t.Fatalf("%d: %d calls", i, c)
				}
			}
		})
	}
	eachInTime(nil, func(int) { t.Error("called for nothing") })
}
