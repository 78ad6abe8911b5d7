// Command lab boots a small cluster of Linux machines with the DLM on this machine, to play with and to test with.
package main

import (
	"fmt"
	"os"
)

func main() {
	if code, done := inside(os.Args); done {
		os.Exit(code)
	}
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(exitStatus(err))
	}
}
