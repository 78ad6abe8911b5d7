// Corosyncproxy gives the corosync of the machine it runs on to whoever connects to a unix socket; see package remote. It is for labs.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/corosync/corosynctest/remote"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: corosyncproxy SOCKET")
		os.Exit(2)
	}
	l, err := net.Listen("unix", os.Args[1])
	if err == nil {
		err = remote.Serve(l, corosync.Host())
	}
	fmt.Fprintln(os.Stderr, "corosyncproxy:", err)
	os.Exit(1)
}
