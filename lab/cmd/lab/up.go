package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/lab"
)

func upCmd(g *globals) *cobra.Command {
	var cfg lab.Config
	var vmlockdConfig, fencing, fenceScript, transport string
	var virtlockd bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot a lab and leave it running",
		Long: `Boot a lab and leave it running until "lab down".

It returns when the nodes are one cluster. The logs are in the directory that it names; "lab logs" prints
them. With --libvirt each node also runs libvirtd; try
  lab exec 1 virsh list`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Name = g.name
			if virtlockd {
				if cfg.VMLockd != "" {
					return usage(cmd, errors.New("--virtlockd and --vmlockd exclude each other: both listen on one socket"))
				}
				cfg.LockDaemon = lab.Virtlockd
			}
			cfg.Fencing, cfg.Transport = lab.Fencing(fencing), lab.Transport(transport)
			if fenceScript != "" {
				b, err := os.ReadFile(fenceScript)
				if err != nil {
					return err
				}
				cfg.Fencing, cfg.FenceScript = lab.ScriptFencing, string(b)
			}
			if vmlockdConfig != "" {
				b, err := os.ReadFile(vmlockdConfig)
				if err != nil {
					return err
				}
				cfg.VMLockdConfig = func(int) string { return string(b) }
			}
			ctx, cancel := interruptible(cmd)
			defer cancel()
			ctx, cancelTimeout := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready within %v (--timeout)", timeout))
			defer cancelTimeout()
			return up(ctx, cmd, cfg)
		},
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Nodes, "nodes", 3, "how many, 1 to 5")
	f.IntVar(&cfg.MemoryMB, "memory", 0, "memory of each node in MiB (default 384, or 768 with --libvirt)")
	f.IntVar(&cfg.DeviceMB, "device", 0, "size in MiB of a block device that all nodes share, "+lab.Device+" (default none)")
	f.BoolVar(&cfg.Libvirt, "libvirt", false, "run stock libvirtd in each node")
	f.StringVar(&cfg.VMLockd, "vmlockd", "", "run this vmlockd `program` in each node")
	f.StringVar(&vmlockdConfig, "vmlockd-config", "", "its configuration `file`; /etc/vmlockd/vmlockd.toml in the nodes")
	f.BoolVar(&virtlockd, "virtlockd", false, "run libvirt's own lock daemon instead")
	f.DurationVar(&cfg.Token, "token", 5*time.Second, "corosync's token timeout: a lost node is noticed after 2.2 times this and a little more")
	f.StringVar(&transport, "transport", string(lab.UDPU), `corosync's transport: "udpu", or "knet", which takes longer to start`)
	f.StringVar(&fencing, "fencing", "none", `what happens to lost nodes: "none", or "power": the lab cuts their power`)
	f.StringVar(&fenceScript, "fence-script", "", "fence lost nodes by this `program`; it gets node=N on standard input")
	f.StringVar(&cfg.LogDir, "logs", "", "`directory` for the logs (default "+filepath.Join(os.TempDir(), "vmlockd-lab-NAME")+")")
	f.DurationVar(&timeout, "timeout", 2*time.Minute, "give up after this long")
	return cmd
}

func up(ctx context.Context, cmd *cobra.Command, cfg lab.Config) error {
	if missing := lab.Missing(cfg); len(missing) > 0 {
		return fmt.Errorf("this machine cannot run the lab; it lacks\n  %s", strings.Join(missing, "\n  "))
	}
	if cfg.LogDir == "" {
		cfg.LogDir = filepath.Join(os.TempDir(), "vmlockd-lab-"+cfg.Name)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg.Binary, cfg.Detach = self, true
	start := time.Now()
	fmt.Fprintf(cmd.ErrOrStderr(), "Booting %d nodes ...\n", cfg.Nodes)
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "Lab %q is up after %.0f s. Logs: %s\n", l.Name(), time.Since(start).Seconds(), l.LogDir())
	for _, n := range l.Nodes() {
		fmt.Fprintf(out, "  %s  %s\n", n.Name(), n.Addr())
	}
	suffix := ""
	if l.Name() != "default" {
		suffix = " --name " + l.Name()
	}
	fmt.Fprintf(out, "Try: lab exec%s 1 dlm_tool status\nEnd: lab down%s\n", suffix, suffix)
	return nil
}

func downCmd(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End a lab",
		Long:  "End a lab. All nodes lose their power at once, and nothing is left but the logs.",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Attach(cmd.Context(), g.name)
			if err != nil {
				return err
			}
			return l.Close()
		},
	}
}
