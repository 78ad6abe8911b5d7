package lab

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Env names the environment variable that makes tests use the lab: `make lab-test` sets it to 1.
// Then a machine that cannot run the lab fails them; without it they are skipped.
const Env = "VMLOCKD_LAB"

// LogsEnv names the environment variable with a directory for the logs of ForTest's labs, one directory per
// test, so that they can be read after the test. Without it they are gone with the test.
const LogsEnv = "VMLOCKD_LAB_LOGS"

// GuardEnv names the environment variable with the guard.mode of the daemons in suites that are not about the guard, and
// have none without it; "auto" is that of a default installation.
const GuardEnv = "VMLOCKD_LAB_GUARD"

// GuardMode is the guard.mode that such a suite configures.
func GuardMode() string { return cmp.Or(os.Getenv(GuardEnv), "off") }

// Missing returns what this machine lacks for a lab with that configuration, one line each with the
// remedy; empty means that it can run.
func Missing(cfg Config) []string {
	var missing []string
	add := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	if os.Getuid() != 0 {
		add("root: it takes root to make the namespaces of a lab; run as root")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		add("/dev/net/tun: %v; load the module tun, or give the container this device", err)
	} else {
		f.Close()
	}
	for _, ns := range []string{"pid", "net", "mnt"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			add("%s namespaces: %v; the kernel needs them built in", ns, err)
		}
	}
	type program struct{ name, pkg string }
	programs := []program{{"linux.uml", "user-mode-linux"}, {"ip", "iproute2"}}
	if !cfg.NoCluster {
		programs = append(programs, program{"corosync", "corosync"}, program{"dlm_controld", "dlm-controld"}, program{"dlm_tool", "dlm-controld"})
	}
	if cfg.Witness {
		programs = append(programs, program{"corosync-qnetd", "corosync-qnetd"}, program{"corosync-qdevice", "corosync-qdevice"})
	}
	if cfg.Libvirt {
		programs = append(programs, program{"libvirtd", "libvirt-daemon"}, program{"virsh", "libvirt-clients"},
			program{"qemu-system-i386", "qemu-system-x86"})
		if files, _ := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"); len(files) == 0 {
			add("libvirt's QEMU driver: apt-get install libvirt-daemon-driver-qemu")
		}
	}
	if cfg.LockDaemon == Virtlockd {
		programs = append(programs, program{"virtlockd", "libvirt-daemon"})
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p.name); err != nil {
			add("%s: apt-get install %s", p.name, p.pkg)
		}
	}
	if files, _ := filepath.Glob("/usr/lib/uml/modules/*/kernel/fs/dlm/dlm.ko"); len(files) == 0 {
		add("the kernel modules of User-Mode Linux: apt-get install user-mode-linux")
	}
	return missing
}

// Need skips the test unless VMLOCKD_LAB=1; then it fails the test if this machine lacks something, and says what.
func Need(t testing.TB, cfg Config) {
	t.Helper()
	if os.Getenv(Env) != "1" {
		t.Skipf("needs the lab, which boots cluster nodes on this machine: run with %s=1 (make lab-test)", Env)
	}
	if missing := Missing(cfg); len(missing) > 0 {
		t.Fatalf("%s=1, but this machine cannot run the lab. Missing:\n  %s", Env, strings.Join(missing, "\n  "))
	}
}

const (
	// startWithin bounds the start of a lab, which takes half a minute, so that its logs are seen when it hangs.
	startWithin = 5 * time.Minute
	// dumpBefore is how long before the end of go test's patience a lab's logs are printed.
	dumpBefore = 20 * time.Second
)

// ForTest starts a lab for a test, or skips or fails it like Need. When the test ends, the lab is closed; if the test has
// failed, all logs are printed first.
func ForTest(t testing.TB, cfg Config) *Lab {
	t.Helper()
	Need(t, cfg)
	if cfg.LogDir == "" {
		cfg.LogDir = t.TempDir()
		if dir := os.Getenv(LogsEnv); dir != "" {
			cfg.LogDir = filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "_"))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	l, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	// Go ends the program at its deadline, without cleanups.
	over := func() bool { return true }
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if at, ok := d.Deadline(); ok {
			over = time.AfterFunc(time.Until(at)-dumpBefore, func() {
				fmt.Fprintf(os.Stderr, "%s: the time of go test is nearly over; the lab's logs:\n", t.Name())
				l.dump(os.Stderr, l.logDir, 16<<10)
			}).Stop
		}
	}
	t.Cleanup(func() {
		t.Helper()
		over()
		if t.Failed() {
			for _, line := range l.state(context.Background()) {
				t.Log(line)
			}
			var b strings.Builder
			l.dump(&b, l.logDir, 64<<10)
			t.Logf("the lab's logs (complete with %s=DIR in DIR):\n%s", LogsEnv, b.String())
		}
		if err := l.Close(); err != nil {
			t.Errorf("end of the lab: %v", err)
		}
	})
	return l
}
