package cli

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// passed are the signals that a command gets when vmlockctl gets them. Those that
// stop a process (SIGTSTP) are left to the terminal, which sends them to both.
var passed = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH,
}

// signals are those that this process gets while it runs a command.
type signals struct {
	c chan os.Signal
}

// catchSignals begins to catch them. One that this process ignores stays ignored,
// as nohup wants it; the command ignores it too.
func catchSignals() *signals {
	s := &signals{c: make(chan os.Signal, 16)}
	for _, sig := range passed {
		if !signal.Ignored(sig) {
			signal.Notify(s.c, sig)
		}
	}
	return s
}

func (s *signals) stop() { signal.Stop(s.c) }

// loop calls f with each signal, until the function that it returns is called.
func (s *signals) loop(f func(os.Signal)) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case sig := <-s.c:
				f(sig)
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// cancels calls cancel at the first signal that ends a program. The function that
// it returns says whether there was one.
func (s *signals) cancels(cancel func()) (stop func() bool) {
	came := false
	end := s.loop(func(sig os.Signal) {
		if sig != syscall.SIGWINCH {
			came = true
			cancel()
		}
	})
	var once sync.Once
	return func() bool {
		once.Do(end)
		return came
	}
}

// passOn sends signals to p, but for those that a terminal sends to every process
// in its foreground, and so to p.
func (s *signals) passOn(p *os.Process) (stop func()) {
	terminal := inForeground()
	return s.loop(func(sig os.Signal) {
		if terminal && (sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGHUP || sig == syscall.SIGWINCH) {
			return
		}
		_ = p.Signal(sig) // it may have ended
	})
}

// inForeground says whether this process belongs to the foreground of a terminal.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
