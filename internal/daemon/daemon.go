// Package daemon wires the parts of vmlockd together. It is the one place that
// knows all of them.
package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/failpoint"
)

// checkTimeout bounds how long a new program may take to say that it would start.
const checkTimeout = 10 * time.Second

// TakeOverFlag is the option by which a new program is asked whether it would
// start with this configuration and go on from a state of that version.
const TakeOverFlag = "can-take-over"

// Program is how this process was started, for a restart in place.
type Program struct {
	Path    string   // of the executable file, where an upgrade puts the new one
	Args    []string // os.Args
	Version string
	// Config reads the configuration again.
	Config func() (config.Config, error)
	// StopAgain delivers signals that come after the context of Run has ended: the
	// process then ends without waiting for anything more.
	StopAgain <-chan os.Signal
}

// ThisProgram finds out how this process was started.
func ThisProgram(read func() (config.Config, error)) (Program, error) {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Program{}, fmt.Errorf("find the program's own file: %w", err)
	}
	return Program{Path: path, Args: os.Args, Config: read}, nil
}

// Run serves until ctx ends. A signal of RestartSignals makes it execute its program
// again in the same process, with all connections and locks; if the new program
// would not start, or cannot be executed, it goes on itself. An error means
// that it could not start, or could not go on.
func Run(ctx context.Context, p Program, c config.Config, log *slog.Logger) error {
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, RestartSignals...)
	defer signal.Stop(restart)
	armed, err := failpoint.Check()
	if err != nil {
		return err
	}
	if armed != "" {
		log.Warn("this daemon kills itself at a fail point, for a test", "point", armed)
	}
	from, err := inherit()
	if err != nil {
		return err
	}
	for {
		i, err := start(c, p.Version, log, from)
		if err != nil {
			return err
		}
		log.Info("vmlockd is ready", "backend", c.Backend, "socket", c.Socket, "pid", os.Getpid(), "restarted", from != nil)
		notify(log, sd.SdNotifyReady)
		again, err := i.serveUntil(ctx, p, restart)
		if !again {
			notify(log, sd.SdNotifyStopping)
			log.Info("vmlockd is stopping")
			stopped := i.endOnSignal(p.StopAgain)
			i.stop()
			stopped()
			log.Info("vmlockd has stopped")
			return err
		}
		notify(log, "RELOADING=1\nMONOTONIC_USEC="+strconv.FormatInt(monotonic().Microseconds(), 10))
		if from, err = i.handOver(); err != nil {
			return fmt.Errorf("hand over to a new program: %w", err)
		}
		err = from.execute(p.Path, p.Args)
		signal.Notify(restart, RestartSignals...)
		log.Error("the new program could not be executed, going on with this one", "reason", err)
	}
}

// serveUntil serves until the program is to end, or another one takes over.
func (i *instance) serveUntil(ctx context.Context, p Program, restart <-chan os.Signal) (again bool, err error) {
	for {
		again, err = i.serve(ctx, restart)
		if !again {
			return again, err
		}
		if err := p.check(ctx); err != nil {
			i.log.Error("restart refused: the program would not start, this one goes on", "reason", err)
			continue
		}
		if err := i.backend.Replaceable(); err != nil {
			i.log.Error("restart refused, try again later: until the kernel has answered this process cannot be replaced", "reason", err)
			continue
		}
		return true, nil
	}
}

// check asks the program whether it would start.
func (p Program) check(ctx context.Context) error {
	if _, err := p.Config(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	args := append(append([]string{}, p.Args[1:]...), "--"+TakeOverFlag, strconv.Itoa(StateVersion))
	cmd := exec.CommandContext(ctx, p.Path, args...)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s --%s: %w: %s", p.Path, TakeOverFlag, err, out)
	}
	return nil
}

func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be notified", "reason", err)
	}
}

// monotonic is the clock that systemd compares reloads by (sd_notify(3)).
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
