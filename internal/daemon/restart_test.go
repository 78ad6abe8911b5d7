package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// configure adds a line to the configuration, or replaces the one with its key.
func (s *served) configure(key, value string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "vmlockd.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	var b strings.Builder
	for l := range strings.Lines(string(text)) {
		if !strings.HasPrefix(l, key+" ") {
			b.WriteString(l)
		}
	}
	fmt.Fprintf(&b, "%s = %q\n", key, value)
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// rule adds one that names a disk. It must be the last that is added to the configuration.
func (s *served) rule(disk, name string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "vmlockd.toml"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = fmt.Fprintf(f, "[[identity.rule]]\npath = %q\nscope = \"cluster\"\nname = %q\n", disk, name)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// disk makes a file to lock.
func (s *served) disk(name string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// isFree says whether another program could lock the file now.
func isFree(t *testing.T, path string) bool {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l)
	if err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return err == nil
}

// until waits for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(logstest.Patience); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

// watchHeld looks all the time whether another program could lock the file, until the
// returned function is called.
func watchHeld(t *testing.T, path string) (stop func()) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
			if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != unix.EAGAIN {
				t.Errorf("another program tried to lock %s: %v", path, err)
				return
			}
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		unix.Close(fd)
	}
}

// holderOf is the pid of the daemon's holder.
func (s *served) holderOf() (pid int) {
	s.t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range list {
		comm, _ := os.ReadFile(path)
		if string(comm) != "vmlockd-holder\n" {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		var state string
		var parent int
		_, after, _ := strings.Cut(string(stat), ") ")
		if n, _ := fmt.Sscan(after, &state, &parent); n == 2 && parent == s.cmd.Process.Pid && state != "Z" {
			_, _ = fmt.Sscanf(path, "/proc/%d/", &pid)
		}
	}
	return pid
}

// withoutHolder ends the holder, and keeps the daemon from having another until the
// returned function is called.
func (s *served) withoutHolder() (again func()) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "run", "holder.sock.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		s.t.Fatal(err)
	}
	pid := s.holderOf()
	if pid == 0 {
		s.t.Fatal("there is no holder")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	until(s.t, "the daemon notices that its holder is gone", func() bool { return s.metrics()["vmlockd_holder_up"] == "0" })
	return func() { f.Close() }
}

// TestRestartThatWouldMoveLocks is refused: the new program would find an empty journal
// and release everything.
func TestRestartThatWouldMoveLocks(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	web := vm(t)
	s.start()
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	defer watchHeld(t, disk)()
	run := filepath.Join(s.dir, "run")
	for _, c := range []struct{ key, value, back string }{
		{"run_dir", filepath.Join(s.dir, "other"), run},
		{"backend", "cluster", "local"},
	} {
		s.configure(c.key, c.value)
		s.signal(syscall.SIGUSR1)
		f := s.event("restart-refused")
		if !strings.Contains(f["VMLOCKD_REASON"], c.key) || !strings.Contains(f["VMLOCKD_REASON"], "drain") {
			t.Errorf("%s: %v", c.key, f)
		}
		s.configure(c.key, c.back)
	}
	if err := s.try(vm(t).Process.Pid, "mail", disk); err == nil {
		t.Error("granted twice")
	}
	s.signal(syscall.SIGUSR1)
	if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" {
		t.Errorf("with the configuration as it was: %v", f)
	}
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, "1")
}

// TestIncompleteHolder: while the holder lacks a file, the daemon's own descriptor is
// all that keeps it locked: it is not replaced, and does not stop without a word.
func TestIncompleteHolder(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	web := vm(t)
	s.start()
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	again := s.withoutHolder()
	stop := watchHeld(t, disk)
	s.signal(syscall.SIGUSR1)
	if f := s.event("restart-refused"); !strings.Contains(f["VMLOCKD_REASON"], "does not have all") {
		t.Errorf("%v", f)
	}
	stop()
	s.signal(syscall.SIGTERM)
	if f := s.event("holder-incomplete"); f["VMLOCKD_LOCKS"] != "1" || f["VMLOCKD_REASON"] == "" {
		t.Errorf("%v", f)
	}
	_ = s.cmd.Wait()
	again()
	s.launch()
	if f := s.event("lock-taken-anew"); f["VMLOCKD_NAME"] != disk {
		t.Errorf("%v", f)
	}
	s.event("daemon-ready")
	if isFree(t, disk) {
		t.Error("it was not taken back")
	}
	defer watchHeld(t, disk)()
	s.signal(syscall.SIGUSR1)
	if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" {
		t.Errorf("with everything held: %v", f)
	}
}

