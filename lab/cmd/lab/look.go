package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/lab"
)

func statusCmd(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how the nodes are",
		Long: `Say how the nodes are: their power, their network, and what their services do. CLUSTER is what the node's own
dlm_controld says: the numbers of the nodes it counts in, and whether they have quorum.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Attach(cmd.Context(), g.name)
			if err != nil {
				return err
			}
			nodes, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"name": l.Name(), "logs": l.LogDir(), "nodes": nodes})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NODE\tADDRESS\tPOWER\tNETWORK\tCLUSTER\tSERVICES")
			for _, st := range nodes {
				n := l.Node(st.ID)
				network := "ok"
				if st.Cut {
					network = "cut"
				}
				cluster, services := "-", "-"
				if st.State == lab.NodeRunning {
					cluster, services = askNode(cmd, n)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name(), n.Addr(), st.State, network, cluster, services)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, without CLUSTER and SERVICES")
	return cmd
}

// askNode asks one node for what only it knows.
func askNode(cmd *cobra.Command, n *lab.Node) (cluster, services string) {
	cluster = "not ready"
	if m, err := n.Membership(cmd.Context()); err == nil {
		if cluster = strings.Trim(fmt.Sprint(m.Members), "[]"); cluster == "" {
			cluster = "alone"
		}
		if !m.Quorate {
			cluster += ", no quorum"
		}
	}
	procs, err := n.Processes(cmd.Context())
	if err != nil {
		return cluster, err.Error()
	}
	var list []string
	for _, p := range procs {
		s := p.Name + " " + p.State
		if p.State == lab.ProcessExited {
			s += fmt.Sprintf(" (status %d)", p.Status)
		}
		list = append(list, s)
	}
	return cluster, strings.Join(list, ", ")
}

func listCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name the labs that run on this machine",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.Running()
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return err
		},
	}
}

func logsCmd(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "logs [NODE [LOG]]",
		Short: "Print logs",
		Long: `Print all logs, those of one node, or one of them, such as
  lab logs 2 corosync
A node has "console" (its kernel), one per service, and one per program that a test started in the background.`,
		Args: args(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Attach(cmd.Context(), g.name)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(args) == 0 {
				l.Dump(out)
				return nil
			}
			n, err := node(cmd, l, args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 {
				n.Dump(out)
				return nil
			}
			b, err := n.Log(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			_, err = out.Write(b)
			return err
		},
	}
}

func execCmd(g *globals) *cobra.Command {
	var input bool
	cmd := &cobra.Command{
		Use:   "exec [-i] NODE [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in a node",
		Long: `Run a command in a node, as root, and end with its status. Its output comes when it has ended. A pipeline needs a shell:
  lab exec 2 sh -c 'dlm_tool ls | grep name'`,
		Args: args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			l, err := lab.Attach(ctx, g.name)
			if err != nil {
				return err
			}
			n, err := node(cmd, l, args[0])
			if err != nil {
				return err
			}
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return usage(cmd, errors.New("no command"))
			}
			c := lab.Cmd{Args: command, MaxOutput: 64 << 20}
			if input {
				if c.Stdin, err = io.ReadAll(os.Stdin); err != nil {
					return err
				}
			}
			res, err := n.Run(ctx, c)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), res.Stdout)
			fmt.Fprint(cmd.ErrOrStderr(), res.Stderr)
			if !res.OK() {
				return &statusError{status: res.Status}
			}
			return nil
		},
	}
	// What follows the node belongs to the command, with or without "--".
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&input, "stdin", "i", false, "pass standard input on (all of it, before the command starts)")
	return cmd
}
