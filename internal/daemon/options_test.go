package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func exit(err error) int {
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return ended.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TestLogCannotBeOpened: the daemon serves, and says on stderr why its log is there.
func TestLogCannotBeOpened(t *testing.T) {
	s := build(t)
	s.configure("log.outputs", "1:file:"+filepath.Join(s.disk("no-directory"), "log"))
	s.start()
	if err := s.try(vm(t).Process.Pid, "web", s.disk("web.img")); err != nil {
		t.Error(err)
	}
	s.end(syscall.SIGTERM)
}

// TestVirtlockdConf: the file of libvirt counts for the built daemon, also as virtlockd's
// own option -f names it, and after a restart in place.
func TestVirtlockdConf(t *testing.T) {
	s := build(t)
	conf, log := filepath.Join(s.dir, "virtlockd.conf"), filepath.Join(s.dir, "the.log")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("max_clients = 33\nlog_outputs = \"2:file:" + log + "\"\nlog_filters = \"4:rpc\" # quiet\nkeepalive = 5\n")
	s.launch("-f", conf)
	s.event("daemon-ready") // log.format in our own file goes before log_outputs
	s.shows(`vmlockd_connections_limit`, "33")
	s.end(syscall.SIGTERM)

	text, err := os.ReadFile(filepath.Join(s.dir, "vmlockd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), `log.format = "journal"`, `virtlockd_conf = "`+conf+`"`, 1))
	if err := os.WriteFile(filepath.Join(s.dir, "vmlockd.toml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	m := newManager(t)
	s.launch()
	if got := m.next(); got != "READY=1" {
		t.Fatal(got)
	}
	write("max_clients = 44\nlog_outputs = \"2:file:" + log + "\"\n")
	s.signal(syscall.SIGUSR1)
	for m.next() != "READY=1" {
	}
	s.shows(`vmlockd_connections_limit`, "44")
	write("max_clients = none\n")
	s.signal(syscall.SIGUSR1)
	var said string
	until(t, "the refusal of a mistake", func() bool {
		b, _ := os.ReadFile(log)
		said = string(b)
		return strings.Contains(said, "restart-refused")
	})
	s.end(syscall.SIGTERM)
	if !strings.Contains(said, conf+":1: ") || strings.Contains(said, "vmlockd is ready") && strings.Index(said, "vmlockd is ready") < strings.Index(said, "keepalive") {
		t.Errorf("the log:\n%s", said)
	}
	out, err := exec.Command(s.program, "--check-config", "-f", filepath.Join(s.dir, "vmlockd.toml")).CombinedOutput()
	if exit(err) != 2 || !strings.Contains(string(out), conf+":1: a value is expected") {
		t.Errorf("%v: %s", err, out)
	}
	write("keepalive = 5\n")
	out, err = exec.Command(s.program, "--check-config", "-f", conf).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "warning: "+conf+":1: keepalive: means nothing") || !strings.Contains(string(out), conf+": no mistakes") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOptions: those of virtlockd, and what is said of wrong ones.
func TestOptions(t *testing.T) {
	s := build(t)
	toml := filepath.Join(s.dir, "vmlockd.toml")
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"-h"}, 0, "-t, --timeout seconds"},
		{[]string{"--help"}, 0, "-p, --pid-file file"},
		{[]string{"-V"}, 0, "v1.2.3"},
		{[]string{"--version"}, 0, "v1.2.3"},
		{[]string{"-t", "x"}, 2, "--timeout"},
		{[]string{"-t", "-1"}, 2, "--timeout"},
		{[]string{"-t", "2147484"}, 2, "use 1 to 2147483 seconds, or 0 for never"},
		{[]string{"-p", ""}, 2, "--pid-file needs the name of a file"},
		{[]string{"-f", toml, "-f", toml + "2"}, 2, "give one file of vmlockd"},
		{[]string{"-f", s.dir + "/none.conf", "--check-config"}, 2, s.dir + "/none.conf"},
		{[]string{"-f", s.dir + "/none.toml", "-d"}, 2, s.dir + "/none.toml"},
		{[]string{"-v", "-t", "0", "-p", s.dir + "/p", "-f", toml, "--check-config"}, 0, "no mistakes"},
	} {
		out, err := exec.Command(s.program, c.args...).CombinedOutput()
		if exit(err) != c.status || !strings.Contains(string(out), c.want) {
			t.Errorf("%q: %v: %s\nwant %d and %q", c.args, err, out, c.status, c.want)
		}
	}
}

// TestBackground: --daemon returns when the daemon serves, which then has no terminal, and
// is restarted in place as any other; or with what is wrong.
func TestBackground(t *testing.T) {
	s := build(t)
	s.configure("log.format", "auto")
	cmd := exec.Command(s.program, "-d", "-f", "vmlockd.toml", "-p", "the.pid") // of its directory
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	path := filepath.Join(s.dir, "the.pid")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid == cmd.Process.Pid {
		t.Fatalf("%q", text)
	}
	ended := false
	defer func() {
		if !ended {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	disk := s.disk("web.img")
	if err := s.try(vm(t).Process.Pid, "web", disk); err != nil { // it serves at once
		t.Fatal(err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d, %v", sid, err)
	}
	for fd := range 3 {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || to != os.DevNull {
			t.Errorf("descriptor %d is %q, %v", fd, to, err)
		}
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || dir != "/" {
		t.Errorf("its directory is %q, %v", dir, err)
	}
	s.event("daemon-ready")
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" || f["VMLOCKD_PID"] != string(text) {
		t.Errorf("after a restart in place: %v", f)
	}
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, "1")

	second := exec.Command(s.program, "-d", "-f", filepath.Join(s.dir, "vmlockd.toml"), "-p", path)
	out, err = second.CombinedOutput()
	if exit(err) != 1 || !strings.Contains(string(out), "locked: stop it first") {
		t.Errorf("a second one: %v: %s", err, out)
	}
	stop := func(pidFile string) { // it is no child of the test, and the file goes last
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		until(t, "its end", func() bool {
			_, err := os.Lstat(pidFile)
			return errors.Is(err, fs.ErrNotExist)
		})
		ended = true
	}
	stop(path)

	// Where there is no journal.
	if err := os.Remove(filepath.Join(built.dir, "journal")); err != nil {
		t.Fatal(err)
	}
	out, err = exec.Command(s.program, "--daemon", "-f", filepath.Join(s.dir, "vmlockd.toml"), "-t", "1").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	pidOf := filepath.Join(s.dir, "run", "vmlockd.pid")
	if text, err = os.ReadFile(pidOf); err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(string(text)); err != nil {
		t.Fatal(err)
	}
	ended = false
	said, err := os.ReadFile(filepath.Join(s.dir, "audit", "vmlockd.log"))
	if err != nil || !strings.Contains(string(said), "vmlockd is ready") {
		t.Errorf("its log: %v: %s", err, said)
	}
	stop(pidOf)
}
