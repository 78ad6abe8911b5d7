package supervisor

import (
	"fmt"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Hold is process 1 of a node's PID namespace: it does nothing, and its end ends all others. User-Mode Linux itself
// cannot be process 1: when its kernel panics it aborts, and the kernel protects a process 1 from its own signals.
func Hold() error {
	signal.Ignore(unix.SIGCHLD) // orphans that it inherits are reaped without it
	for {
		_ = unix.Pause() // it returns, with EINTR, after a signal
	}
}

// startHeld starts cmd in a new PID namespace and returns the holder of that.
func startHeld(cmd *exec.Cmd) (*exec.Cmd, error) {
	hold := exec.Command("/proc/self/exe", "hold")
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true}
	if err := hold.Start(); err != nil {
		return nil, err
	}
	err := startIn(cmd, fmt.Sprintf("/proc/%d/ns/pid", hold.Process.Pid))
	if err != nil {
		_ = hold.Process.Kill()
		_ = hold.Wait()
		return nil, err
	}
	return hold, nil
}

// startIn starts cmd in a PID namespace. Which one a child gets is a property of the thread that forks.
func startIn(cmd *exec.Cmd, namespace string) error {
	ns, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	own, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	runtime.LockOSThread()
	if err := unix.Setns(ns, unix.CLONE_NEWPID); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the PID namespace: %w", err)
	}
	err = cmd.Start()
	if back := unix.Setns(own, unix.CLONE_NEWPID); back != nil {
		// The thread stays locked: Go ends it with the goroutine, and no other process comes from it.
		panic(fmt.Sprintf("leave the PID namespace: %v", back))
	}
	runtime.UnlockOSThread()
	return err
}
