package daemon

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// pipe starts it with a pipe for its log, and returns the end that nobody reads from.
func (s *served) pipe() (m *manager, r *os.File, ended <-chan error) {
	s.t.Helper()
	s.configure("log.format", "text")
	m = newManager(s.t)
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer w.Close()
	s.cmd = exec.Command(s.program, "--config", filepath.Join(s.dir, "vmlockd.toml"))
	s.cmd.Stderr = w
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	s.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	return m, r, done
}

// TestLogThatHangs: a daemon whose log nobody reads serves, is restarted in place and
// stops, and all of the log is there for who reads it at last before it has ended.
func TestLogThatHangs(t *testing.T) {
	s := build(t)
	m, r, ended := s.pipe()
	defer r.Close()
	if got := m.next(); got != "READY=1" {
		t.Fatal(got)
	}
	disk := filepath.Join(s.dir, "web.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(vm(t).Process.Pid), ID: 1, Name: "web"}); err != nil {
		t.Fatal(err)
	}
	// A pipe has room for 64 KiB (pipe(7)), and a line is more than 100 bytes.
	const pairs = 500
	for range pairs {
		if err := c.Acquire(ctx, locking.Ref{Name: disk}, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Release(ctx, locking.Ref{Name: disk}); err != nil {
			t.Fatal(err)
		}
	}
	s.shows("vmlockd_log_dropped_total", "0", `vmlockd_lock_grants_total{mode="exclusive"}`, strconv.Itoa(pairs))
	s.signal(syscall.SIGUSR1)
	for m.next() != "READY=1" {
	}
	s.signal(syscall.SIGTERM)
	// What waited in the earlier program is gone with it: it had to go on. The last lines of
	// this one are written if somebody reads them now.
	last, lines := "", 0
	for text := bufio.NewScanner(r); text.Scan(); lines++ {
		last = text.Text()
	}
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
	if lines < 100 || !strings.Contains(last, "event=daemon-stopped") {
		t.Errorf("%d lines, and the last is %q", lines, last)
	}
}

// TestLogOfNobody: who reads the log ends, and the daemon goes on, also after a restart
// in place.
func TestLogOfNobody(t *testing.T) {
	s := build(t)
	m, r, ended := s.pipe()
	r.Close()
	ready := func() {
		for m.next() != "READY=1" {
		}
	}
	ready()
	s.signal(syscall.SIGUSR1)
	ready()
	if err := s.try(vm(t).Process.Pid, "web", filepath.Join(s.dir, "no such disk")); err == nil {
		t.Error("a lock of a disk that is not there")
	}
	s.shows(`vmlockd_lock_grants_total{mode="exclusive"}`, "0")
	s.signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
}
