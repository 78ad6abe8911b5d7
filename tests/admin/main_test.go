// Package admin_test has the stock virt-admin of libvirt work on the built vmlockd,
// and on Debian's virtlockd beside it, and compares what it prints.
package admin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/lab"
)

// patience bounds all that is waited for.
const patience = time.Minute

// vmlockd is the built program.
var vmlockd string

func TestMain(m *testing.M) {
	if socket := os.Getenv(ownerEnv); socket != "" {
		beOwner(socket)
		return
	}
	lab.MainWith(m, map[*string]string{&vmlockd: "github.com/vmlockd/vmlockd/cmd/vmlockd"})
}

// installed finds a program of libvirt.
func installed(t *testing.T, pkg string, paths ...string) string {
	t.Helper()
	for _, p := range paths {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	if os.Getenv(lab.Env) != "" {
		t.Fatalf("none of %v is there; Debian has it in %s", paths, pkg)
	}
	t.Skipf("none of %v is installed; Debian has it in %s", paths, pkg)
	return ""
}

func virtAdmin(t *testing.T) string { return installed(t, "libvirt-clients", "virt-admin") }

// daemon is one of the two, with its sockets in a directory called libvirt.
type daemon struct {
	t    *testing.T
	name string
	dir  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (d *daemon) socket() string      { return filepath.Join(d.dir, "libvirt", "virtlockd-sock") }
func (d *daemon) adminSocket() string { return filepath.Join(d.dir, "libvirt", "virtlockd-admin-sock") }
func (d *daemon) uri() string         { return "virtlockd+unix:///system?socket=" + d.adminSocket() }
func (d *daemon) file(name string) string {
	return filepath.Join(d.dir, name)
}

// newDaemon makes the directory, with a short name as paths of sockets must be.
func newDaemon(t *testing.T, name string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "adm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "libvirt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &daemon{t: t, name: name, dir: dir, done: make(chan struct{})}
}

func startVmlockd(t *testing.T) *daemon {
	t.Helper()
	d := newDaemon(t, "vmlockd")
	t.Cleanup(func() { d.endHolder() })
	d.configure("log.level = \"warning\"\n")
	// By a name of its own, which a test can make another program's.
	if err := os.Symlink(vmlockd, d.file("vmlockd")); err != nil {
		t.Fatal(err)
	}
	d.start(exec.Command(d.file("vmlockd"), "--config", d.file("vmlockd.toml")))
	return d
}

func (d *daemon) configure(more string) {
	d.t.Helper()
	d.writes("vmlockd.toml", d.own()+"max_clients = 200\n"+more)
}

// own is where a vmlockd has its files, for its configuration.
func (d *daemon) own() string {
	return fmt.Sprintf("socket = %q\nrun_dir = %q\naudit_log = %q\n", d.socket(), d.file("run"), d.file("audit.log"))
}

func (d *daemon) writes(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(d.file(name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// endHolder ends what a daemon has left that was killed with locks.
func (d *daemon) endHolder() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := holder.Connect(ctx, holder.Options{Socket: d.file("run/holder.sock")})
	if err != nil {
		return
	}
	pid := c.Status().PID
	c.Close()
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func startVirtlockd(t *testing.T) *daemon {
	t.Helper()
	d := newDaemon(t, "virtlockd")
	d.startVirtlockd("log_level=3\nlog_outputs=\"3:stderr\"\nmax_clients=200\n")
	return d
}

// startVirtlockd starts that of libvirt with a configuration.
func (d *daemon) startVirtlockd(conf string) {
	d.t.Helper()
	exe := installed(d.t, "libvirt-daemon", "virtlockd", "/usr/sbin/virtlockd")
	d.writes("conf", conf)
	cmd := exec.Command(exe, "-f", d.file("conf"), "-p", d.file("pid"))
	if os.Geteuid() == 0 {
		// Its sockets are in /run/libvirt, which is ours in a namespace of its own.
		cmd = exec.Command("unshare", "--mount", "/bin/sh", "-ec",
			`mount -t tmpfs none /run; mkdir /run/libvirt; mount --bind "$1/libvirt" /run/libvirt; exec "$2" -f "$1/conf" -p "$1/pid"`, "sh", d.dir, exe)
	} else {
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+d.dir)
	}
	d.start(cmd)
}

// start runs cmd until the test ends; it also ends with this process.
func (d *daemon) start(cmd *exec.Cmd) {
	d.t.Helper()
	log, err := os.Create(d.file("stderr"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.cmd = cmd
	started := make(chan error)
	go func() {
		defer close(d.done)
		runtime.LockOSThread() // which Pdeathsig is about
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-d.done
		}
		if d.t.Failed() {
			text, _ := os.ReadFile(d.file("stderr"))
			d.t.Logf("%s wrote:\n%s", d.name, text)
		}
	})
	d.until("it listens", func() error {
		c, err := net.Dial("unix", d.adminSocket())
		if err == nil {
			c.Close()
		}
		return err
	})
}

// until waits until what returns nil.
func (d *daemon) until(what string, try func() error) {
	d.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			d.t.Fatalf("%s: %s: %v", d.name, what, err)
		}
	}
}

// run has virt-admin carry out a command, and returns what it prints and its status.
func (d *daemon) run(args ...string) (out string, status int) {
	d.t.Helper()
	return d.runAt(d.uri(), nil, args...)
}

func (d *daemon) runAt(uri string, env []string, args ...string) (out string, status int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, virtAdmin(d.t), append([]string{"-c", uri}, args...)...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C", "TZ=UTC"), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return stdout.String() + stderr.String(), cmd.ProcessState.ExitCode()
}

// must is run for what has to succeed.
func (d *daemon) must(args ...string) string {
	d.t.Helper()
	out, status := d.run(args...)
	if status != 0 {
		d.t.Fatalf("%s: %v: status %d, %s", d.name, args, status, out)
	}
	return out
}

var (
	timeOf   = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+0000`)
	clientOf = regexp.MustCompile(`(?m)^ (\d+) +unix `)
)

// clients are the ids of a server's clients, in order.
func (d *daemon) clients(server string) (ids []string) {
	d.t.Helper()
	for _, m := range clientOf.FindAllStringSubmatch(d.must("client-list", server), -1) {
		ids = append(ids, m[1])
	}
	return ids
}

// plain is what virt-admin prints without what differs from run to run: times, the
// daemon's directory, pids, lines and blanks at the ends.
func (d *daemon) plain(out string) string {
	out = strings.ReplaceAll(out, d.dir, "DIR")
	out = timeOf.ReplaceAllString(out, "TIME")
	out = strings.ReplaceAll(out, fmt.Sprintf(": %d\n", os.Getpid()), ": PID\n")
	var lines []string
	for _, l := range strings.Split(out, "\n") {
		if l = strings.TrimRight(l, " "); l != "" && strings.Trim(l, "-") != "" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n")
}