// TestNewProgramFails: one that says that it would start, and then does not. The
// earlier one goes on, with its locks and connections.
func TestNewProgramFails(t *testing.T) {
	built := build(t)
	built.rule(built.disk("web.img"), "ruled")
	for name, bad := range map[string]string{
		"configuration": "nonsense = 1\n",
		"socket":        "socket = \"DIR/file/sock\"\nrun_dir = \"DIR/run\"\n",
		"run_dir":       "socket = \"DIR/sock\"\nrun_dir = \"DIR/other\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := *built
			s.t = t
			disk := s.disk("web.img")
			s.disk("file")
			web := vm(t)
			s.start()
			if err := s.try(web.Process.Pid, "web", disk); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
			defer cancel()
			var open [2]*lockprogram.Client // one that has registered, and one that has not
			for i := range open {
				c, err := lockprogram.Dial(ctx, s.socket)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				open[i] = c
			}
			owner := locking.Owner{PID: int32(web.Process.Pid), ID: 1, Name: "web"}
			if err := open[0].Register(ctx, owner); err != nil {
				t.Fatal(err)
			}
			broken := filepath.Join(s.dir, "broken.toml")
			text := strings.ReplaceAll(bad, "DIR", s.dir) + "log.format = \"journal\"\n"
			if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			stop := watchHeld(t, disk)
			real := s.program + ".real"
			if err := os.Rename(s.program, real); err != nil {
				t.Fatal(err)
			}
			// The file itself is changed after the check, and the earlier program must
			// not fail over that too.
			file := filepath.Join(s.dir, "vmlockd.toml")
			good, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--%s*) exit 0;; esac\ncp %s %s\nexec %s --config %[3]s\n", TakeOverFlag, broken, file, real)
			if err := os.WriteFile(s.program, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			for range 2 { // it can be tried again
				s.signal(syscall.SIGUSR1)
				f := s.event("restart-refused")
				if !strings.Contains(f["MESSAGE"], "could not start") || f["VMLOCKD_REASON"] == "" {
					t.Errorf("%v", f)
				}
				if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" || f["VMLOCKD_PID"] != fmt.Sprint(s.cmd.Process.Pid) {
					t.Errorf("%v", f)
				}
				if err := os.WriteFile(file, good, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := open[1].Register(ctx, owner); err != nil {
				t.Errorf("a connection that had not registered: %v", err)
			}
			if err := open[0].Acquire(ctx, locking.Ref{Name: s.disk("second.img")}, 0); err != nil {
				t.Errorf("a connection that had registered: %v", err)
			}
			s.shows(`vmlockd_locks_held{mode="exclusive"}`, "2")
			// With what it had read, and what follows from that.
			d, err := control.NewClient(filepath.Join(s.dir, "run", "control.sock")).Identify(ctx, disk, false)
			if err != nil || len(d.Disks) != 1 || d.Disks[0].Name != "rule:ruled" {
				t.Errorf("the disk is %+v, error %v", d, err)
			}
			proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
			comm, _ := os.ReadFile(proc + "comm")
			exe, _ := os.Readlink(proc + "exe")
			if string(comm) != "vmlockd\n" || exe != real {
				t.Errorf("process %q executes %s", comm, exe)
			}
			// And a good one takes its place.
			if err := os.Rename(real, s.program); err != nil {
				t.Fatal(err)
			}
			s.signal(syscall.SIGUSR1)
			if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" {
				t.Errorf("%v", f)
			}
			s.shows(`vmlockd_locks_held{mode="exclusive"}`, "2")
			stop()
			s.end(syscall.SIGTERM)
			s.event("stopped-holding")
			_ = web.Process.Kill()
			s.start()
			s.end(syscall.SIGTERM)
		})
	}
}

// TestRestartWithoutDescriptors is refused, and the daemon serves as before.
func TestRestartWithoutDescriptors(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	web := vm(t)
	s.start()
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(web.Process.Pid), ID: 1, Name: "web"}); err != nil {
		t.Fatal(err)
	}
	var before unix.Rlimit
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	s.signal(syscall.SIGUSR1)
	if f := s.event("restart-refused"); !strings.Contains(f["VMLOCKD_REASON"], "too many open files") {
		t.Errorf("%v", f)
	}
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Acquire(ctx, locking.Ref{Name: disk}, 0); err != nil {
		t.Error(err)
	}
}
