package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// listening is what systemd does for a socket unit.
func listening(t *testing.T, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// activate makes the command that systemd would, with these sockets; pid is its own unless another
// one is given.
func (s *served) activate(names string, files []*os.File, pid string, args ...string) *exec.Cmd {
	if pid == "" {
		pid = "$$"
	}
	script := "LISTEN_PID=" + pid + ` exec "$0" --config "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, s.program, filepath.Join(s.dir, "vmlockd.toml")}, args...)...)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(files)))
	if names != "" {
		cmd.Env = append(cmd.Env, "LISTEN_FDNAMES="+names)
	}
	return cmd
}

// run starts it as the daemon of s.
func (s *served) run(cmd *exec.Cmd) {
	s.t.Helper()
	s.cmd = cmd
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s.event("daemon-ready")
}

// TestActivation: who connected before the daemon ran is served; systemd's sockets outlive
// a restart in place, a stop and the end of an idle daemon; and no lock ends with any of these.
func TestActivation(t *testing.T) {
	s := build(t)
	admin := filepath.Join(s.dir, "admin")
	lockFile, adminFile := listening(t, s.socket), listening(t, admin)
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	early, err := lockprogram.Dial(ctx, s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	waiting, err := net.Dial("unix", admin) // nobody serves virt-admin yet, and it is kept
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()

	names := "virtlockd-admin.socket:virtlockd.socket"
	sockets := []*os.File{adminFile, lockFile}
	var inodes []string // before the daemon has them: Fd makes them blocking
	for _, f := range sockets {
		inode, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, inode)
	}
	s.run(s.activate(names, sockets, ""))
	if err := early.CreateLockspace(ctx, ""); errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("who came early: %v", err)
	}
	web, disk := vm(t), s.disk("web.img")
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	sees := func(when string) { // it has systemd's sockets, and makes none itself
		t.Helper()
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, fd := range fds {
			to, _ := os.Readlink(fd)
			found[to] = true
		}
		for _, inode := range inodes {
			if !found[inode] {
				t.Errorf("%s: %s is not in the daemon", when, inode)
			}
		}
	}
	sees("started")
	s.signal(syscall.SIGUSR1)
	s.event("daemon-ready")
	sees("after a restart in place")
	if err := s.try(web.Process.Pid, "web", disk); err == nil {
		t.Error("the lock is gone")
	}
	early.Close()
	s.end(syscall.SIGTERM)
	s.event("daemon-stopped")
	between, err := lockprogram.Dial(ctx, s.socket) // waits for systemd to start the daemon
	if err != nil {
		t.Fatalf("systemd's socket was removed: %v", err)
	}
	s.run(s.activate(names, sockets, "", "--timeout=1"))
	if err := between.CreateLockspace(ctx, ""); errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("who came between two daemons: %v", err)
	}
	between.Close()
	s.tick("2")
	s.alive()
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, "1")
	_ = web.Process.Kill()
	s.event("daemon-stopped")
	_ = s.cmd.Wait()

	late, err := lockprogram.Dial(ctx, s.socket)
	if err != nil {
		t.Fatalf("an idle daemon has removed systemd's socket: %v", err)
	}
	defer late.Close()
	s.run(s.activate("", sockets[1:], "")) // one without a name
	if err := late.CreateLockspace(ctx, ""); errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("who came after it: %v", err)
	}
	// A configuration that names another socket cannot move systemd's: the old one goes on.
	s.configure("socket", s.socket+"2")
	s.signal(syscall.SIGUSR1)
	f := s.event("restart-refused")
	if want := "systemd listens for vmlockd on"; !strings.Contains(f["VMLOCKD_REASON"], want) {
		t.Errorf("another socket in the configuration: %v, want %q", f, want)
	}
	if err := late.CreateLockspace(ctx, ""); errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("the old one does not go on")
	}
}

func TestActivationRefuses(t *testing.T) {
	s := build(t)
	s.configure("log.format", "text")
	lock, other := listening(t, s.socket), listening(t, filepath.Join(s.dir, "other"))
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		names string
		files []*os.File
		want  string
	}{
		{"virtlockd.socket:virtlogd.socket", []*os.File{lock, other}, `the name "virtlogd.socket": write FileDescriptorName=virtlockd.socket`},
		{"libvirtd.socket", []*os.File{lock}, `the name "libvirtd.socket"`},
		{"", []*os.File{lock, other}, `the name "LISTEN_FD_3"`},
		{"virtlockd.socket:virtlockd.socket", []*os.File{lock, other}, "two sockets with the name"},
		{"virtlockd.socket", []*os.File{file}, "it is no unix stream socket that listens"},
		{"virtlockd.socket", []*os.File{other}, "make both the same"},
	} {
		out, err := s.activate(c.names, c.files, "").CombinedOutput()
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() != 1 || !strings.Contains(strings.ReplaceAll(string(out), `\"`, `"`), c.want) {
			t.Errorf("%q: %v: %s\nwant %q", c.names, err, out, c.want)
		}
	}
	// The background is another process, for which the sockets are not.
	out, err := s.activate("virtlockd.socket", []*os.File{lock}, "", "--daemon").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "leave --daemon out") {
		t.Errorf("--daemon: %v: %s", err, out)
	}
	// Nor are those that are meant for somebody else.
	if err := os.Remove(s.socket); err != nil {
		t.Fatal(err)
	}
	s.configure("log.format", "journal")
	s.run(s.activate("bogus.socket", []*os.File{other}, "1"))
	s.shows("vmlockd_owners", "0")
}

// TestAdminListener: what a part for virt-admin gets, in each program again.
func TestAdminListener(t *testing.T) {
	i := &instance{given: &given{}}
	if l, err := i.adminListener(); l != nil || err != nil {
		t.Fatalf("without a socket: %v, %v", l, err)
	}
	path := filepath.Join(t.TempDir(), "admin")
	i.given.admin = listening(t, path)
	for range 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l, err := i.adminListener()
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		c.Close()
		l.Close()
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("systemd's file: %v", err)
	}
}
