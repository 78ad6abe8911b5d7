package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/adminprogram"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// TestSockets: virt-admin finds the daemon by the names that an administrator uses.
func TestSockets(t *testing.T) {
	virtAdmin(t)
	d := startVmlockd(t)
	info, err := os.Lstat(d.adminSocket())
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	out, status := d.runAt("virtlockd:///session", []string{"XDG_RUNTIME_DIR=" + d.dir}, "server-list")
	if status != 0 || !strings.Contains(out, "virtlockd") {
		t.Errorf("session: status %d, %s", status, out)
	}
	if os.Geteuid() != 0 {
		// 'make test' runs as root.
		t.Skip("only root has the system's daemon, and may become nobody")
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "/bin/sh", "-ec",
		`mount -t tmpfs none /run; mkdir /run/libvirt; mount --bind "$1/libvirt" /run/libvirt; exec "$2" -c virtlockd:///system server-list`, "sh", d.dir, virtAdmin(t))
	if text, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(text), "virtlockd") {
		t.Errorf("system: %v, %s", err, text)
	}
	// Others may not, and if the socket's mode were wrong they would not either.
	nobody := func() string {
		cmd := exec.CommandContext(t.Context(), virtAdmin(t), "-c", d.uri(), "server-list")
		cmd.Env = []string{"HOME=/nonexistent", "LC_ALL=C"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		text, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("nobody was served: %s", text)
		}
		return string(text)
	}
	if text := nobody(); !strings.Contains(text, "Permission denied") {
		t.Error(text)
	}
	if err := os.Chmod(d.adminSocket(), 0o666); err != nil {
		t.Fatal(err)
	}
	if text := nobody(); strings.Contains(text, "Permission denied") {
		t.Error(text)
	}
	d.until("the log tells", func() error {
		text, err := os.ReadFile(d.file("stderr"))
		if err == nil && !strings.Contains(string(text), "a client was refused") {
			err = errors.New("it does not")
		}
		return err
	})
	d.must("server-list")
}

// metric is the value of one of the daemon's metrics.
func (d *daemon) metric(name string) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var n net.Dialer
		return n.DialContext(ctx, "unix", d.file("run/control.sock"))
	}}}
	resp, err := client.Get("http://vmlockd/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(l, name+" "); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("no %s in\n%s", name, text)
}

func (d *daemon) wantLimit(want string) {
	d.t.Helper()
	if got, err := d.metric("vmlockd_connections_limit"); got != want || err != nil {
		d.t.Errorf("the limit is %q, %v; want %s", got, err, want)
	}
}

// TestLimitIsInForce: the limit of clients counts at once, for new ones, and is shown.
func TestLimitIsInForce(t *testing.T) {
	virtAdmin(t)
	d := startVmlockd(t)
	d.wantLimit("200")
	disk := makeDisk(d)
	first := newOwner(d, disk)
	d.must("server-clients-set", "virtlockd", "--max-clients", "1", "--max-unauth-clients", "1")
	d.wantLimit("1")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, d.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// One more gets no lock, only releases; there are a few such places.
	err = acquire(ctx, c, d.file("other"))
	if err == nil || !strings.Contains(err.Error(), "serves 1 connections, which is its limit") {
		t.Errorf("beyond the limit: %v", err)
	}
	d.must("server-clients-set", "virtlockd", "--max-clients", "2")
	c2, err := lockprogram.Dial(ctx, d.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	if err := acquire(ctx, c2, d.file("other")); err != nil {
		t.Errorf("within the limit: %v", err)
	} else if err := c2.Release(ctx, locking.Ref{Name: d.file("other")}); err != nil {
		t.Fatal(err) // and this process is ended, as it has the lock and closes the connection
	}
	first.tell("release") // who was there goes on
}

// acquire asks for a lock in the name of this process.
func acquire(ctx context.Context, c *lockprogram.Client, disk string) error {
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return err
	}
	if err := c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "other"}); err != nil {
		return err
	}
	return c.Acquire(ctx, locking.Ref{Name: disk}, 0)
}

// call makes one call, of a procedure whose arguments are numbers.
func call(c *rpc.Client, procedure int32, args ...uint32) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.Call(ctx, adminprogram.ProgramNumber, adminprogram.Version, procedure, numbers(args), nil)
}

