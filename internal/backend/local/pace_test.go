package local

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestTellSlow: others must hear of a file system that hangs as soon as they ask for a file, and not when
// the access that hangs returns, and it is slow for as long as that.
func TestTellSlow(t *testing.T) {
	slow, fast := disk(t), disk(t)
	fakeclock.Test(t, func(t *testing.T) {
		var (
			mu   sync.Mutex
			told []bool
		)
		heard := func() []bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(told)
		}
		k := &hung{path: slow, entered: make(chan struct{}, 8), release: make(chan struct{}), opened: map[int]bool{}}
		b := New()
		b.sys = k
		b.TellSlow(func(slow bool) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, slow)
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			_, err := b.Open(ctx, locking.Ref{Name: slow}, false)
			done <- err
		}()
		<-k.entered
		time.Sleep(slowAccess - 1) // by the bubble's clock: not slow yet
		pair(t, b, fast)
		if got := heard(); len(got) > 0 {
			t.Fatalf("told %v before anything was slow", got)
		}
		time.Sleep(time.Nanosecond) // by the bubble's clock: slow from now on
		go func() {                 // it hangs as well, so that no end of an access tells
			_, err := b.Open(ctx, locking.Ref{Name: slow}, false)
			done <- err
		}()
		<-k.entered
		if got := heard(); !slices.Equal(got, []bool{true}) {
			t.Fatalf("told %v when an access had hung for %v", got, slowAccess)
		}
		cancel() // that its caller has gone away ends nothing
		<-done
		<-done
		time.Sleep(2 * paceCalm) // by the bubble's clock: long enough if nothing hung
		pair(t, b, fast)
		if got := heard(); !slices.Equal(got, []bool{true}) {
			t.Fatalf("told %v while the access hung", got)
		}
		close(k.release)
		fakeclock.Wait()
		time.Sleep(paceCalm - 1) // by the bubble's clock: not calm for long enough yet
		pair(t, b, fast)
		if got := heard(); !slices.Equal(got, []bool{true}) {
			t.Fatalf("told %v before %v were over", got, paceCalm)
		}
		time.Sleep(time.Nanosecond) // by the bubble's clock: calm for long enough
		pair(t, b, fast)
		if got := heard(); !slices.Equal(got, []bool{true, false}) {
			t.Fatalf("told %v, %v after the last slow access", got, paceCalm)
		}
		if b.pace.first != nil || b.pace.last != nil {
			t.Error("an access that has ended is in the list")
		}
	})
}

// TestSlowUnlock: giving back can hang as well, and it has a goroutine of its own.
func TestSlowUnlock(t *testing.T) {
	path := disk(t)
	fakeclock.Test(t, func(t *testing.T) {
		k := &slowClose{release: make(chan struct{})}
		b := New()
		b.sys = k
		told := make(chan bool, 8)
		b.TellSlow(func(slow bool) { told <- slow })
		h := open(t, b, locking.Ref{Name: path}, false)
		ctx, cancel := context.WithTimeout(context.Background(), slowAccess)
		defer cancel()
		if err := h.Unlock(ctx); err == nil {
			t.Fatal("it did not hang")
		}
		if len(told) != 0 {
			t.Fatal("told although nobody has asked")
		}
		open(t, b, locking.Ref{Name: path}, false)
		if len(told) != 1 || !<-told {
			t.Fatal("not told that giving back hangs")
		}
		close(k.release)
		fakeclock.Wait()
	})
}

// slowClose waits with each close until it is released.
type slowClose struct {
	kernel
	release chan struct{}
}

func (s *slowClose) close(fd int) {
	<-s.release
	s.kernel.close(fd)
}
