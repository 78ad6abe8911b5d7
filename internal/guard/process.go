package guard

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/owner"
)

// System finds processes of this host. Its zero value is ready for use.
type System struct {
	cgroups string // where cgroup v2 is mounted; "" for where systemd mounts it
}

// Open finds the process with this pid, if it started at that time.
func (s System) Open(pid int32, start uint64) (Process, error) {
	found, err := owner.Processes{}.Open(pid)
	if err != nil {
		return nil, err
	}
	p := found.(*owner.Process)
	if p.StartTime() != start {
		p.Close()
		return nil, locking.ErrNoProcess
	}
	cgroups := cmp.Or(s.cgroups, cgroupRoot)
	return &process{Process: p, pid: pid, cgroups: cgroups, freezer: freezerOf(cgroups, pid)}, nil
}

type process struct {
	*owner.Process
	pid     int32
	cgroups string
	freezer string // cgroup.freeze of its virtual machine; "" if there is none
}

// Stop sends SIGSTOP, which stops all threads of a process (signal(7)), and freezes
// the cgroup.
func (p *process) Stop() error {
	err := p.Signal(unix.SIGSTOP)
	if p.freezer == "" {
		// It may have been opened before libvirt had moved it there.
		select {
		case <-p.Gone():
		default:
			p.freezer = freezerOf(p.cgroups, p.pid)
		}
	}
	if p.freezer != "" {
		// The signal has stopped it already; this is for its children, and for a SIGCONT
		// of somebody else.
		_ = os.WriteFile(p.freezer, []byte("1"), 0)
	}
	return err
}

func (p *process) Continue() error {
	if p.freezer != "" {
		if err := os.WriteFile(p.freezer, []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return p.Signal(unix.SIGCONT)
}

// Kill works on a frozen cgroup, too (Documentation/admin-guide/cgroup-v2.rst).
func (p *process) Kill() error { return p.Signal(unix.SIGKILL) }

// Stopped reports whether no thread runs or could: each is stopped, or in the
// kernel (D), from where it does not get back before it is stopped.
func (p *process) Stopped() bool {
	states, ok := p.states()
	return ok && halted(states) || p.frozen()
}

// Suspended reports whether it is stopped by a signal or frozen, and not only in the kernel at the moment, as whoever waits for a disk is.
func (p *process) Suspended() bool {
	states, ok := p.states()
	return ok && suspended(states) || p.frozen()
}

// frozen reports whether the cgroup keeps it from running. A thread that was frozen before it has taken the SIGSTOP seems to sleep
// (S), and takes the signal only when it is thawed (do_freezer_trap in kernel/signal.c). "frozen 1" is there when all threads
// of the cgroup, and of those below, are stopped (Documentation/admin-guide/cgroup-v2.rst).
func (p *process) frozen() bool {
	if p.freezer == "" || freezerOf(p.cgroups, p.pid) != p.freezer { // it may have been moved
		return false
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(p.freezer), "cgroup.events"))
	return err == nil && slices.Contains(strings.Split(string(b), "\n"), "frozen 1")
}

func halted(states string) bool { return strings.Trim(states, "TtDZXx") == "" }

func suspended(states string) bool { return halted(states) && strings.Contains(states, "T") }

// states are those of all threads, a letter for each (proc(5)), and none of a process that has ended. ok is false if that is not known.
func (p *process) states() (states string, ok bool) {
	dir := fmt.Sprintf("/proc/%d/task", p.pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return "", errors.Is(err, fs.ErrNotExist)
	}
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join(dir, t.Name(), "stat"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		// The name before it is in parentheses and may hold anything (proc(5)).
		after := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:])
		if err != nil || len(after) == 0 {
			return "", false
		}
		states += string(after[:1])
	}
	return states, true
}

// cgroupRoot is where systemd mounts cgroup v2.
const cgroupRoot = "/sys/fs/cgroup"

// freezerOf is the file that freezes the cgroup of a virtual machine: the scope
// that systemd-machined or libvirt made for it, and nothing wider.
func freezerOf(cgroups string, pid int32) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	path := filepath.Join(cgroups, scopeOf(string(b)), "cgroup.freeze")
	if scopeOf(string(b)) == "" || unix.Access(path, unix.W_OK) != nil {
		return ""
	}
	return path
}

// scopeOf finds machine-qemu*.scope in the text of /proc/PID/cgroup; only version 2,
// which has the line "0::PATH", freezes that way.
func scopeOf(text string) string {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok {
			continue
		}
		parts := strings.Split(path, "/")
		for i, part := range parts {
			if strings.HasPrefix(part, "machine-qemu") && strings.HasSuffix(part, ".scope") {
				return filepath.Join(parts[:i+1]...)
			}
		}
	}
	return ""
}
