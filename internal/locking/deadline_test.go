package locking

import (
	"context"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

func TestDeadlines(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		const timeout = 6400 * time.Millisecond
		server, stop := context.WithCancel(context.Background())
		d := &deadlines{timeout: timeout}
		left := func(ctx context.Context) time.Duration {
			end, ok := ctx.Deadline()
			if !ok {
				t.Fatal("no deadline")
			}
			return time.Until(end)
		}
		first, end := d.of(server)
		if got := left(first); got != timeout {
			t.Errorf("the first has %v, want %v", got, timeout)
		}
		end()                                            // others use it
		time.Sleep(timeout/sharedPart - time.Nanosecond) // by the bubble's clock: the last moment to share it
		second, _ := d.of(server)
		if second != first || first.Err() != nil {
			t.Errorf("one that comes a little later has a deadline of its own (the first: %v)", first.Err())
		}
		time.Sleep(time.Nanosecond) // by the bubble's clock: the first at which the next one is made
		third, _ := d.of(server)
		if got := left(third); third == first || got != timeout {
			t.Errorf("one that comes after a 64th has %v, want %v", got, timeout)
		}
		// Another's context, in the same time, has a deadline of its own, which ends with its request.
		control, forget := context.WithCancel(context.Background())
		defer forget()
		alone, done := d.of(control)
		if got := left(alone); got != timeout {
			t.Errorf("another context has %v, want %v", got, timeout)
		}
		done()
		if alone.Err() == nil {
			t.Error("a context of its own goes on after its request")
		}
		if again, _ := d.of(server); again != third {
			t.Error("another context came between those that share")
		}
		// Who comes later has the next one: nobody keeps the others from sharing for good.
		time.Sleep(timeout / sharedPart) // by the bubble's clock: until the next one is made, for whoever asks
		other, _ := d.of(control)
		if again, _ := d.of(control); again != other {
			t.Error("another context's requests share nothing when their time has come")
		}
		<-first.Done()
		if first.Err() != context.DeadlineExceeded {
			t.Errorf("the first ended with %v", first.Err())
		}
		last, _ := d.of(server)
		stop()
		if last.Err() == nil {
			t.Error("the server's end does not end a shared one")
		}
		next, stopNext := context.WithCancel(context.Background())
		defer stopNext()
		a, _ := d.of(next)
		if b, _ := d.of(next); a != b || a.Err() != nil {
			t.Error("after the server's end the next context's requests share nothing")
		}
	})
}

// uncomparable cannot be compared with another of its kind.
type uncomparable struct {
	context.Context
	_ []int
}

func TestDeadlinesOfAnyContext(t *testing.T) {
	d := &deadlines{timeout: time.Minute}
	for range 2 {
		ctx, end := d.of(uncomparable{Context: context.Background()})
		if _, ok := ctx.Deadline(); !ok {
			t.Error("no deadline")
		}
		end()
	}
	if ctx, _ := (&deadlines{}).of(context.Background()); ctx != context.Background() {
		t.Error("a deadline, and there is no timeout")
	}
}
