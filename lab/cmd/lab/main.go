// Command lab boots a small cluster of Linux machines with the DLM on this machine, to play with and to test with.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func main() {
	if code, done := inside(os.Args); done {
		os.Exit(code)
	}
	err := root().ExecuteContext(context.Background())
	if err == nil {
		return
	}
	// A command in a node that failed has said so itself.
	if e, ok := errors.AsType[*statusError](err); !ok || e.err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
	os.Exit(exitStatus(err))
}
