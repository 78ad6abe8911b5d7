package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// stuck is a virtual machine whose host's storage hangs: it has a lock, a thread
// of it waits in the kernel in a way that not even SIGKILL ends, and the
// connection to the lock daemon is closed. The file system of file must be frozen
// (fsfreeze).
func stuck(name, file string) error {
	ctx := context.Background()
	c, err := dial(ctx, os.Getpid(), vm)
	if err != nil {
		return err
	}
	if err := c.Acquire(ctx, locking.Ref{Name: name}, 0); err != nil {
		return err
	}
	fmt.Println("held")
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(file, []byte("x"), 0o600) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !hangs() {
		select {
		case err := <-wrote:
			return fmt.Errorf("%s is not frozen: %w", file, errors.Join(err, errors.New("a write to it has ended")))
		case <-tick.C:
		}
	}
	fmt.Println("stuck")
	c.Close()
	select {}
}

// hangs says whether a thread of this process is in uninterruptible sleep
// (proc_pid_stat(5), state D).
func hangs() bool {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return false
	}
	for _, task := range tasks {
		stat, err := os.ReadFile("/proc/self/task/" + task.Name() + "/stat")
		if _, after, ok := strings.Cut(string(stat), ") "); err == nil && ok && strings.HasPrefix(after, "D") {
			return true
		}
	}
	return false
}

func create(ctx context.Context, lockspace, name string) error {
	c, err := dial(ctx, os.Getpid(), vm)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.CreateLockspace(ctx, lockspace); err != nil {
		return err
	}
	fmt.Println("asked")
	start := time.Now()
	err = c.CreateResource(ctx, locking.Ref{Lockspace: lockspace, Name: name})
	fmt.Println(line(start, err, "created"))
	return nil
}
