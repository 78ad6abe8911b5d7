// Command vmlockd is the lock daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

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

It takes the options of virtlockd. --config names vmlockd's own file, by default
/etc/vmlockd/vmlockd.toml, or, if the name ends in .conf, the virtlockd.conf of
libvirt, by default /etc/libvirt/virtlockd.conf; it may be given once for each.
What vmlockd's own file sets goes before that, and options go before both.

For a user who is not root it serves the virtual machines of his session: with
$XDG_CONFIG_HOME/vmlockd/vmlockd.toml, $XDG_CONFIG_HOME/libvirt/virtlockd.conf and
the socket $XDG_RUNTIME_DIR/libvirt/virtlockd-sock, and backend "local" only.

Locks outlive the daemon: when it is stopped, killed or restarted they stay
held, and the next start takes them back. SIGUSR1 or SIGHUP executes the
program again in place, with all connections kept; that is how to upgrade it.

Exit status: 0 after SIGTERM or SIGINT, when it was idle for as long as --timeout
says, or with --daemon when it serves; 1 if it could not start or go on or was
told to stop twice, 2 if the command line or the configuration is wrong.`

type flags struct {
	config      []string
	files       config.Files // of config
	checkConfig bool
	verbose     bool
	daemon      bool
	timeout     uint32 // seconds; 0 for never
	timed       bool   // timeout was given
	pidFile     string // absolute; empty for what the configuration says
	takeOver    int    // version of a state that is to be taken over; 0 if none
}

// complete works out what the command line means.
func (f *flags) complete(cmd *cobra.Command) (err error) {
	if f.files, err = config.FilesOf(f.config); err != nil {
		return err
	}
	if f.files, err = f.files.Absolute(); err != nil {
		return err
	}
	f.timed = cmd.Flags().Changed("timeout")
	if most := uint32(config.MaxIdleTimeout / time.Second); f.timeout > most {
		return fmt.Errorf("--timeout %d is out of range: use 1 to %d seconds, or 0 for never", f.timeout, most)
	}
	if cmd.Flags().Changed("pid-file") {
		if f.pidFile == "" {
			return errors.New("--pid-file needs the name of a file")
		}
		f.pidFile, err = filepath.Abs(f.pidFile)
	}
	return err
}

// load reads the configuration and applies what the command line adds.
func (f flags) load() (config.Config, error) {
	c, err := f.files.Load()
	if err != nil {
		return c, err
	}
	if f.verbose {
		c.Log.Level = "debug"
	}
	if f.timed {
		c.IdleTimeout = config.Duration(time.Duration(f.timeout) * time.Second)
	}
	if f.pidFile != "" {
		c.PIDFile = f.pidFile
	}
	return c, nil
}

// background is the command line of a daemon in the background, with absolute paths.
func (f flags) background() (args []string) {
	if f.files.Named {
		args = append(args, "--config="+f.files.Own)
	}
	if f.files.Virtlockd != "" {
		args = append(args, "--config="+f.files.Virtlockd)
	}
	if f.verbose {
		args = append(args, "--verbose")
	}
	if f.timed {
		args = append(args, "--timeout="+strconv.FormatUint(uint64(f.timeout), 10))
	}
	if f.pidFile != "" {
		args = append(args, "--pid-file="+f.pidFile)
	}
	return args
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
			if err := f.complete(cmd); err != nil {
				status = wrongUsage(err)
				return
			}
			status = run(f)
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cmd.Flags().StringArrayVarP(&f.config, "config", "f", nil, "configuration `file`, vmlockd's own or, if it ends in .conf, libvirt's virtlockd.conf")
	cmd.Flags().BoolVarP(&f.daemon, "daemon", "d", false, "go on in the background, and return when libvirt is served")
	cmd.Flags().StringVarP(&f.pidFile, "pid-file", "p", "", "`file` for the pid; default: virtlockd's, /run/virtlockd.pid")
	cmd.Flags().Uint32VarP(&f.timeout, "timeout", "t", 0, "end after so many `seconds` without clients and locks; 0 for never")
	cmd.Flags().BoolVar(&f.checkConfig, "check-config", false, "check the configuration, say what is wrong with it, and exit")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log more, as with level = \"debug\"")
	cmd.Flags().IntVar(&f.takeOver, daemon.TakeOverFlag, 0, "")
	if err := cmd.Flags().MarkHidden(daemon.TakeOverFlag); err != nil {
		panic(err)
	}
	cmd.Flags().BoolP("version", "V", false, "print the version and exit")
	if err := cmd.Execute(); err != nil {
		status = wrongUsage(err)
	}
	os.Exit(status)
}

// wrongUsage says what is wrong with the command line, unless an earlier program can go on.
func wrongUsage(err error) int {
	daemon.GoBack(err)
	fmt.Fprintf(os.Stderr, "vmlockd: %v\nTry 'vmlockd --help'.\n", err)
	return exitUsage
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
		for _, w := range c.Warnings {
			fmt.Fprintln(os.Stderr, "warning:", w)
		}
		fmt.Printf("%s: no mistakes found\n", f.files.Own)
		if f.files.Virtlockd != "" {
			fmt.Printf("%s: no mistakes found\n", f.files.Virtlockd)
		}
		return 0
	case f.takeOver != 0:
		if err := daemon.CheckTakeOver(c, f.takeOver); err != nil {
			fmt.Fprintf(os.Stderr, "vmlockd %s: %v\n", version, err)
			return exitFailed
		}
		return 0
	}
	if f.daemon && !daemon.ReplacesVirtlockd() { // which is in the background already, in this process
		status, err := daemon.Background(f.background())
		if err != nil {
			fmt.Fprintln(os.Stderr, "vmlockd:", err)
			return exitFailed
		}
		return status
	}
	ready, inBackground := daemon.InBackground()
	log, err := openLog(c, inBackground)
	if err != nil {
		daemon.GoBack(err)
		fmt.Fprintln(os.Stderr, "vmlockd:", err)
		return exitUsage
	}
	defer logs.Close(log)
	for _, w := range c.Warnings {
		log.Warn("configuration: " + w)
	}
	// Who reads the log may end before this process does; nobody reads the channel.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	program, err := daemon.ThisProgram(f.load)
	if err != nil {
		daemon.GoBack(err)
		log.Error("vmlockd could not start", "reason", err)
		return exitFailed
	}
	program.Version, program.Ready, program.OwnProcess = version, ready, true
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	program.StopAgain = stop // what comes after the first
	go func() {
		<-stop
		cancel()
	}()
	if err := daemon.Run(ctx, program, c, log); err != nil {
		log.Error("vmlockd could not go on", "reason", err)
		if inBackground {
			fmt.Fprintln(os.Stderr, "vmlockd:", err) // who started it sees no log
		}
		return exitFailed
	}
	return 0
}

// openLog makes the log that the configuration describes. In the background there is no
// stderr to log to.
func openLog(c config.Config, inBackground bool) (*slog.Logger, error) {
	log, err := logs.New(c.Log.Level, c.Log.Format, os.Stderr)
	if err != nil {
		return nil, err
	}
	outputs := c.Log.Outputs
	if inBackground && strings.TrimSpace(outputs) == "" && c.Log.Format != "journal" {
		file := c.BackgroundLog()
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, err
		}
		outputs = logs.Background(file)
	}
	if err := logs.Configure(log, c.Log.Filters, outputs); err != nil {
		// A log that cannot be written keeps no virtual machine from its disks.
		log.Error("the log does not go where the configuration says, but here", "outputs", outputs, "reason", err)
	}
	return log, nil
}
