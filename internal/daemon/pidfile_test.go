package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// lockedBy is the process that has a pid file locked; 0 if none has.
func lockedBy(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		t.Fatal(err)
	}
	if l.Type == unix.F_UNLCK {
		return 0
	}
	return int(l.Pid)
}

// TestPIDFile: of the built daemon, from start to stop, and what a second one says.
func TestPIDFile(t *testing.T) {
	s := build(t)
	path := filepath.Join(s.dir, "sub", "the.pid")
	s.launch("--pid-file", path)
	s.event("daemon-ready")
	check := func(when string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if pid := s.cmd.Process.Pid; err != nil || string(text) != fmt.Sprint(pid) || lockedBy(t, path) != pid {
			t.Fatalf("%s: %q, %v, locked by %d, want %d", when, text, err, lockedBy(t, path), pid)
		}
	}
	check("started")
	second := func(args ...string) string {
		t.Helper()
		s.configure("log.format", "text")
		defer s.configure("log.format", "journal")
		out, err := exec.Command(s.program, append([]string{"--config", filepath.Join(s.dir, "vmlockd.toml")}, args...)...).CombinedOutput()
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() != 1 {
			t.Errorf("a second daemon: %v: %s", err, out)
		}
		return string(out)
	}
	if out := second("-p", path); !strings.Contains(out, fmt.Sprintf("%s (process %d) has the pid file %s locked: stop it first", s.program, s.cmd.Process.Pid, path)) {
		t.Errorf("a second daemon says %q", out)
	}
	check("after a second one tried")
	if virtlockd, err := exec.LookPath("virtlockd"); err != nil {
		t.Log("virtlockd is not here: ", err)
	} else if out, err := exec.Command(virtlockd, "-f", "/dev/null", "-p", path).CombinedOutput(); err == nil || !strings.Contains(string(out), path) {
		t.Errorf("virtlockd with the same pid file: %v: %s", err, out)
	}
	check("after virtlockd tried")

	s.signal(syscall.SIGUSR1)
	s.event("daemon-ready")
	check("after a restart in place")
	s.end(syscall.SIGKILL)
	if text, err := os.ReadFile(path); err != nil || len(text) == 0 {
		t.Fatalf("killed: %q, %v", text, err)
	}
	s.launch("-p", path)
	s.event("daemon-ready")
	check("after a kill")
	s.end(syscall.SIGTERM)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of a daemon that has stopped: %v", err)
	}
}

// TestPIDFileByAnotherName: the configuration names the same file by way of a link, and it stays locked.
func TestPIDFileByAnotherName(t *testing.T) {
	s := build(t)
	dir := filepath.Join(s.dir, "sub")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Symlink("sub", filepath.Join(s.dir, "alias"))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "the.pid")
	s.configure("pid_file", path)
	s.start()
	s.configure("pid_file", filepath.Join(s.dir, "alias", "the.pid"))
	s.signal(syscall.SIGUSR1)
	s.event("daemon-ready")
	if got := lockedBy(t, path); got != s.cmd.Process.Pid {
		t.Errorf("locked by %d, want %d", got, s.cmd.Process.Pid)
	}
	s.end(syscall.SIGTERM)
}

// TestPIDFileWaits: a start waits for a daemon that ends, as one that is idle does, and not
// for one that serves.
func TestPIDFileWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	ready := filepath.Join(t.TempDir(), "ready")
	// Another process, as a record lock keeps none out of its own.
	// Each Debian has perl; struct flock is that of 64 bits.
	other := exec.Command("perl", "-MFcntl", "-e", `
open my $f, ">", $ARGV[0] or die $!;
my $l = pack "s s x4 q q l x4", F_WRLCK, 0, 0, 1, 0;
fcntl $f, F_SETLK, $l or die $!;
mkdir $ARGV[1] or die $!;
<STDIN>;
`, path, ready)
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Wait() }()
	defer in.Close()
	for {
		if _, err := os.Stat(ready); err == nil {
			break
		}
	}
	_, err = acquirePID(path, logstest.Patience, func() error { return errors.New("it serves") })
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(process %d) has the pid file %s locked", other.Process.Pid, path)) {
		t.Errorf("one that serves: %v", err)
	}
	looks := 0
	p, err := acquirePID(path, logstest.Patience, func() error {
		if looks++; looks == 3 {
			in.Close()
		}
		return nil
	})
	if err != nil || looks < 3 {
		t.Fatalf("one that ends: %v after %d looks", err, looks)
	}
	p.release()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the file is left")
	}
}

// TestPIDFileRefuses: what is no file of ours is left alone.
func TestPIDFileRefuses(t *testing.T) {
	dir := t.TempDir()
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(dir+"/precious", []byte("precious"), 0o600), os.Symlink("precious", link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, pipe, dir, filepath.Join(dir, "precious", "pid")} {
		if p, err := acquirePID(path, 0, func() error { return nil }); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, %v", path, p, err)
		}
	}
	if text, err := os.ReadFile(dir + "/precious"); err != nil || string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}
