package corosync_test

import (
	"context"
	"fmt"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest"
)

// Two hosts talk in a group; the power of one fails.
func Example() {
	// In a program the System is corosync.Host(). This is a cluster of two nodes in memory.
	cluster := corosynctest.NewCluster(2)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	one, err := corosync.Join(ctx, cluster.Node(1).NewProcess(), "disks", corosync.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	two, err := corosync.Join(ctx, cluster.Node(2).NewProcess(), "disks", corosync.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := two.Send(ctx, []byte("hello")); err != nil {
		fmt.Println(err)
	}
	lost := false
	for !lost {
		switch ev := (<-one.Events()).(type) {
		case corosync.Up:
			fmt.Println("host 1 is", ev.Self)
		case corosync.Membership:
			fmt.Println("members:", ev.Members)
			for _, c := range ev.Left {
				fmt.Println("left:", c.Member, "because of", c.Reason)
				lost = true
			}
		case corosync.Message:
			fmt.Printf("%v says %q\n", ev.From, ev.Data)
			cluster.Node(2).StopCorosync()
		}
	}
	fmt.Println(two.Close(ctx), one.Close(ctx))

	// Output:
	// host 1 is node 1 pid 101
	// members: [node 1 pid 101]
	// members: [node 1 pid 101 node 2 pid 201]
	// node 2 pid 201 says "hello"
	// members: [node 1 pid 101]
	// left: node 2 pid 201 because of node down
	// <nil> <nil>
}
