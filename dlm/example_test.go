package dlm_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
)

// Two hosts want the same disk; one of them dies with it and comes back.
func Example() {
	// In a program the kernel is dlm.Host(). This is a cluster of two nodes in memory.
	cluster := dlmtest.NewCluster(2)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	daemon := cluster.Node(1).NewProcess()
	one, err := dlm.Create(ctx, daemon, "disks", dlm.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	two, err := dlm.Create(ctx, cluster.Node(2), "disks", dlm.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	opts := dlm.LockOptions{NoQueue: true, Persistent: true}
	_, err = one.Lock(ctx, "disk-1", dlm.EX, opts)
	fmt.Println("host 1:", err)
	_, err = two.Lock(ctx, "disk-1", dlm.EX, opts)
	fmt.Println("host 2:", err, errors.Is(err, dlm.ErrBusy))

	daemon.Kill()
	_ = one.Close(ctx) // in the dead daemon nobody does this; here it tidies up
	_, err = two.Lock(ctx, "disk-1", dlm.EX, opts)
	fmt.Println("host 2, while host 1's daemon is dead:", err)

	one, err = dlm.Open(ctx, cluster.Node(1), "disks", dlm.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := one.Adopt(ctx, "disk-1", dlm.EX, opts)
	fmt.Println("host 1's new daemon:", l.Mode(), err)
	fmt.Println("released:", l.Unlock(ctx))
	l, err = two.Lock(ctx, "disk-1", dlm.EX, opts)
	fmt.Println("host 2:", l.Mode(), err)

	// Host 2 stops, and leaves its lock for its next daemon; host 1 has none and leaves the lockspace.
	fmt.Println(two.Close(ctx), one.Leave(ctx, false))

	// Output:
	// host 1: <nil>
	// host 2: dlm: lock lockspace "disks" resource "disk-1": held in a conflicting mode true
	// host 2, while host 1's daemon is dead: dlm: lock lockspace "disks" resource "disk-1": held in a conflicting mode
	// host 1's new daemon: EX <nil>
	// released: <nil>
	// host 2: EX <nil>
	// <nil> <nil>
}
