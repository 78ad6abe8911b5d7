package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// System is the host. Its paths are absolute. Errors are those of package os, so
// that errors.Is knows fs.ErrNotExist and fs.ErrPermission.
type System interface {
	// ReadFile reads a file of at most most bytes; a longer one is an error.
	ReadFile(path string, most int) ([]byte, error)
	Readlink(path string) (string, error)
	// Stat follows links.
	Stat(path string) (FileInfo, error)
	// List returns the names in a directory, in order; more than most are an error.
	List(dir string, most int) ([]string, error)
	Hostname() (string, error)
	// Connect connects to a unix socket and closes the connection.
	Connect(ctx context.Context, path string) error
}

// FileInfo is what is asked of a file.
type FileInfo struct {
	Mode  fs.FileMode
	UID   uint32
	Tmpfs bool // it is in memory and ends with the boot
}

// errPermission is in errors of a System that may not look somewhere.
var errPermission = fs.ErrPermission

// Bounds of what is read.
const (
	maxConf      = 1 << 20 // bytes of a configuration file
	maxDomain    = 4 << 20 // bytes of a domain's XML
	maxProc      = 8 << 20 // bytes of a file in /proc
	maxNames     = 1 << 16 // names in a directory
	maxOpenFiles = 1 << 20 // descriptors of a process
)

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func exists(s System, path string) bool {
	_, err := s.Stat(path)
	return err == nil
}

// list is List of a directory that may be absent.
func list(s System, dir string) ([]string, error) {
	names, err := s.List(dir, maxNames)
	if absent(err) {
		return nil, nil
	}
	return names, err
}

// process is a running program.
type process struct {
	pid  int
	comm string // the first 15 bytes of the program's name
}

func (p process) dir() string { return fmt.Sprintf("/proc/%d", p.pid) }

func (p process) String() string { return fmt.Sprintf("%s (process %d)", p.comm, p.pid) }

func processes(s System) ([]process, error) {
	names, err := s.List("/proc", 1<<22) // pid_max
	if err != nil {
		return nil, err
	}
	var list []process
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil || pid <= 0 {
			continue
		}
		text, err := s.ReadFile("/proc/"+n+"/comm", 64)
		if err != nil {
			continue // it has ended
		}
		list = append(list, process{pid, strings.TrimSuffix(string(text), "\n")})
	}
	return list, nil
}

// called are the processes of some names.
func (x *exam) called(names ...string) (list []process) {
	for _, p := range x.procs {
		for _, n := range names {
			if p.comm == n {
				list = append(list, p)
			}
		}
	}
	return list
}

// byPID knows also processes that were not listed.
func (x *exam) byPID(pid int) process {
	for _, p := range x.procs {
		if p.pid == pid {
			return p
		}
	}
	return process{pid, "a program"}
}

// args is a process's command line; empty if it cannot be read.
func (x *exam) args(p process) []string {
	text, err := x.System.ReadFile(p.dir()+"/cmdline", maxProc)
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// sysPath joins with slashes.
func sysPath(elem ...string) string { return path.Join(elem...) }
