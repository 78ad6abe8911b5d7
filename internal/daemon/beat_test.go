package daemon

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

// TestBeater: signs of life come as long as all answer, and the line only when it is another one.
func TestBeater(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards told
		var told []string
		var hang atomic.Bool
		var line atomic.Value
		line.Store("one")
		notify := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, s)
		}
		b := &beater{every: time.Second, dog: true, notify: notify, status: func() string { return line.Load().(string) },
			alive: func(ctx context.Context) error {
				if hang.Load() {
					<-ctx.Done()
				}
				return ctx.Err()
			}}
		b.start()
		after := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d) // by the bubble's clock
			fakeclock.Wait()
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(told) != fmt.Sprint(want) {
				t.Fatalf("told %q, want %q", told, want)
			}
			told = nil
		}
		after(2500*time.Millisecond, "STATUS=one\nWATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
		line.Store("two")
		after(time.Second, "STATUS=two\nWATCHDOG=1")
		hang.Store(true)
		after(time.Hour)
		b.stop()
		b.dog = false
		hang.Store(false)
		b.start()
		after(2500*time.Millisecond, "STATUS=two")
		b.stop()
	})
}

// TestWatchdog: the built daemon, also after a restart in place, and not for another process.
func TestWatchdog(t *testing.T) {
	s := build(t)
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "300000")
	s.launch()
	saw := func(want string) {
		t.Helper()
		for {
			for _, line := range strings.Split(m.any(), "\n") {
				if line == want {
					return
				}
			}
		}
	}
	saw("READY=1")
	saw("STATUS=0 locks of 0 processes, backend local")
	if err := s.try(vm(t).Process.Pid, "web", s.disk("web.img")); err != nil {
		t.Fatal(err)
	}
	saw("STATUS=1 locks of 1 processes, backend local")
	saw("WATCHDOG=1")
	s.signal(syscall.SIGUSR1)
	saw("READY=1")
	saw("WATCHDOG=1")
	saw("WATCHDOG=1")
	s.signal(syscall.SIGTERM)
	saw("STOPPING=1")
	_ = s.cmd.Wait()

	t.Setenv("WATCHDOG_PID", "1")
	s.launch()
	saw("READY=1")
	if got := m.any(); got != "STATUS=1 locks of 1 processes, backend local" {
		t.Errorf("with the watchdog of another process: %q", got)
	}
}

// TestAllAnswer: each of those who are asked can hold up the sign of life.
func TestAllAnswer(t *testing.T) {
	c := inProcess(t)
	i, err := start(c, "test", quiet(), nil, &given{})
	if err != nil {
		t.Fatal(err)
	}
	loop := make(chan struct{})
	if err := askAll(t, i, loop, false); err == nil {
		t.Error("nobody waits for signals, and that is well")
	}
	// The goroutine that accepts connections may begin after start has returned.
	for end := time.Now().Add(time.Minute); ; {
		err := askAll(t, i, loop, true)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("all are well: %v", err)
		}
	}
	if err := i.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := askAll(t, i, loop, true); err == nil {
		t.Error("nobody accepts connections, and that is well")
	}
	i.stop()
}

func askAll(t *testing.T, i *instance, loop chan struct{}, answered bool) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if !answered {
		cancel()
	}
	done := make(chan struct{})
	defer func() { <-done }()
	go func() {
		defer close(done)
		if answered {
			<-loop
		}
	}()
	return i.allAnswer(ctx, loop)
}
