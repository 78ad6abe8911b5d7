package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// someUser is a user who is not root, and whom no test needs otherwise.
const someUser = 61234

// as runs f as another user, in a thread that ends with it.
func as(t *testing.T, uid int, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else may get this thread
		// Of the thread alone, where syscall.Setresuid would change all of them.
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := syscall.RawSyscall(call, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// session is a user's home with the built program.
type session struct {
	t                    *testing.T
	dir, program, socket string
	env                  []string
}

func newSession(t *testing.T) *session {
	t.Helper()
	if os.Geteuid() != 0 {
		// 'make test' runs as root.
		t.Skip("only root can become another user")
	}
	s := build(t)
	dir, err := os.MkdirTemp("/tmp", "vs") // t.TempDir is root's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := os.ReadFile(s.program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vmlockd")
	err = errors.Join(os.WriteFile(path, program, 0o755), os.Chmod(dir, 0o755))
	for _, sub := range []string{"home", "run", "config", "config/libvirt", "config/vmlockd"} {
		at := filepath.Join(dir, sub)
		err = errors.Join(err, os.Mkdir(at, 0o700), os.Chown(at, someUser, someUser))
	}
	if err != nil {
		t.Fatal(err)
	}
	u := &session{t: t, dir: dir, program: path, socket: filepath.Join(dir, "run", "libvirt", "virtlockd-sock")}
	// What libvirt passes on to a daemon that it starts (virNetSocketForkDaemon of
	// src/rpc/virnetsocket.c).
	u.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir + "/home", "XDG_RUNTIME_DIR=" + dir + "/run", "XDG_CONFIG_HOME=" + dir + "/config"}
	t.Cleanup(u.endHolder)
	return u
}

func (u *session) command(args ...string) *exec.Cmd {
	cmd := exec.Command(u.program, args...)
	cmd.Env, cmd.Dir = u.env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}
	return cmd
}

func (u *session) write(path, text string) {
	u.t.Helper()
	path = filepath.Join(u.dir, path)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, someUser, someUser)); err != nil {
		u.t.Fatal(err)
	}
}

func (u *session) endHolder() {
	_ = as(u.t, someUser, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), logstest.Patience)
		defer cancel()
		c, err := holder.Connect(ctx, holder.Options{Socket: filepath.Join(u.dir, "run", "vmlockd", "holder.sock")})
		if err != nil {
			return err
		}
		defer c.Close()
		return syscall.Kill(c.Status().PID, syscall.SIGKILL)
	})
}

// TestSession: as libvirt starts virtlockd for a user's session, with that user's files and
// sockets, for nobody else, and until it was idle for as long as libvirt says.
func TestSession(t *testing.T) {
	u := newSession(t)
	log := filepath.Join(u.dir, "run", "log")
	u.write("config/libvirt/virtlockd.conf", "log_outputs = \"1:file:"+log+"\"\nmax_clients = 7\n")
	disk := filepath.Join(u.dir, "home", "disk")
	u.write("home/disk", "")
	owner := exec.Command("sleep", "600")
	owner.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Wait() }()
	defer func() { _ = owner.Process.Kill() }()

	cmd := u.command("--timeout=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	said := func() string {
		text, _ := os.ReadFile(log)
		return string(text)
	}
	until(t, "the daemon is ready", func() bool { return strings.Contains(said(), "vmlockd is ready") })

	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	acquire := func() error {
		c, err := lockprogram.Dial(ctx, u.socket)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.Register(ctx, locking.Owner{PID: int32(owner.Process.Pid), ID: 1, Name: "web"}); err != nil {
			return err
		}
		return c.Acquire(ctx, locking.Ref{Name: disk}, 0)
	}
	if err := as(t, someUser, acquire); err != nil {
		t.Fatalf("the session's user: %v", err)
	}
	for _, other := range []int{0, someUser + 1} { // these can connect only as the directory lets them
		if err := os.Chmod(filepath.Join(u.dir, "run"), 0o711); err != nil {
			t.Fatal(err)
		}
		if err := as(t, other, acquire); err == nil || strings.Contains(err.Error(), "busy") {
			t.Errorf("user %d is served: %v", other, err)
		}
	}
	for path, mode := range map[string]os.FileMode{
		u.socket: os.ModeSocket | 0o600,
		filepath.Join(u.dir, "run", "libvirt", "virtlockd.pid"): 0o644,
		filepath.Join(u.dir, "run", "libvirt"):                  os.ModeDir | 0o700,
		filepath.Join(u.dir, "run", "vmlockd"):                  os.ModeDir | 0o700,
		filepath.Join(u.dir, "run", "vmlockd", "control.sock"):  os.ModeSocket | 0o600,
	} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != mode || info.Sys().(*syscall.Stat_t).Uid != someUser {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(u.dir, "run", "libvirt", "virtlockd.pid")); err != nil || string(text) != fmt.Sprint(cmd.Process.Pid) {
		t.Errorf("the pid file: %q, %v", text, err)
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	until(t, "it is restarted in place", func() bool { return strings.Count(said(), "vmlockd is ready") == 2 })
	// libvirt starts another one if it cannot connect just then.
	out, err := u.command("--timeout=1").CombinedOutput()
	if exit(err) != 1 || !strings.Contains(said(), "locked: stop it first") {
		t.Errorf("a second one: %v: %s\n%s", err, out, said())
	}
	select {
	case err := <-ended:
		t.Fatalf("it has ended with a lock: %v", err)
	default:
	}
	_ = owner.Process.Kill()
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
	if !strings.Contains(said(), "it ends") {
		t.Errorf("its log:\n%s", said())
	}
}

// TestSessionRefusesCluster: the kernel's DLM is root's.
func TestSessionRefusesCluster(t *testing.T) {
	u := newSession(t)
	u.write("config/vmlockd/vmlockd.toml", "backend = \"cluster\"\n")
	out, err := u.command().CombinedOutput()
	if exit(err) != 1 || !strings.Contains(string(out), "needs root") || !strings.Contains(string(out), "local") {
		t.Errorf("%v: %s", err, out)
	}
}
