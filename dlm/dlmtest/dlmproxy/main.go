// Dlmproxy gives the DLM of the machine it runs on to whoever connects to a unix socket; see package remote. It is for labs.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest/remote"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dlmproxy SOCKET")
		os.Exit(2)
	}
	l, err := net.Listen("unix", os.Args[1])
	if err == nil {
		err = remote.Serve(l, dlm.Host())
	}
	fmt.Fprintln(os.Stderr, "dlmproxy:", err)
	os.Exit(1)
}
