package dlm

import (
	"context"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// scripted is a Kernel and a Device whose results are whatever a test says. Writes are all taken.
type scripted struct {
	results chan []byte
	once    sync.Once
	last    int
	mu      sync.Mutex // guards last
	check   func()     // called for each write; may be nil
}

func (s *scripted) Control() (Device, error)                 { return nil, syscall.ENOSYS }
func (s *scripted) Minor(string) (uint32, error)             { return 1, nil }
func (s *scripted) Lockspace(string, uint32) (Device, error) { return s, nil }
func (s *scripted) Close() error                             { s.once.Do(func() { close(s.results) }); return nil }

func (s *scripted) Write([]byte) (int, error) {
	if s.check != nil {
		s.check()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	return s.last, nil
}

func (s *scripted) Read(buf []byte) (int, error) {
	r, ok := <-s.results
	if !ok {
		return 0, os.ErrClosed
	}
	return copy(buf, r), nil
}

func result(cookie, addr uint64, status int32) []byte {
	return abi.EncodeResult(abi.LockResult{UserAstaddr: addr, UserAstparam: cookie, Lksb: abi.Lksb{Status: status}}, nil)
}

// Whatever the device says, nothing crashes, and Close ends everything.
func FuzzResults(f *testing.F) {
	f.Add([]byte{}, result(1, castAddr, 0))
	f.Add(result(1, castAddr, 0), result(1, castAddr, abi.StatusUnlock))
	f.Add(result(1, castAddr, abi.StatusUnlock), result(1, castAddr, 0))
	f.Add(result(2, castAddr, -int32(syscall.EAGAIN)), result(2, castAddr, abi.StatusCancel))
	f.Add(result(1, bastAddr, 0), result(2, bastAddr, 0))
	f.Add(result(1, 77, 0), result(1, castAddr, -99999))
	f.Add(abi.EncodeResult(abi.LockResult{UserAstaddr: bastAddr, UserAstparam: 2, BastMode: 200}, nil), result(3, castAddr, 5))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		k := &scripted{results: make(chan []byte, 2)}
		ls, err := Open(t.Context(), k, "fuzz", Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, opts := range []LockOptions{{}, {NoQueue: true, Notify: true}, {LVB: true}} {
			wg.Go(func() {
				l, err := ls.Lock(ctx, "a", EX, opts)
				if err == nil {
					_ = l.Convert(ctx, PR, ConvertOptions{})
				}
			})
		}
		k.results <- one
		k.results <- two
		cancel()
		wg.Wait()
		_ = ls.Close(ctx)
		if err := ls.Close(context.WithoutCancel(ctx)); err != nil {
			t.Logf("close: %v", err)
		}
		if s := ls.Stats(); s.Locks != 0 || s.Unsettled != 0 || s.InFlight != 0 {
			t.Fatalf("left: %+v", s)
		}
	})
}

// Of notices that nobody takes, the one that asks for most is kept.
func TestNoticesAreMerged(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		k := &scripted{results: make(chan []byte)}
		ls, err := Open(t.Context(), k, "test", Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *Lock, 1)
		go func() {
			l, err := ls.Lock(t.Context(), "a", EX, LockOptions{NoQueue: true, Notify: true})
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		fakeclock.Wait()
		k.results <- result(1, castAddr, 0)
		l := <-got
		for _, m := range []Mode{CR, EX, PR} {
			k.results <- abi.EncodeResult(abi.LockResult{UserAstaddr: bastAddr, UserAstparam: 1, BastMode: uint8(m)}, nil)
		}
		fakeclock.Wait()
		if m := <-l.Blocking(); m != EX {
			t.Errorf("the notice is for %v", m)
		}
		if n := len(l.Blocking()); n != 0 {
			t.Errorf("%d notices more", n)
		}
		if err := ls.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
