// Draincheck has the kernel of the machine it runs on drained of a request that it never had; it is for labs.
//
// With "hold" it has an exclusive lock until it is told to end (SIGTERM). With "drain", on another node, it leaves
// what a process leaves that was killed between the count of a request about the same resource and its write: a number
// that no result makes up for.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: draincheck hold|drain LOCKSPACE RESOURCE")
		os.Exit(2)
	}
	// dlm.DrainFile waits for a minute for what has no answer.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	do := map[string]func(context.Context, string, string) error{"hold": hold, "drain": drain}[os.Args[1]]
	if do == nil {
		do = func(context.Context, string, string) error { return errors.New("hold or drain, nothing else") }
	}
	if err := do(ctx, os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "draincheck:", err)
		os.Exit(1)
	}
}

func hold(ctx context.Context, lockspace, resource string) error {
	ls, err := dlm.Create(ctx, dlm.Host(), lockspace, dlm.Options{})
	if err != nil {
		return err
	}
	if _, err := ls.Lock(ctx, resource, dlm.EX, dlm.LockOptions{NoQueue: true}); err != nil {
		return err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	fmt.Println("held")
	select {
	case <-told:
	case <-ctx.Done():
	}
	return ls.Close(context.WithoutCancel(ctx))
}

func drain(ctx context.Context, lockspace, resource string) error {
	mem := make([]byte, dlm.UnderWaySize)
	u, err := dlm.NewUnderWay(mem)
	if err != nil {
		return err
	}
	// What another process would find, had this one been killed at the first write to the lockspace.
	var found []byte
	k := &kernel{Kernel: dlm.Host(), write: func() {
		if found == nil {
			found = bytes.Clone(mem)
		}
	}}
	ls, err := dlm.Create(ctx, k, lockspace, dlm.Options{UnderWay: u})
	if err != nil {
		return err
	}
	file, err := ls.Duplicate()
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := ls.Lock(ctx, resource, dlm.EX, dlm.LockOptions{NoQueue: true}); !errors.Is(err, dlm.ErrBusy) {
		return fmt.Errorf("it is not held elsewhere: %v", err)
	}
	if err := ls.Close(ctx); err != nil {
		return err
	}
	left, err := dlm.NewUnderWay(found)
	if err != nil {
		return err
	}
	if n, _ := left.Count(); n != 1 {
		return fmt.Errorf("%d requests count", n)
	}
	state, err := dlm.OpenState(dlm.Host(), lockspace)
	if err != nil {
		return err
	}
	defer state.Close()
	begin := time.Now()
	if err := dlm.DrainFile(ctx, file, left, state.Running); err != nil {
		return err
	}
	took := time.Since(begin)
	fmt.Println("drained in", took.Round(time.Millisecond))
	if took > 30*time.Second {
		return errors.New("it waited for what the kernel does not have")
	}
	return nil
}

// kernel calls write before each write to a lockspace.
type kernel struct {
	dlm.Kernel
	write func()
}

func (k *kernel) Lockspace(lockspace string, minor uint32) (dlm.Device, error) {
	d, err := k.Kernel.Lockspace(lockspace, minor)
	if err != nil {
		return nil, err
	}
	return &device{Device: d, write: k.write}, nil
}

type device struct {
	dlm.Device
	write func()
}

func (d *device) Write(request []byte) (int, error) {
	d.write()
	return d.Device.Write(request)
}

// Duplicate is what the host's device has.
func (d *device) Duplicate() (*os.File, error) {
	return d.Device.(interface{ Duplicate() (*os.File, error) }).Duplicate()
}
