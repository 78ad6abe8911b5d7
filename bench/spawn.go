package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// spawner is the one thread that starts processes: they end with it, which is
// with this program however it ends (prctl(2), PR_SET_PDEATHSIG).
var spawner = make(chan func())

func init() {
	go func() {
		runtime.LockOSThread()
		for f := range spawner {
			f()
		}
	}()
}

// spawn starts cmd. ended is closed when it has ended and was waited for.
func spawn(cmd *exec.Cmd) (ended chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	spawner <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	ended = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return ended, nil
}

// prepare makes room for the descriptors of 10,000 locks, also in children (Go
// gives them the limit that it found, unless the program has set one), and makes
// this program the parent of holders whose daemon has ended, so that it finds them.
func prepare() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	const enough = 1 << 17
	if more := (unix.Rlimit{Cur: enough, Max: enough}); l.Max >= enough || unix.Setrlimit(unix.RLIMIT_NOFILE, &more) != nil {
		l.Cur = l.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// vm is an owner of locks: a process that does nothing.
type vm struct {
	cmd   *exec.Cmd
	ended chan struct{}
	owner locking.Owner
	stdin io.Writer // nil but of ownerWithConnection
}

func newVM(n int) (*vm, error) {
	v := &vm{cmd: exec.Command("sleep", "3600")}
	var err error
	if v.ended, err = spawn(v.cmd); err != nil {
		return nil, err
	}
	v.owner = ownerOf(v.cmd.Process.Pid, n)
	return v, nil
}

func ownerOf(pid, n int) locking.Owner {
	return locking.Owner{PID: int32(pid), ID: 1, Name: fmt.Sprintf("vm%d", n), UUID: [16]byte{0xbe, byte(n >> 8), byte(n)}}
}

func newVMs(count int) ([]*vm, error) {
	list := make([]*vm, count)
	for i := range list {
		var err error
		if list[i], err = newVM(i); err != nil {
			endAll(list)
			return nil, err
		}
	}
	return list, nil
}

func (v *vm) end() {
	_ = v.cmd.Process.Kill()
	<-v.ended
}

func endAll(list []*vm) {
	for _, v := range list {
		if v != nil {
			v.end()
		}
	}
}

// childCalled is the child of a process that has this name, or 0.
func childCalled(parent int, name string) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat := read("/proc/" + e.Name() + "/stat")
		end := strings.LastIndexByte(stat, ')')
		if end < 0 || !strings.Contains(stat[:end], "("+name) {
			continue
		}
		if f := strings.Fields(stat[end+1:]); len(f) > 1 && f[1] == strconv.Itoa(parent) {
			return pid
		}
	}
	return 0
}
