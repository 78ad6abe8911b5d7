// Command asker asks the lock daemon of its host for a lock again and again, and
// prints a line for each answer, so that times are measured where nothing but
// the daemon takes time:
//
//	asker hold NAME [VM]      take the lock, again until the cluster can grant it, say "has the lock", give it back on SIGTERM and say how that went
//	asker every INTERVAL PREFIX   ask for PREFIX-0, PREFIX-1, ... and give back what is granted
//	asker free PREFIX COUNT   take PREFIX-0 to PREFIX-(COUNT-1) and give them back, each as soon as it can be had, and say "all free"
//	asker watch LOCKSPACE     print when the kernel stops the lockspace and when it runs
//	asker stuck NAME FILE     own the lock, hang in the kernel over FILE, and then close the connection
//	asker create LOCKSPACE NAME   ask for a resource to be made
//
// A line is: unix time of the question in milliseconds, milliseconds it took,
// and "granted" or the refusal. Questions are asked each on a goroutine and a
// connection of its own, so that one that takes long delays no other. The owner
// of the locks is a process that does nothing else, and a virtual machine called
// "asker" unless VM is another name.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

const socket = "/run/libvirt/virtlockd-sock"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("asker:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch {
	case len(args) == 2 && args[0] == "watch":
		return watch(ctx, args[1])
	case len(args) == 3 && args[0] == "stuck":
		stop() // SIGTERM is to end it, as it ends QEMU
		return stuck(args[1], args[2])
	case len(args) == 3 && args[0] == "create":
		return create(ctx, args[1], args[2])
	}
	runtime.LockOSThread() // the owner ends with the thread that starts it
	owner := exec.Command("sleep", "infinity")
	owner.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := owner.Start(); err != nil {
		return err
	}
	defer owner.Wait()
	defer owner.Process.Kill()
	pid := owner.Process.Pid
	switch {
	case len(args) == 2 && args[0] == "hold":
		return hold(ctx, pid, args[1], vm)
	case len(args) == 3 && args[0] == "hold":
		return hold(ctx, pid, args[1], args[2])
	case len(args) == 3 && args[0] == "every":
		interval, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		every(ctx, pid, interval, args[2])
		return nil
	case len(args) == 3 && args[0] == "free":
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return free(ctx, pid, args[1], count)
	}
	return fmt.Errorf("usage: see the comment of this program")
}

// pause is how long this program must have had no processor for it to be said.
const pause = 25 * time.Millisecond

// watch prints "TIME 0 stopped" and "TIME 0 running", and "TIME DURATION paused"
// when the whole node, or at least this program, stood still from then on.
func watch(ctx context.Context, lockspace string) error {
	state, err := dlm.OpenState(dlm.Host(), lockspace)
	if err != nil {
		return err
	}
	defer state.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	said, last := "", time.Now()
	for ctx.Err() == nil {
		if time.Since(last) > pause {
			fmt.Println(line(last, nil, "paused"))
		}
		last = time.Now()
		running, err := state.Running()
		now := "running"
		switch {
		case err != nil:
			return err
		case !running:
			now = "stopped"
		}
		if now != said {
			fmt.Println(line(time.Now(), nil, now))
			said = now
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// vm is the owner's name, unless there is another one.
const vm = "asker"

// dial connects and registers the owner. A connection of the owner itself would
// end it when it closes.
func dial(ctx context.Context, owner int, name string) (*lockprogram.Client, error) {
	c, err := lockprogram.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	if err := c.Register(ctx, locking.Owner{PID: int32(owner), ID: 1, Name: name, UUID: [16]byte{0xa5}}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func hold(ctx context.Context, owner int, name, vm string) error {
	c, err := dial(ctx, owner, vm)
	if err != nil {
		return err
	}
	defer c.Close()
	ref := locking.Ref{Name: name}
	if err := take(ctx, c, ref, isHeld); err != nil {
		return err
	}
	fmt.Println("has the lock")
	<-ctx.Done()
	start := time.Now()
	err = c.Release(context.Background(), ref)
	fmt.Println(line(start, err, "released"))
	return nil
}

func every(ctx context.Context, owner int, interval time.Duration, prefix string) {
	var asking sync.WaitGroup
	defer asking.Wait()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var out sync.Mutex
	for i := 0; ; i++ {
		asking.Go(func() {
			start := time.Now()
			err := once(owner, fmt.Sprintf("%s-%d", prefix, i))
			text := line(start, err, "granted")
			out.Lock()
			defer out.Unlock()
			fmt.Println(text)
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// once takes a lock, and gives it back without waiting for that.
func once(owner int, name string) error {
	ctx := context.Background()
	c, err := dial(ctx, owner, vm)
	if err != nil {
		return err
	}
	ref := locking.Ref{Name: name}
	if err := c.Acquire(ctx, ref, 0); err != nil {
		c.Close()
		return err
	}
	go func() {
		defer c.Close()
		_ = c.Release(ctx, ref)
	}()
	return nil
}

func line(start time.Time, err error, ok string) string {
	if err != nil {
		ok = err.Error()
	}
	return fmt.Sprintf("%d %d %s", start.UnixMilli(), time.Since(start).Milliseconds(), ok)
}
