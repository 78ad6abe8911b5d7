package peers

import (
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// Who asks for everything again and again gets everything, each time, though it has
// to wait: nobody drops its questions, and nobody is taken for silent.
func TestOften(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.end()
		const times = 60
		began := time.Now()
		for range times {
			complete(t, w.nodes[1], 1, 2, 3)
		}
		if took, want := time.Since(began), times*time.Second/askRate; took > want {
			t.Errorf("it took %v, more than %v", took, want)
		}
		for i := 2; i <= 3; i++ {
			if n := w.nodes[i].Stats().Dropped; n != 0 {
				t.Errorf("node %d has dropped %d questions", i, n)
			}
			if m := w.nodes[1].member(i); !m.Silent.IsZero() {
				t.Errorf("node %d is taken for silent", i)
			}
		}
	})
}

// A question that is one too many gets an answer that says so, at once.
func TestBusy(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		d := w.nodes[1]
		d.Peers.mu.Lock()
		d.asking = newBucket(1000, 1000, time.Now())
		d.Peers.mu.Unlock()
		began, busy := time.Now(), 0
		for range 2 * listBurst {
			list, err := d.ask()
			n := of(list, 2)
			switch {
			case err != nil || n == nil || n.Err != nil && !errors.Is(n.Err, ErrBusy):
				t.Fatalf("%+v, %v", list, err)
			case n.Err != nil:
				busy++
			}
		}
		if took := time.Since(began); busy != listBurst || took != 0 {
			t.Errorf("%d of %d questions were too many, after %v", busy, 2*listBurst, took)
		}
		if m := d.member(2); !m.Silent.IsZero() {
			t.Error("node 2 is taken for silent")
		}
		if got := d.holders(t, "own 2"); len(got) != 1 {
			t.Errorf("a look-up got %+v", got)
		}
	})
}

// One that has begun to answer when the time is over is slow, and not silent.
func TestSlow(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		d := w.nodes[1]
		s := w.stranger(1)
		defer s.close()
		s.say(header{kind: kindHello}, `{"name":"slow"}`)
		go func() {
			id := s.asked(d.me())
			s.say(header{kind: kindAnswer, query: id, asker: d.me()}, page(d.holding("some", "exclusive")))
		}()
		list, err := d.ask()
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, n := range list {
			if n.PID == s.self.PID && (len(n.Holdings) != 1 || !errors.Is(n.Err, ErrIncomplete)) {
				t.Errorf("%+v", n)
			}
		}
		for _, m := range d.Members() {
			if !m.Silent.IsZero() {
				t.Errorf("silent: %+v", m)
			}
		}
	})
}
