// Command vmlockctl shows and changes what vmlockd does.
package main

import (
	"os"

	"github.com/vmlockd/vmlockd/internal/cli"
)

// version is set by the build.
var version = "development"

func main() {
	os.Exit(cli.Main(os.Args[1:], version, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
