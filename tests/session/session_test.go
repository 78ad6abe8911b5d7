// Package session_test has stock libvirt start vmlockd for a user's session, as it starts
// virtlockd by itself where there is no systemd.
package session_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

const patience = 2 * time.Minute

// world is the home of a user, with a disk.
type world struct {
	t           *testing.T
	dir         string
	env         []string
	credentials *syscall.Credential
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv("VMLOCKD_LAB") == "" {
		t.Skip("it needs libvirtd, QEMU and root: set VMLOCKD_LAB=1")
	}
	u, err := user.Lookup("nobody") // libvirt wants one with a name
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	dir, err3 := os.MkdirTemp("/tmp", "vs") // short, for sockets, and not root's
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, credentials: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	w.must(os.Chmod(dir, 0o755))
	for _, sub := range []string{"home", "run", "cache", "config", "config/libvirt"} {
		w.must(os.Mkdir(w.path(sub), 0o700))
		w.must(os.Chown(w.path(sub), uid, gid))
	}
	// VIRTLOCKD_PATH is a directory, in which libvirt looks for virtlockd.
	w.must(os.Mkdir(w.path("bin"), 0o755))
	w.must(lab.BuildProgram(w.path("bin/vmlockd"), "github.com/vmlockd/vmlockd/cmd/vmlockd", false))
	w.must(os.Chmod(w.path("bin/vmlockd"), 0o755))
	w.must(os.Symlink("vmlockd", w.path("bin/virtlockd")))
	w.env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "USER=nobody", "HOME=" + w.path("home"), "XDG_RUNTIME_DIR=" + w.path("run"),
		"XDG_CONFIG_HOME=" + w.path("config"), "XDG_CACHE_HOME=" + w.path("cache"), "VIRTLOCKD_PATH=" + w.path("bin")}
	w.write("config/libvirt/qemu.conf", "lock_manager = \"lockd\"\nstdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\n")
	w.write("config/libvirt/virtlockd.conf", "max_clients = 17\nlog_outputs = \"1:file:"+w.path("run/vmlockd.log")+"\"\n")
	w.write("home/disk.img", strings.Repeat("\x00", 1<<20))
	w.write("home/dom.xml", `<domain type='qemu'><name>one</name><memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='`+w.path("home/disk.img")+`'/><target dev='vda' bus='virtio'/></disk></devices></domain>`)
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		log, _ := os.ReadFile(w.path("run/vmlockd.log"))
		w.t.Fatalf("%v\nvmlockd:\n%s", err, log)
	}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	w.must(os.WriteFile(w.path(name), []byte(text), 0o600))
	w.must(os.Chown(w.path(name), int(w.credentials.Uid), int(w.credentials.Gid)))
}

// command is one of the user.
func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Dir = w.env, w.path("home")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.credentials}
	return cmd
}

func (w *world) until(what string, f func() bool) {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !f(); <-tick.C {
		if time.Now().After(end) {
			w.must(fmt.Errorf("waited too long for %s", what))
		}
	}
}

// TestLibvirtStartsIt: a virtual machine of a session has its lock in vmlockd, which libvirt
// has started by itself; it outlives libvirtd and ends with the virtual machine.
func TestLibvirtStartsIt(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	libvirtd := w.command(ctx, "libvirtd")
	w.must(libvirtd.Start())
	defer func() { _ = libvirtd.Wait() }()
	defer func() { _ = libvirtd.Process.Signal(syscall.SIGTERM) }()
	w.until("libvirtd", func() bool {
		_, err := os.Lstat(w.path("run/libvirt/libvirt-sock"))
		return err == nil
	})
	virsh := func(args ...string) {
		t.Helper()
		out, err := w.command(ctx, append([]string{"virsh", "-c", "qemu:///session"}, args...)...).CombinedOutput()
		if err != nil {
			w.must(fmt.Errorf("virsh %q: %w: %s", args, err, out))
		}
	}
	virsh("create", w.path("home/dom.xml"))
	defer func() { // whatever comes
		_ = w.command(context.Background(), "virsh", "-c", "qemu:///session", "destroy", "one").Run()
	}()

	text, err := os.ReadFile(w.path("run/libvirt/virtlockd.pid"))
	w.must(err)
	pid, err := strconv.Atoi(string(text))
	w.must(err)
	defer func() { _ = syscall.Kill(pid, syscall.SIGTERM) }()
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	w.must(err)
	if want := w.path("bin/virtlockd") + "\x00--timeout=120\x00"; string(args) != want {
		t.Errorf("libvirt has started %q, and not %q", args, want)
	}
	c := control.NewClient(w.path("run/vmlockd/control.sock"))
	defer c.Close()
	holders := func() int {
		who, err := c.Who(ctx, []string{w.path("home/disk.img")}, nil)
		w.must(err)
		return len(who.Holders)
	}
	if n := holders(); n != 1 {
		t.Errorf("%d have the disk", n)
	}
	virsh("destroy", "one")
	w.until("the release", func() bool { return holders() == 0 })
}
