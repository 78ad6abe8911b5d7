package dlm

import (
	"errors"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// A lock that was adopted from a process that was killed during a request delivers
// no results. Its conversion ends all the same, and it can be released.
func TestLostResultOfConversion(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		device := &scripted{results: make(chan []byte, 2)}
		ls := start(device, "space", device, Options{})
		l, err := ls.Adopt(t.Context(), "a", EX, LockOptions{Persistent: true})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := l.Convert(t.Context(), EX, ConvertOptions{NoQueue: true, WriteLVB: &LVB{1}}); !errors.Is(err, ErrNoResult) {
			t.Errorf("convert: %v", err)
		}
		if took := time.Since(begin); took != lostAfter {
			t.Errorf("waited for %v", took)
		}
		if mode, err := l.Settle(t.Context()); mode != EX || err != nil {
			t.Errorf("settle: %v, %v", mode, err)
		}
		if err := l.Convert(t.Context(), EX, ConvertOptions{NoQueue: true}); !errors.Is(err, ErrNoResult) {
			t.Errorf("a second conversion, which could be given the first one's result: %v", err)
		}
		if s := ls.Stats(); s.Unsettled != 0 {
			t.Errorf("%d unsettled", s.Unsettled)
		}
		if err := l.Unlock(t.Context()); err != nil {
			t.Errorf("unlock: %v", err)
		}
		if err := ls.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A result that comes is taken at once, and the next request does not wait.
func TestResultOfAdoptedConversion(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		device := &scripted{results: make(chan []byte, 2)}
		ls := start(device, "space", device, Options{})
		l, err := ls.Adopt(t.Context(), "a", EX, LockOptions{Persistent: true})
		if err != nil {
			t.Fatal(err)
		}
		device.check = func() { device.results <- result(l.cookie, castAddr, 0) }
		begin := time.Now()
		for range 20 {
			if err := l.Convert(t.Context(), EX, ConvertOptions{NoQueue: true}); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("20 conversions took %v", took)
		}
		device.check = nil
		if err := ls.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The kernel may still work on a conversion that nobody waits for any more, until its
// result comes after all or the lock has ended.
func TestLostResultIsUnderWay(t *testing.T) {
	for _, late := range []bool{true, false} {
		fakeclock.Test(t, func(t *testing.T) {
			device := &scripted{results: make(chan []byte, 2)}
			u := newUnderWay(t)
			ls := start(device, "space", device, Options{UnderWay: u})
			l, err := ls.Adopt(t.Context(), "a", EX, LockOptions{Persistent: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Convert(t.Context(), EX, ConvertOptions{NoQueue: true}); !errors.Is(err, ErrNoResult) {
				t.Errorf("convert: %v", err)
			}
			if n, _ := u.Count(); n != 1 {
				t.Errorf("%d under way after a conversion without a result", n)
			}
			if late {
				device.results <- result(l.cookie, castAddr, 0)
				fakeclock.Wait()
				if n, _ := u.Count(); n != 0 {
					t.Errorf("%d under way after the result", n)
				}
			}
			if err := l.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
			if n, _ := u.Count(); n != 0 {
				t.Errorf("%d under way after the release", n)
			}
			if err := ls.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
