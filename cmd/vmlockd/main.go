// Command vmlockd is the lock daemon.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/daemon"
	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/logs"
)

// The exit statuses, as --help tells them.
const (
	exitFailed = 1
	exitUsage  = 2
)

// version is set by the build.
var version = "development"

const help = `vmlockd keeps two virtual machines from writing one disk.

libvirt connects to it through the socket of virtlockd, which it replaces: set
lock_manager = "lockd" in /etc/libvirt/qemu.conf and change nothing else there.

Without a configuration file it locks files for the virtual machines of this
host (backend "local"). With backend = "cluster" it holds its locks in the
kernel's distributed lock manager, for all hosts of a corosync cluster.

Locks outlive the daemon: when it is stopped, killed or restarted they stay
held, and the next start takes them back. SIGUSR1 or SIGHUP executes the
program again in place, with all connections kept; that is how to upgrade it.

Exit status: 0 after SIGTERM or SIGINT, 1 if it could not start or go on or was
told to stop twice, 2 if the command line or the configuration is wrong.`

type flags struct {
	config      string
	named       bool // the configuration file was named on the command line
	checkConfig bool
	verbose     bool
	takeOver    int // version of a state that is to be taken over; 0 if none
}

// load reads the configuration and applies what the command line adds.
func (f flags) load() (config.Config, error) {
	c, err := config.Load(f.config, !f.named)
	if err == nil && f.verbose {
		c.Log.Level = "debug"
	}
	return c, err
}

func main() {
	holder.Main() // does not return in the process that keeps locked files open
	var f flags
	status := 0
	cmd := &cobra.Command{
		Use:           "vmlockd",
		Short:         "Lock daemon for libvirt",
		Long:          help,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Run: func(cmd *cobra.Command, _ []string) {
			f.named = cmd.Flags().Changed("config")
			status = run(f)
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cmd.Flags().StringVarP(&f.config, "config", "f", config.DefaultPath(), "configuration `file`; the default one may be absent")
	cmd.Flags().BoolVar(&f.checkConfig, "check-config", false, "check the configuration, say what is wrong with it, and exit")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log more, as with level = \"debug\"")
	cmd.Flags().IntVar(&f.takeOver, daemon.TakeOverFlag, 0, "")
	if err := cmd.Flags().MarkHidden(daemon.TakeOverFlag); err != nil {
		panic(err)
	}
	cmd.Flags().BoolP("version", "V", false, "print the version and exit")
	if err := cmd.Execute(); err != nil {
		daemon.GoBack(err)
		fmt.Fprintf(os.Stderr, "vmlockd: %v\nTry 'vmlockd --help'.\n", err)
		status = exitUsage
	}
	os.Exit(status)
}

func run(f flags) int {
	stop := make(chan os.Signal, 2)
	if !f.checkConfig && f.takeOver == 0 {
		// First of all: after a restart in place somebody may have told this process to stop.
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	}
	var err error
	c, ok := daemon.EarlierConfig()
	if !ok {
		c, err = f.load()
	}
	if err != nil {
		daemon.GoBack(err)
		fmt.Fprintln(os.Stderr, err)
		return exitUsage
	}
	switch {
	case f.checkConfig:
		fmt.Printf("%s: no mistakes found\n", f.config)
		return 0
	case f.takeOver != 0:
		if err := daemon.CheckTakeOver(c, f.takeOver); err != nil {
			fmt.Fprintf(os.Stderr, "vmlockd %s: %v\n", version, err)
			return exitFailed
		}
		return 0
	}
	log, err := logs.New(c.Log.Level, c.Log.Format, os.Stderr)
	if err != nil {
		daemon.GoBack(err)
		fmt.Fprintln(os.Stderr, "vmlockd:", err)
		return exitUsage
	}
	defer logs.Close(log)
	// Who reads the log may end before this process does; nobody reads the channel.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	program, err := daemon.ThisProgram(f.load)
	if err != nil {
		daemon.GoBack(err)
		log.Error("vmlockd could not start", "reason", err)
		return exitFailed
	}
	program.Version = version
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	program.StopAgain = stop // what comes after the first
	go func() {
		<-stop
		cancel()
	}()
	if err := daemon.Run(ctx, program, c, log); err != nil {
		log.Error("vmlockd could not go on", "reason", err)
		return exitFailed
	}
	return 0
}
