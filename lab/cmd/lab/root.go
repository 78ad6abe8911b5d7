package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab"
)

const about = `lab boots a small cluster of Linux machines on this one, to play with and to test with.

Each node is a real Linux kernel with the distributed lock manager (DLM), run as a process (User-Mode
Linux), with the real corosync and dlm_controld in it and, if you like, vmlockd and libvirt with QEMU. The
nodes see the programs that are installed here, write only into their own memory, and reach nothing outside
the lab. It takes root, and on Debian the packages
  user-mode-linux corosync dlm-controld iproute2
and for --libvirt also
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86

A first round:
  lab up                        three nodes; ready after about 15 seconds
  lab exec 1 dlm_tool status    what node 1 knows about the cluster
  lab cut 3                     pull node 3's network cable; look again after 15 seconds
  lab power-cut 3
  lab boot 3                    it is still cut off; lab heal 3 brings it back
  lab down                      nothing is left of it but the logs

In every node, /srv/shared is one directory of all nodes and /srv/private is the node's own; it survives a
power cut. Several labs can run side by side, with --name.

Exit status: 0, or 1 for an error, or 2 for a wrong command line; "lab exec" ends with the command's own.`

// flags that all commands have.
type globals struct {
	name string
}

func root() *cobra.Command {
	g := &globals{}
	cmd := &cobra.Command{
		Use:           "lab",
		Short:         "Boot a small cluster of Linux machines with the DLM on this machine",
		Long:          about,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	cmd.PersistentFlags().StringVar(&g.name, "name", "default", "which lab, if several run on this machine")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(upCmd(g), downCmd(g), statusCmd(g), listCmd(), execCmd(g), logsCmd(g))
	for _, a := range []struct {
		use, short, long string
		do               func(*lab.Node, context.Context) error
	}{
		{"cut", "Take a node out of the cluster network", "The node loses the network of corosync, DLM and libvirt, as if its cable were pulled. Commands still\nreach it, and it keeps the shared directory.", (*lab.Node).Cut},
		{"heal", "Put a node back into the cluster network", "A node that has used the DLM and was cut off for longer than about 12 seconds does not go back to work by\nthis: its corosync and dlm_controld end. Use power-cut and boot.", (*lab.Node).Heal},
		{"freeze", "Stop a node between two instructions", "Nothing in the node runs until it is thawed; commands wait.", (*lab.Node).Freeze},
		{"thaw", "Let a frozen node go on", "", (*lab.Node).Thaw},
		{"power-cut", "Switch a node off at once", "What the node had not yet written to /srv/shared, /srv/private or /var/lib/vmlockd is lost.", (*lab.Node).PowerCut},
		{"boot", "Switch a node on", "Returns when the node runs commands. It joins the cluster some seconds later.", (*lab.Node).Boot},
	} {
		cmd.AddCommand(actionCmd(g, a.use, a.short, a.long, a.do))
	}
	return cmd
}

func actionCmd(g *globals, use, short, long string, do func(*lab.Node, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use:   use + " NODE...",
		Short: short,
		Long:  strings.TrimSpace(short + ".\n\n" + long),
		Args:  args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			l, err := lab.Attach(ctx, g.name)
			if err != nil {
				return err
			}
			for _, arg := range args {
				n, err := node(cmd, l, arg)
				if err != nil {
					return err
				}
				if err := do(n, ctx); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// node finds the node that an argument names by its number or host name.
func node(cmd *cobra.Command, l *lab.Lab, arg string) (*lab.Node, error) {
	id, err := strconv.Atoi(strings.TrimPrefix(arg, "node"))
	if err != nil || id < 1 || id > len(l.Nodes()) {
		return nil, usage(cmd, fmt.Errorf("no node %q: this lab has nodes 1 to %d", arg, len(l.Nodes())))
	}
	return l.Node(id), nil
}

// interruptible is a context that Ctrl-C ends.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
}

// statusError ends the program with a status, without a message of its own if err is nil.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// usage makes err an error of the command line.
func usage(cmd *cobra.Command, err error) error {
	return &statusError{2, fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
}

// args makes cobra's complaints about arguments errors of the command line.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(cmd, err)
		}
		return nil
	}
}

// exitStatus is what the program ends with: see the end of its help.
func exitStatus(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	return 1
}
