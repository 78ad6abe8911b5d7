package dlm

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// pair is a file that reads what the other one is given, message by message, as the device does.
func pair(t *testing.T) (device, kernel *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	device, kernel = os.NewFile(uintptr(fds[0]), "device"), os.NewFile(uintptr(fds[1]), "kernel")
	t.Cleanup(func() { device.Close(); kernel.Close() })
	return device, kernel
}

func send(t *testing.T, kernel *os.File, results ...[]byte) {
	t.Helper()
	for _, r := range results {
		if _, err := kernel.Write(r); err != nil {
			t.Error(err)
		}
	}
}

// unread is how many results nobody has read.
func unread(t *testing.T, device *os.File) int {
	t.Helper()
	var buf [abi.ResultMax]byte
	for n := 0; ; n++ {
		if _, err := unix.Read(int(device.Fd()), buf[:]); err != nil {
			return n
		}
	}
}

func TestDrainNothingUnderWay(t *testing.T) {
	device, kernel := pair(t)
	send(t, kernel, result(1, bastAddr, 0))
	err := DrainFile(t.Context(), device, 0, func() (bool, error) {
		t.Error("asked whether the lockspace runs")
		return true, nil
	})
	if err != nil || unread(t, device) != 1 {
		t.Errorf("nothing was under way: %v", err)
	}
}

// The answers come after the lockspace has been stopped for a while, and with
// notices between them.
func TestDrainWaitsForAnswers(t *testing.T) {
	device, kernel := pair(t)
	looks := 0
	err := DrainFile(t.Context(), device, 2, func() (bool, error) {
		switch looks++; looks {
		case 1:
			send(t, kernel, result(1, castAddr, 0), result(1, bastAddr, 0), result(2, bastAddr, 0))
		case 60: // longer than drainQuiet
			send(t, kernel, result(2, castAddr, 0))
		case 61:
			send(t, kernel, result(3, castAddr, 0), []byte("no result"))
		}
		return looks >= 60, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looks < 61 {
		t.Errorf("ended after %d looks, while the lockspace was stopped", looks)
	}
	if n := unread(t, device); n > 0 {
		t.Errorf("%d results were not read", n)
	}
}

// A count that was too high does not keep it for ever.
func TestDrainCountTooHigh(t *testing.T) {
	device, kernel := pair(t)
	send(t, kernel, result(1, castAddr, 0))
	if err := DrainFile(t.Context(), device, 7, func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
}

func TestDrainEnds(t *testing.T) {
	device, kernel := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := DrainFile(ctx, device, 1, func() (bool, error) {
		cancel()
		return false, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	kernel.Close()
	if err := DrainFile(t.Context(), device, 1, func() (bool, error) { return false, nil }); err == nil {
		t.Error("no error from a device that has ended")
	}
}

// UnderWay is never lower than what the kernel works on.
func TestUnderWay(t *testing.T) {
	var count atomic.Int64
	device := &scripted{results: make(chan []byte, 2)}
	statuses := []int32{0, abi.StatusUnlock}
	device.check = func() {
		if count.Load() < 1 {
			t.Error("a write began that does not count")
		}
		device.results <- result(1, castAddr, statuses[0])
		statuses = statuses[1:]
	}
	ls := start(device, "space", device, Options{UnderWay: &count})
	l, err := ls.Lock(t.Context(), "a", EX, LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := count.Load(); n != 0 {
		t.Errorf("%d requests are under way after the grant", n)
	}
	if err := l.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ls.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count.Load(); n != 0 {
		t.Errorf("%d requests are under way at the end", n)
	}
}
