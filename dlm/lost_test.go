package dlm

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// adopted is a lock in EX, and a device that answers nothing by itself about it.
func adopted(t *testing.T, o Options) (*scripted, *Lockspace, *Lock) {
	t.Helper()
	device := &scripted{results: make(chan []byte, 2)}
	ls := start(device, "space", device, o)
	l, err := ls.Adopt(t.Context(), "a", EX, LockOptions{Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	return device, ls, l
}

// A lock that was adopted from a process that was killed during a request delivers
// no results. Its conversion ends all the same, and it can be released.
func TestLostResultOfConversion(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		_, ls, l := adopted(t, Options{})
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
		device, ls, l := adopted(t, Options{})
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
			u := newUnderWay(t)
			device, ls, l := adopted(t, Options{UnderWay: u})
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

// A result that comes too late is nobody's proof, and yet not lost: the lock's mode follows it, and the lock can be
// converted again. Until then the kernel is asked nothing.
func TestLateResultOfConversion(t *testing.T) {
	for status, want := range map[int32]Mode{0: PR, -int32(syscall.EAGAIN): EX} {
		fakeclock.Test(t, func(t *testing.T) {
			device, ls, l := adopted(t, Options{})
			convert := func(mode Mode) error { return l.Convert(t.Context(), mode, ConvertOptions{NoQueue: true}) }
			if err := convert(PR); !errors.Is(err, ErrNoResult) {
				t.Errorf("convert: %v", err)
			}
			device.check = func() { t.Error("the kernel is asked before it has answered") }
			if err := convert(PR); !errors.Is(err, ErrNoResult) {
				t.Errorf("convert before the result: %v", err)
			}
			if l.Mode() != EX {
				t.Errorf("mode %v before the result", l.Mode())
			}
			device.results <- result(l.cookie, castAddr, status)
			fakeclock.Wait()
			if l.Mode() != want {
				t.Errorf("status %d: mode %v, want %v", status, l.Mode(), want)
			}
			if s := ls.Stats(); s.Stray != 0 || s.Malformed != 0 {
				t.Errorf("%+v", s)
			}
			device.check = func() {}
			if err := convert(EX); !errors.Is(err, ErrNoResult) {
				t.Errorf("the late result is taken for that of another conversion: %v", err)
			}
			device.results <- result(l.cookie, castAddr, 0)
			fakeclock.Wait()
			device.check = func() { device.results <- result(l.cookie, castAddr, 0) }
			if err := convert(PR); err != nil || l.Mode() != PR {
				t.Errorf("convert after the result: %v, mode %v", err, l.Mode())
			}
			device.check = nil
			if err := ls.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who has the patience waits for a result that takes longer than most.
func TestPatience(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		device, ls, l := adopted(t, Options{})
		opts := ConvertOptions{NoQueue: true, Patience: 2 * time.Second}
		time.AfterFunc(1900*time.Millisecond, func() { device.results <- result(l.cookie, castAddr, 0) })
		if err := l.Convert(t.Context(), EX, opts); err != nil {
			t.Error(err)
		}
		begin := time.Now()
		if err := l.Convert(t.Context(), EX, opts); !errors.Is(err, ErrNoResult) {
			t.Errorf("without a result: %v", err)
		}
		if took := time.Since(begin); took != opts.Patience {
			t.Errorf("waited for %v", took)
		}
		if err := ls.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// busyDevice is one whose kernel still works on a conversion of an earlier process when it is asked for one.
type busyDevice struct {
	*scripted
	convert func() error
}

func (a *busyDevice) Lockspace(string, uint32) (Device, error) { return a, nil }

func (a *busyDevice) Write(p []byte) (int, error) {
	if a.convert != nil {
		if err := a.convert(); err != nil {
			return 0, err
		}
	}
	return a.scripted.Write(p)
}

// The result of a conversion that an earlier process has asked for is not that of ours, whether it comes before the kernel
// has said that it is not done, or after that.
func TestResultOfAnEarlierProcess(t *testing.T) {
	for _, later := range []time.Duration{0, time.Millisecond} {
		fakeclock.Test(t, func(t *testing.T) {
			device := &busyDevice{scripted: &scripted{results: make(chan []byte, 2)}}
			ls := start(device, "space", device, Options{})
			l, err := ls.Adopt(t.Context(), "a", EX, LockOptions{Persistent: true})
			if err != nil {
				t.Fatal(err)
			}
			device.convert = func() error {
				device.convert = nil
				time.AfterFunc(later, func() { device.results <- result(l.cookie, castAddr, 0) })
				if later == 0 {
					time.Sleep(time.Microsecond) // by the bubble's clock: until that is read
				}
				return syscall.EBUSY
			}
			if err := l.Convert(t.Context(), EX, ConvertOptions{NoQueue: true}); !errors.Is(err, ErrNoResult) {
				t.Errorf("after %v: %v", later, err)
			}
			if s := ls.Stats(); later != 0 && s.Stray != 1 {
				t.Errorf("%+v", s)
			}
			if err := ls.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
