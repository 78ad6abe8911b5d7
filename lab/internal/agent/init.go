// Package agent is what runs inside a node: first as process 1, which turns a bare kernel into a
// small machine, then as its child, which runs commands and keeps the node's services.
//
// Both are the lab's own static binary. Starting a program costs 45 ms in User-Mode Linux, so a
// shell script that does the same would double the time of a boot.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// modulesDir is where Debian's user-mode-linux package puts its modules.
const modulesDir = "/usr/lib/uml/modules"

// scratch is where the new root is put together; any directory that exists on every host will do.
const scratch = "/mnt"

// Init is process 1 of a node. It does not return: it ends with the node, and the node with it. configFile is a path
// on the host, readable because the host's root is still the node's root.
func Init(configFile string) {
	err := start(configFile)
	fmt.Fprintf(os.Stderr, "lab: the node cannot go on: %v\n", err)
	// The end of process 1 would be a kernel panic, whose trace would bury the message.
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func start(configFile string) error {
	var cfg wire.NodeConfig
	b, err := os.ReadFile(configFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return fmt.Errorf("%s: %w", configFile, err)
	}
	for _, step := range []func(*wire.NodeConfig) error{
		newRoot, mountAll, loadModules, network, writeFiles,
	} {
		if err := step(&cfg); err != nil {
			return err
		}
	}
	return reap(b, cfg.Systemd)
}

// newRoot puts an overlay over the host's root: reads go to the host, writes stay in the node's memory.
func newRoot(*wire.NodeConfig) error {
	if err := insertModule("overlay"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	root := scratch + "/root"
	for _, d := range []string{"/upper", "/work", "/root"} {
		if err := os.Mkdir(scratch+d, 0o755); err != nil {
			return err
		}
	}
	opts := "lowerdir=/,upperdir=" + scratch + "/upper,workdir=" + scratch + "/work"
	if err := unix.Mount("overlay", root, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	old := root + "/.host"
	if err := os.MkdirAll(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return os.Chdir("/")
}

// mountAll mounts the kernel's file systems and what the configuration asks for.
func mountAll(cfg *wire.NodeConfig) error {
	type mount struct {
		typ, path, data string
		flags           uintptr
	}
	mounts := []mount{
		{"proc", "/proc", "", 0},
		{"sysfs", "/sys", "", 0},
		{"devtmpfs", "/dev", "", 0},
		{"devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666", 0},
		{"tmpfs", "/dev/shm", "mode=1777", 0},
		{"tmpfs", "/run", "mode=755", 0},
		{"tmpfs", "/tmp", "mode=1777", 0},
	}
	for _, m := range cfg.Mounts {
		switch {
		case m.Host == "":
			mounts = append(mounts, mount{"tmpfs", m.Path, "mode=755", 0})
		case m.Sync:
			mounts = append(mounts, mount{"hostfs", m.Path, m.Host, unix.MS_SYNCHRONOUS})
		default:
			mounts = append(mounts, mount{"hostfs", m.Path, m.Host, 0})
		}
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("none", m.path, m.typ, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.typ, m.path, err)
		}
	}
	// libdlm opens /dev/misc/dlm-control and /dev/misc/dlm_NAME, where udev would put links; here the
	// whole directory is one.
	links := map[string]string{
		"/dev/misc": ".", "/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	}
	for name, target := range links {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// Nothing below needs the host's own tree any more, and a program that walks / should not meet it.
	return unix.Unmount("/.host", unix.MNT_DETACH)
}

// loadModules loads what the configuration asks for and makes modprobe work for the rest.
func loadModules(cfg *wire.NodeConfig) error {
	rel := release()
	if err := os.MkdirAll("/usr/lib/modules", 0o755); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join(modulesDir, rel), "/usr/lib/modules/"+rel); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, m := range cfg.Modules {
		if err := insertModule(m); err != nil {
			return err
		}
		// dlm_controld configures the kernel's DLM through configfs; its mount point exists once the module is loaded.
		if m == "configfs" {
			if err := unix.Mount("none", "/sys/kernel/config", "configfs", 0, ""); err != nil {
				return fmt.Errorf("mount configfs: %w", err)
			}
		}
	}
	return nil
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// insertModule loads a module, with the parameters that follow its name, and what it depends on, by modules.dep. A name
// that modules.dep does not have is an error: it would be discovered much later otherwise.
func insertModule(module string) error {
	name, parameters, _ := strings.Cut(module, " ")
	dir := filepath.Join(modulesDir, release())
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("%w (is the package user-mode-linux complete?)", err)
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSuffix(filepath.Base(file), ".ko") != name {
			continue
		}
		// modules.dep lists direct needs first, so the deepest comes last.
		files := append([]string{file}, strings.Fields(needs)...)
		for i := len(files) - 1; i >= 0; i-- {
			f, err := os.Open(filepath.Join(dir, files[i]))
			if err != nil {
				return err
			}
			with := ""
			if i == 0 {
				with = parameters
			}
			err = unix.FinitModule(int(f.Fd()), with, 0)
			f.Close()
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("load module %s: %w", files[i], err)
			}
		}
		return nil
	}
	return fmt.Errorf("no module %q in %s", name, dir)
}

// writeFiles writes the configuration files, links and the host name.
func writeFiles(cfg *wire.NodeConfig) error {
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return err
	}
	for _, f := range cfg.Files {
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
			return err
		}
		// Remove first: the host's file may be a link to somewhere else.
		os.Remove(f.Path)
		if err := os.WriteFile(f.Path, f.Data, os.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	for name, target := range cfg.Links {
		os.Remove(name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	return nil
}

// reap starts the agent and from then on only collects orphans. The agent is a process of its own
// because waiting for any child, which process 1 must do, would take the exit statuses away from os/exec. With systemd
// that collects the orphans, and has the agent in its init.scope, where it ends nobody.
func reap(config []byte, systemd bool) error {
	cmd := exec.Command("/proc/self/exe", "agent")
	cmd.Stdin = strings.NewReader(string(config))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = environment(nil)
	if systemd {
		// What os/exec copies to a pipe would end with this program.
		f, err := memory(config)
		if err != nil {
			return err
		}
		defer f.Close()
		cmd.Stdin = f
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if systemd {
		const program = "/lib/systemd/systemd"
		return fmt.Errorf("%s: %w", program, unix.Exec(program, []string{program}, environment(nil)))
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == cmd.Process.Pid:
			return fmt.Errorf("the agent ended: %v", ws)
		}
	}
}

// memory is a file in memory with that content, to be read from its beginning.
func memory(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "config")
	_, err = f.Write(content)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// environment is what programs in a node start with.
func environment(extra []string) []string {
	return append([]string{
		"PATH=" + wire.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "TERM=linux", "LC_ALL=C.UTF-8",
	}, extra...)
}
