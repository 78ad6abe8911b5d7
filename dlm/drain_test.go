package dlm

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

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

func newUnderWay(t *testing.T) *UnderWay {
	t.Helper()
	u, err := NewUnderWay(make([]byte, UnderWaySize))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// left is what a process has left that had no room for names.
func left(t *testing.T, underWay, doubtful int64) *UnderWay {
	u := newUnderWay(t)
	u.number(countAt).Store(underWay*oneUnderWay + doubtful*oneDoubtful)
	return u
}

func TestDrainNothingUnderWay(t *testing.T) {
	device, kernel := pair(t)
	send(t, kernel, result(1, bastAddr, 0))
	err := DrainFile(t.Context(), device, left(t, 0, 0), func() (bool, error) {
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
	t.Parallel()
	device, kernel := pair(t)
	looks := 0
	err := drainFile(t.Context(), device, left(t, 2, 0), func() (bool, error) {
		switch looks++; looks {
		case 1:
			send(t, kernel, result(1, castAddr, 0), result(1, bastAddr, 0), result(2, bastAddr, 0))
		case 60: // longer than what may be quiet
			send(t, kernel, result(2, castAddr, 0))
		case 61:
			send(t, kernel, result(3, castAddr, 0), []byte("no result"))
		}
		return looks >= 60, nil
	}, time.Second)
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

// A process that did not run for a while looks again, whatever the clock says.
func TestDrainAfterStandstill(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	looks := 0
	err := drainFile(t.Context(), device, left(t, 1, 0), func() (bool, error) {
		if looks++; looks == 2 {
			<-time.After(5 * drainEnough) // it stands still for longer than what may be quiet
			send(t, kernel, result(1, castAddr, 0))
		}
		return true, nil
	}, 2*drainEnough)
	if err != nil {
		t.Error(err)
	}
	if n := unread(t, device); n > 0 || looks < 3 {
		t.Errorf("ended after %d looks, and %d results were not read", looks, n)
	}
}

// A count that was too high does not keep it for ever.
func TestDrainCountTooHigh(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	send(t, kernel, result(1, castAddr, 0))
	if err := drainFile(t.Context(), device, left(t, 7, 0), func() (bool, error) { return true, nil }, time.Second); err != nil {
		t.Error(err)
	}
}

// The lockspace runs, and says so for longer than a second before another node is
// noticed to be silent: its answer is waited for.
func TestDrainWaitsForSilentNode(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	timer := time.AfterFunc(3*drainDoubt/2, func() { send(t, kernel, result(1, castAddr, 0)) })
	defer timer.Stop()
	if err := DrainFile(t.Context(), device, left(t, 1, 0), func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
	if timer.Stop() || unread(t, device) > 0 {
		t.Error("it did not wait for the answer")
	}
}

// A process that was killed in the middle of a write may have counted what the
// kernel never saw; but not more than that.
func TestDrainDoubt(t *testing.T) {
	t.Parallel()
	device, kernel := pair(t)
	send(t, kernel, result(1, castAddr, 0))
	begin := time.Now()
	if err := DrainFile(t.Context(), device, left(t, 2, 1), func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > drainQuiet/2 {
		t.Errorf("waited for %v", took)
	}
	begin = time.Now()
	err := drainFile(t.Context(), device, left(t, 2, 1), func() (bool, error) { return true, nil }, 2*drainDoubt)
	if took := time.Since(begin); err != nil || took < 2*drainDoubt {
		t.Errorf("two were under way, of which one is doubtful, and no answer came: waited for %v, %v", took, err)
	}
}

// What waits for a place is not under way; and what has no answer when the
// lockspace is closed, still is.
func TestUnderWayIsInTheKernel(t *testing.T) {
	count := newUnderWay(t)
	device := &scripted{results: make(chan []byte, 2)}
	began := make(chan struct{}, 2)
	gate := make(chan struct{})
	device.check = func() { began <- struct{}{}; <-gate }
	ls := start(device, "space", device, Options{UnderWay: count, InFlight: 1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := ls.Lock(ctx, "a", EX, LockOptions{NoQueue: true})
			asked <- err
		}()
	}
	<-began
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ls.Stats().Queued == 0 {
		<-tick.C
	}
	if n, doubtful := count.Count(); n != 1 || doubtful != 0 {
		t.Errorf("%d under way, %d of them doubtful, and one waits", n, doubtful)
	}
	close(gate)
	<-began
	if n, _ := count.Count(); n != 2 {
		t.Errorf("%d are under way, want 2", n)
	}
	cancel()
	<-asked
	<-asked
	soon, giveUp := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer giveUp()
	_ = ls.Close(soon)
	if err := ls.Close(t.Context()); !errors.Is(err, ErrUnsettled) {
		t.Errorf("close: %v", err)
	}
	if n, _ := count.Count(); n != 2 {
		t.Errorf("%d are under way after a close that had to leave 2", n)
	}
}

func TestDrainEnds(t *testing.T) {
	device, kernel := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := DrainFile(ctx, device, left(t, 1, 0), func() (bool, error) {
		cancel()
		return false, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	kernel.Close()
	if err := DrainFile(t.Context(), device, left(t, 1, 0), func() (bool, error) { return false, nil }); err == nil {
		t.Error("no error from a device that has ended")
	}
}

// UnderWay is never lower than what the kernel works on.
func TestUnderWay(t *testing.T) {
	count := newUnderWay(t)
	device := &scripted{results: make(chan []byte, 2)}
	statuses := []int32{0, abi.StatusUnlock}
	device.check = func() {
		if n, _ := count.Count(); n < 1 {
			t.Error("a write began that does not count")
		}
		device.results <- result(1, castAddr, statuses[0])
		statuses = statuses[1:]
	}
	ls := start(device, "space", device, Options{UnderWay: count})
	l, err := ls.Lock(t.Context(), "a", EX, LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := count.Count(); n != 0 {
		t.Errorf("%d requests are under way after the grant", n)
	}
	if err := l.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ls.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, doubtful := count.Count(); n != 0 || doubtful != 0 {
		t.Errorf("%d requests are under way at the end, %d of them doubtful", n, doubtful)
	}
}

// A result that is read before the write of its request returns is not expected any
// more.
func TestUnderWayAfterEarlyResult(t *testing.T) {
	count := newUnderWay(t)
	device := &scripted{results: make(chan []byte)} // a send ends when the reader has it
	device.check = func() {
		device.results <- result(1, castAddr, 0)
		device.results <- result(99, castAddr, 0) // then the first one was handled
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 1; n != 0; n, _ = count.Count() { // or the test hangs
			<-tick.C
		}
	}
	ls := start(device, "space", device, Options{UnderWay: count})
	if _, err := ls.Lock(t.Context(), "a", EX, LockOptions{NoQueue: true}); err != nil {
		t.Fatal(err)
	}
	if err := ls.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
