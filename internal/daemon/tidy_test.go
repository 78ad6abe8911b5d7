package daemon

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestTidyWhenCalm(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		var freed, finished atomic.Int64
		var percent atomic.Int64
		percent.Store(100)
		tidy := &tidier{free: func() { freed.Add(1) }, gc: func(n int) int { return int(percent.Swap(int64(n))) }}
		wantGC := func(what string, n int64) {
			t.Helper()
			if got := percent.Load(); got != n {
				t.Fatalf("%s: GOGC is %d, not %d", what, got, n)
			}
		}
		granted := func(n int) {
			for range n {
				tidy.observe(locking.Event{Kind: locking.Granted})
			}
		}
		want := func(what string, n int64) {
			t.Helper()
			fakeclock.Wait()
			if got := freed.Load(); got != n {
				t.Fatalf("%s: freed %d times, not %d", what, got, n)
			}
		}
		granted(tidyFrom - 1)
		time.Sleep(time.Minute) // by the bubble's clock: long past calm
		want("few locks", 0)
		for range 10 {
			granted(1)
			time.Sleep(calm / 2) // by the bubble's clock: before calm is over
		}
		want("while locks are taken", 0)
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("when that is over", 1)
		for range tidyFrom {
			tidy.observe(locking.Event{Kind: locking.Refused})
		}
		time.Sleep(time.Minute) // by the bubble's clock: long past calm
		want("nothing since", 1)

		tidy.did(3, func() { finished.Add(1) })
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("little was taken back", 1)
		tidy.did(tidyFrom, func() { finished.Add(1) })
		time.Sleep(calm / 2) // by the bubble's clock: before calm is over
		if n := finished.Load(); n != 1 {
			t.Fatalf("finished %d times", n)
		}
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("much was taken back", 2)
		var busy atomic.Bool
		busy.Store(true)
		tidy.until(busy.Load)
		granted(tidyFrom)
		time.Sleep(time.Minute) // by the bubble's clock: long past calm
		want("while they are published", 3)
		wantGC("while they are published", quietGC)
		granted(1)
		time.Sleep(calm * 3 / 2) // by the bubble's clock: a look, and not two
		wantGC("while they are published and requests come", 100)
		time.Sleep(time.Minute) // by the bubble's clock: long past calm
		want("while they are published still", 3)
		wantGC("and none comes any more", quietGC)
		busy.Store(false)
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("when that is over", 4)
		wantGC("when that is over", 100)
		granted(tidyFrom)
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("at the next time", 5)
		for _, kind := range []locking.EventKind{locking.TakenAgain, locking.Released, locking.ReleasedGone} {
			for range tidyFrom/3 + 1 {
				tidy.observe(locking.Event{Kind: kind})
			}
		}
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("each kind of event counts", 6)
		busy.Store(true)
		tidy.did(tidyFrom, func() { finished.Add(1) })
		time.Sleep(2 * calm) // by the bubble's clock: past calm
		want("while there is work before the end", 7)
		wantGC("before the end", quietGC)
		tidy.stop()
		wantGC("after the end", 100)
		if n := finished.Load(); n != 3 {
			t.Errorf("finished %d times of 3", n)
		}
		granted(2 * tidyFrom)
		time.Sleep(time.Minute) // by the bubble's clock: long past calm
		want("after the end", 7)
	})
}
