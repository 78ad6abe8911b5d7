// Clusterflock runs a command while it has a lock that all hosts of a corosync cluster agree on: flock(1) for a cluster.
// It is the example of package dlm.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: clusterflock LOCKSPACE RESOURCE COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "clusterflock:", err)
		os.Exit(1)
	}
}

func run(lockspace, resource string, command []string) (err error) {
	// What the kernel is asked may wait for quorum, or for fencing; every call returns when ctx ends.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ls, err := dlm.Create(ctx, dlm.Host(), lockspace, dlm.Options{})
	if err != nil {
		return err
	}
	// The lock is not persistent: it ends here, or when this process is killed.
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = errors.Join(err, ls.Close(ctx))
	}()
	_, err = ls.Lock(ctx, resource, dlm.EX, dlm.LockOptions{NoQueue: true})
	if errors.Is(err, dlm.ErrBusy) {
		return fmt.Errorf("%s is locked by somebody in the cluster", resource)
	}
	if err != nil {
		return err
	}
	// If this process is killed the lock ends, and the command a moment later: it gets the signal when the thread ends
	// that has started it (prctl(2)).
	runtime.LockOSThread()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}
