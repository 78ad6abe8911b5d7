// Package local_test proves the default configuration on this host, without any
// cluster: stock libvirt and QEMU, vmlockd with no configuration file, two
// virtual machines and one disk. Nothing of the host is touched: the daemons run
// in namespaces of their own, over empty directories.
package local_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab"
)

// insideEnv marks the process that runs in the namespaces.
const insideEnv = "VMLOCKD_TEST_INSIDE"

// stock is QEMU as Debian ships it; its own image locks would refuse before the
// lock daemon does, so the emulator of these tests switches them off.
const stock = "/usr/bin/qemu-system-i386"

func TestStockLibvirtOnOneHost(t *testing.T) {
	if os.Getenv(lab.Env) != "1" {
		t.Skipf("needs root, libvirt and QEMU on this machine: run with %s=1 (make lab-test)", lab.Env)
	}
	if os.Getenv(insideEnv) != "1" {
		outside(t)
		return
	}
	h := setUp(t)
	disk := filepath.Join(h.dir, "disk.img")
	if err := os.WriteFile(disk, lab.IdleGuest(), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(h.dir, "link.img")
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}

	h.want(t, true, "", "create", h.domain(t, "first", disk))
	h.want(t, false, "resource busy: Lockspace resource '"+disk+"' is locked by virtual machine first", "create", h.domain(t, "second", disk))
	h.want(t, false, "resource busy: Lockspace resource '"+link+"' is locked by virtual machine first", "create", h.domain(t, "alias", link))
	h.want(t, true, "", "destroy", "first")
	h.want(t, true, "", "create", h.domain(t, "second", disk))
	h.want(t, false, "is locked by virtual machine second", "create", h.domain(t, "first", disk))
	h.want(t, true, "", "destroy", "second")
}

// outside runs this test again in new namespaces: when their first process ends,
// however it does, the kernel ends all that it started.
func outside(t *testing.T) {
	program := lab.Build(t, "github.com/vmlockd/vmlockd/cmd/vmlockd")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell is the first process: it waits for the orphans that libvirt leaves, which would stay zombies otherwise.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `"$@" & wait $!`, "sh",
		self, "-test.run=^TestStockLibvirtOnOneHost$", "-test.v", "-test.timeout=4m")
	cmd.Env = append(os.Environ(), insideEnv+"=1", "VMLOCKD_TEST_BIN="+program)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("inside the namespaces: %v", err)
	}
}

// host is this machine with private directories for libvirt.
type host struct {
	dir string // for everything of the test
}

func setUp(t *testing.T) *host {
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must("mount /proc", unix.Mount("proc", "/proc", "proc", 0, ""))
	must("mount /sys", unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY, "")) // of these namespaces
	passwd, err := os.ReadFile("/etc/passwd")
	must("read /etc/passwd", err)
	group, err := os.ReadFile("/etc/group")
	must("read /etc/group", err)
	for _, dir := range []string{"/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/tmp"} {
		must("make "+dir, os.MkdirAll(dir, 0o755))
		if dir == "/tmp" {
			continue
		}
		must("mount on "+dir, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	}
	h := &host{dir: "/var/lib/libvirt/images"}
	must("make the images' directory", os.MkdirAll(h.dir, 0o755))
	file := func(path, text string, mode os.FileMode) {
		t.Helper()
		must("write "+path, os.WriteFile(path, []byte(text), mode))
	}
	// libvirt wants its default user to exist, even if qemu.conf names another one.
	for path, text := range map[string]string{
		"/etc/passwd": string(passwd) + "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n",
		"/etc/group":  string(group) + "libvirt-qemu:x:64055:\n",
	} {
		copied := "/run/" + filepath.Base(path)
		file(copied, text, 0o644)
		must("replace "+path, unix.Mount(copied, path, "", unix.MS_BIND, ""))
	}
	file("/etc/libvirt/libvirtd.conf", "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nlog_outputs = \"2:stderr\"\n", 0o644)
	// The one line that an administrator adds is the first.
	file("/etc/libvirt/qemu.conf", `lock_manager = "lockd"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
`, 0o644)
	file("/run/emulator", "#!/bin/sh\n"+`for a; do
	shift
	case "$a" in
	*'"driver":"file"'*) a=$(printf '%s' "$a" | sed 's/"driver":"file"/"driver":"file","locking":"off"/') ;;
	esac
	set -- "$@" "$a"
done
exec `+stock+` "$@"
`, 0o755)
	daemon(t, "vmlockd", "/run/libvirt/virtlockd-sock", os.Getenv("VMLOCKD_TEST_BIN"))
	daemon(t, "libvirtd", "/run/libvirt/libvirt-sock", "/usr/sbin/libvirtd")
	return h
}

// daemon starts a program and waits for its socket. It ends with the namespace.
func daemon(t *testing.T, name, socket, path string) {
	log, err := os.Create("/run/" + name + ".log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("===== %s\n%s", name, text)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = lab.WaitFor(ctx, name+" to listen", func(context.Context) (bool, error) {
		_, err := os.Stat(socket)
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// domain writes the XML of a virtual machine and returns its path.
func (h *host) domain(t *testing.T, name, disk string) string {
	t.Helper()
	path := "/run/" + name + ".xml"
	text := lab.Domain{Name: name, Disks: []lab.Disk{{Path: disk, Cache: "none"}}, QemuLocks: true}.XML()
	if !strings.Contains(text, stock) {
		t.Fatalf("the domain has another emulator than %s:\n%s", stock, text)
	}
	text = strings.Replace(text, stock, "/run/emulator", 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// want runs virsh, which has to succeed, or to fail with a text.
func (h *host) want(t *testing.T, ok bool, text string, args ...string) {
	t.Helper()
	out, err := exec.Command("virsh", append([]string{"--connect", "qemu:///system"}, args...)...).CombinedOutput()
	what := fmt.Sprintf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	if (err == nil) != ok || !strings.Contains(string(out), text) {
		t.Fatalf("want success %v and %q:\n%s", ok, text, what)
	}
	t.Log(what)
}
