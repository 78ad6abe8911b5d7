package guard

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/owner"
)

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	late := time.After(time.Minute)
	for !done() {
		select {
		case <-ticker.C:
		case <-late:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// busy starts a process that writes to a file without end.
func busy(t *testing.T) (pid int32, start uint64, size func() int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out")
	cmd := exec.Command("sh", "-c", "while :; do echo x >> \"$0\"; done", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p, err := owner.Processes{}.Open(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return int32(cmd.Process.Pid), p.StartTime(), func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
}

func TestProcessStopsAndGoesOn(t *testing.T) {
	pid, start, size := busy(t)
	await(t, "it writes", func() bool { return size() > 0 })
	if _, err := (System{}).Open(pid, start+1); !errors.Is(err, locking.ErrNoProcess) {
		t.Fatalf("another process with that pid: %v", err)
	}
	p, err := System{}.Open(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Stopped() || p.Suspended() {
		t.Fatal("stopped before it was")
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	await(t, "it is stopped", p.Suspended)
	before := size()
	for range 50 {
		if !p.Stopped() || size() != before {
			t.Fatal("it goes on although it is stopped")
		}
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	await(t, "it writes again", func() bool { return size() > before })
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Gone():
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if err := p.Stop(); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}

// inScope puts a process into a cgroup as that of a virtual machine, and returns where cgroup v2 is mounted.
func inScope(t *testing.T, pid int32) (cgroups string) {
	t.Helper()
	// Containers and users may have none, so that the unit tests do without; with the lab, as in CI, it has to be there.
	lacks := t.Skipf
	if os.Getenv("VMLOCKD_LAB") != "" {
		lacks = t.Fatalf
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			cgroups = f[1]
		}
	}
	if cgroups == "" {
		cgroups = t.TempDir()
		if err := unix.Mount("none", cgroups, "cgroup2", 0, ""); err != nil {
			lacks("cgroup v2 is not mounted, and cannot be: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(cgroups, 0) })
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, below, ok := strings.Cut(string(own), "0::/")
	if !ok {
		lacks("this process is in no cgroup of v2: %s", own)
	}
	below, _, _ = strings.Cut(below, "\n")
	dir := filepath.Join(cgroups, below, fmt.Sprintf("machine-qemu-%d.scope", pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		lacks("no cgroup can be made, for which this must be root: %v", err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(int(pid), unix.SIGKILL)
		await(t, "its cgroup is gone", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(int(pid))), 0); err != nil {
		t.Fatal(err)
	}
	return cgroups
}

// A virtual machine whose cgroup is frozen is known to be stopped, also if it was frozen before it has taken the SIGSTOP.
func TestProcessIsFrozen(t *testing.T) {
	pid, start, size := busy(t)
	p, err := System{cgroups: inScope(t, pid)}.Open(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 10 { // each may be frozen earlier or later
		before := size()
		await(t, "it writes", func() bool { return size() > before })
		if p.Suspended() { // it may wait for the disk, which Stopped is true of
			t.Fatal("stopped before it was")
		}
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
		await(t, "it is stopped", p.Stopped)
		await(t, "it is suspended", p.Suspended)
		before = size()
		for range 50 {
			if !p.Stopped() || !p.Suspended() || size() != before {
				t.Fatal("it goes on although it is stopped")
			}
		}
		if err := p.Continue(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "it is killed", func() bool {
		select {
		case <-p.Gone():
			return true
		default:
			return false
		}
	})
}

// Who waits for a disk is stopped by nobody, although it does not run.
func TestStates(t *testing.T) {
	for states, want := range map[string]struct{ halted, suspended bool }{
		"T": {true, true}, "TTT": {true, true}, "TDT": {true, true}, "TZ": {true, true},
		"D": {true, false}, "DD": {true, false}, "t": {true, false}, "": {true, false}, "Z": {true, false},
		"S": {false, false}, "TS": {false, false}, "RT": {false, false}, "DI": {false, false},
	} {
		if a, b := halted(states), suspended(states); a != want.halted || b != want.suspended {
			t.Errorf("%q: stopped %v, by a signal %v", states, a, b)
		}
	}
}

func TestScopeOf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator\n": "machine.slice/machine-qemu\\x2d1\\x2dweb.scope",
		"0::/system.slice/libvirtd.service\n":                                   "",
		"3:freezer:/machine.slice/machine-qemu-1.scope\n0::/\n":                 "",
		"": "",
	} {
		if got := scopeOf(text); got != want {
			t.Errorf("%q: %q, and not %q", text, got, want)
		}
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "guard.json"), Boot: "b1"}
	if s, err := f.Load(); s != nil || err != nil {
		t.Fatalf("nothing is there: %v, %v", s, err)
	}
	want := Saved{At: time.Hour, Proven: time.Minute, Frozen: []Frozen{{Owner: Owner{PID: 7, Start: 9, Name: "web"}, Since: 1, Deadline: 2}}}
	if err := f.Save(want); err != nil {
		t.Fatal(err)
	}
	s, err := f.Load()
	if err != nil || s == nil || len(s.Frozen) != 1 || s.Frozen[0] != want.Frozen[0] || s.Proven != want.Proven {
		t.Fatalf("%+v, %v", s, err)
	}
	if s, err := (File{Path: f.Path, Boot: "b2"}).Load(); s != nil || err != nil {
		t.Errorf("after a reboot: %v, %v", s, err)
	}
	if err := os.WriteFile(f.Path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(); err == nil {
		t.Error("what cannot be read is taken for nothing")
	}
}

func TestMembers(t *testing.T) {
	dir := t.TempDir()
	if _, err := membersIn(dir, "vms"); err == nil {
		t.Error("no such lockspace, and no error")
	}
	for _, n := range []string{"10", "2"} {
		if err := os.MkdirAll(filepath.Join(dir, "vms", "nodes", n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := membersIn(dir, "vms"); err != nil || len(got) != 2 || got[0] != 2 || got[1] != 10 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "vms", "nodes", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := membersIn(dir, "vms"); err == nil {
		t.Error("a node that is no number")
	}
}

// Where there is a cgroup that can be frozen it is, with whatever else is in it.
func TestFreezer(t *testing.T) {
	pid, start, _ := busy(t)
	opened, err := System{}.Open(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	p := opened.(*process)
	p.freezer = filepath.Join(t.TempDir(), "cgroup.freeze")
	for _, c := range []struct {
		what, want string
		do         func() error
	}{{"stop", "1", p.Stop}, {"continue", "0", p.Continue}} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(p.freezer); err != nil || string(b) != c.want {
			t.Errorf("%s: the cgroup was told %q, %v", c.what, b, err)
		}
	}
	await(t, "it is not stopped any more", func() bool { return !p.Stopped() })
	// Who cannot be thawed must not seem to go on.
	p.freezer = filepath.Join(p.freezer, "is-no-directory")
	if err := p.Continue(); err == nil {
		t.Error("it goes on, and its cgroup is frozen")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}