// open is a connection of a client like virt-admin, which lives as long as the test.
func (d *daemon) open() *rpc.Client {
	d.t.Helper()
	c, err := rpc.Dial(d.t.Context(), d.adminSocket())
	if err == nil {
		d.t.Cleanup(func() { c.Close() })
		err = call(c, adminprogram.ProcConnectOpen, 0)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

type numbers []uint32

func (n numbers) EncodeXDR(e *rpc.Encoder) {
	for _, v := range n {
		e.Uint32(v)
	}
}

// TestRestartInPlace: connections of virt-admin go on, as virtlockd's do, clients keep
// their numbers and times, and limits stay as they were set until the configuration is
// changed. The log is as configured again.
func TestRestartInPlace(t *testing.T) {
	virtAdmin(t)
	d := startVmlockd(t)
	o := newOwner(d, makeDisk(d))
	c := d.open()
	d.must("server-clients-set", "virtlockd", "--max-clients", "77", "--max-unauth-clients", "7")
	d.must("server-clients-set", "admin", "--max-clients", "9", "--max-unauth-clients", "3")
	before, admins := d.must("client-list", "virtlockd"), d.clients("admin")
	d.must("daemon-log-outputs", "--outputs", "2:file:"+d.file("log"))
	d.restart()

	if after := d.must("client-list", "virtlockd"); after != before {
		t.Errorf("%s\nbecame\n%s", before, after)
	}
	now := d.clients("admin")
	if now[0] != admins[0] {
		t.Errorf("clients %v, and %v before", now, admins)
	}
	if err := call(c, adminprogram.ProcConnectOpen, 0); err != nil {
		t.Errorf("a connection that was open before: %v", err)
	}
	for server, want := range map[string][2]string{"virtlockd": {"77", "7"}, "admin": {"9", "3"}} {
		if out := d.must("server-clients-info", server); !strings.Contains(out, "nclients_max        : "+want[0]+"\n") || !strings.Contains(out, "nclients_unauth_max : "+want[1]+"\n") {
			t.Errorf("%s: %s", server, out)
		}
	}
	if out := d.must("daemon-log-outputs"); !strings.Contains(out, "3:stderr") {
		t.Error(out)
	}
	// The connection is the same one for the daemon, too: it is still that of an owner.
	ids := d.clients("virtlockd")
	if out, status := d.run("client-disconnect", "virtlockd", ids[0]); status == 0 {
		t.Error(out)
	}
	o.tell("release")

	// What the configuration says anew counts; the socket may be elsewhere then.
	moved := filepath.Join(d.dir, "moved")
	d.configure(fmt.Sprintf("log.level = \"warning\"\nadmin_max_clients = 11\nadmin_socket = %q\n", moved))
	d.restart()
	if _, err := os.Lstat(d.adminSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket that is not used any more is still there: %v", err)
	}
	out, status := d.runAt("virtlockd+unix:///system?socket="+moved, nil, "server-clients-info", "admin")
	if status != 0 || !strings.Contains(out, "nclients_max        : 11\n") {
		t.Errorf("%d, %s", status, out)
	}
	if err := call(c, adminprogram.ProcConnectOpen, 0); err != nil {
		t.Errorf("a connection that was open before: %v", err)
	}
}

// TestOlderProgram: one that knows nothing of the admin socket takes over without it, and
// leaves nothing behind that is in the way of one that does.
func TestOlderProgram(t *testing.T) {
	virtAdmin(t)
	d := startVmlockd(t)
	o := newOwner(d, makeDisk(d))
	before := d.must("client-list", "virtlockd")
	c := d.open()
	// It takes a state of version 2, and is this program after that: so the state is
	// what matters.
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--can-take-over\\ 3*) exit 1;; *--can-take-over*) exit 0;; esac\nexec %s \"$@\"\n", vmlockd)
	if err := os.WriteFile(d.file("older"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.file("older"), d.file("vmlockd")); err != nil {
		t.Fatal(err)
	}
	d.restart()
	if after := d.must("client-list", "virtlockd"); after != before {
		t.Errorf("%s\nbecame\n%s", before, after)
	}
	if err := call(c, adminprogram.ProcConnectOpen, 0); err == nil {
		t.Error("a connection of virt-admin goes on, and nobody said so")
	}
	o.tell("release")
}

// restart has it executed in place, and waits until that is done.
func (d *daemon) restart() {
	d.t.Helper()
	const starts = `vmlockd_starts_total{how="in_place"}`
	before, err := d.metric(starts)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		d.t.Fatal(err)
	}
	d.until("it is executed again", func() error {
		now, err := d.metric(starts)
		if err == nil && now == before {
			err = fmt.Errorf("there were %s restarts", now)
		}
		return err
	})
}

// TestTimeout: a daemon that nobody uses ends after the time that virt-admin sets, and
// in order.
func TestTimeout(t *testing.T) {
	virtAdmin(t)
	d := startVmlockd(t)
	d.must("daemon-timeout", "--timeout", "1")
	select {
	case <-d.done:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("status %d", code)
	}
	if _, err := os.Lstat(d.adminSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its socket is still there: %v", err)
	}
}
