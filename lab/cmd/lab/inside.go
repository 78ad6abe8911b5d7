package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmlockd/vmlockd/lab/internal/agent"
	"github.com/vmlockd/vmlockd/lab/internal/supervisor"
)

// inside runs what the program does within a lab, where the lab itself starts it under several names and with
// arguments that no person types; those are kept out of --help and of the flag parser.
func inside(args []string) (code int, done bool) {
	var err error
	switch name := filepath.Base(args[0]); {
	case name == "fence_lab":
		err = agent.Fence(os.Stdin)
	case strings.HasPrefix(name, "qemu-system-"):
		err = agent.Emulator(name, args[1:])
	case len(args) > 2 && args[1] == "init" && os.Getpid() == 1:
		agent.Init(args[2])
	case len(args) == 2 && args[1] == "agent" && os.Getppid() == 1:
		err = agent.Serve(os.Stdin)
	case len(args) == 2 && args[1] == "hold" && os.Getpid() == 1:
		err = supervisor.Hold()
	case len(args) > 2 && args[1] == "supervise" && os.Getpid() == 1:
		err = supervise(args[2:])
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %s: %v\n", filepath.Base(args[0]), err)
		return 1, true
	}
	return 0, true
}

// supervise is started by lab.Start: --dir DIR [--control].
func supervise(args []string) error {
	var dir string
	var control bool
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "--control":
			control = true
		case "--dir":
			i++
			if i == len(args) {
				return fmt.Errorf("--dir needs a value")
			}
			dir = args[i]
		default:
			return fmt.Errorf("unknown argument %q", args[i])
		}
	}
	return supervisor.Run(dir, control)
}
