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
	"github.com/vmlockd/vmlockd/internal/logs"
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
	// Ready is called when requests are served; it may be nil.
	Ready func()
	// StopAgain delivers signals that come after the context of Run has ended: the
	// process then ends without waiting for anything more.
	StopAgain <-chan os.Signal
	// OwnProcess says that nothing else runs in this process, so that Run may set what Go's runtime has for
	// all of it.
	OwnProcess bool
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
	makeRoom(c)
	from, err := inherit()
	if err != nil {
		logs.Flush(log)
		GoBack(err)
		return err
	}
	if from == nil {
		if from, err = fromVirtlockd(c, log); err != nil {
			logs.Flush(log)
			GoBack(err)
			return err
		}
	}
	if why := wentBack(); why != "" {
		log.Error("the new program could not start, this one goes on", "event", "restart-refused", "reason", why)
		from.noWayBack()
	}
	g, err := take(from, c)
	if err != nil {
		logs.Flush(log)
		from.virtlockdGoesOn(err)
		return from.goBack(ctx, err)
	}
	defer g.release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if from != nil && from.told {
		log.Info("the earlier program was told to stop when this one was about to take its place")
		cancel()
	}
	g.told, g.toldAgain = ctx.Done(), p.StopAgain
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		log.Warn("a new program that cannot start would not be followed by this one", "reason", err)
		self = nil
	}
	for {
		i, err := start(c, p.Version, log, from, g)
		if err != nil {
			logs.Flush(log) // the program may be replaced
			from.virtlockdGoesOn(err)
			return from.goBack(ctx, err)
		}
		log.Info("vmlockd is ready", "event", "daemon-ready", "backend", c.Backend, "socket", c.Socket, "pid", os.Getpid(), "restarted", from != nil)
		notify(log, sd.SdNotifyReady)
		if p.Ready != nil {
			logs.Flush(log) // who waits for it may look what was said, and stderr may be gone then
			p.Ready()
		}
		undo := func() {}
		if p.OwnProcess {
			undo = tuneProcessors(i.backend)
		}
		version, err := i.serveUntil(ctx, p, restart)
		undo()
		retired := i.idle.end()
		if retired { // then there is nothing to go on with
			version = 0
			log.Info("nobody has used vmlockd for as long as idle_timeout says, and nothing is held: it ends", "idle_timeout", c.IdleTimeout)
		}
		if version == 0 {
			if !retired { // after which systemd waits for the end, and makes it come
				notify(log, sd.SdNotifyStopping)
			}
			log.Info("vmlockd is stopping")
			stopped := i.endOnSignal(ctx.Done(), p.StopAgain)
			i.stop()
			stopped()
			if g.late = i.late; len(g.late) > 0 && ctx.Err() == nil {
				log.Info("somebody has connected just then: vmlockd starts once more for them", "clients", len(g.late))
				from = nil
				continue
			}
			closeAll(g.late)
			if retired {
				notify(log, sd.SdNotifyStopping)
			}
			log.Info("vmlockd has stopped", "event", "daemon-stopped")
			return err
		}
		notify(log, "RELOADING=1\nMONOTONIC_USEC="+strconv.FormatInt(monotonic().Microseconds(), 10))
		from = i.handOver(version)
		logs.Flush(log)
		err = from.execute(ctx, ctx, p.Path, p.Args, self)
		signal.Notify(restart, RestartSignals...)
		if ctx.Err() != nil {
			log.Info("told to stop during a restart in place, which is not done any more")
			continue // with everything, to stop in order
		}
		log.Error("the new program could not be executed, going on with this one", "event", "restart-refused", "reason", err)
	}
}

// serveUntil serves until the program is to end, or another one takes over: then
// it returns the version of the state which that one wants, and otherwise 0.
func (i *instance) serveUntil(ctx context.Context, p Program, restart <-chan os.Signal) (version int, err error) {
	for {
		again, err := i.serve(ctx, restart)
		if !again {
			return 0, err
		}
		version, err := p.check(ctx, i.cfg)
		switch {
		case ctx.Err() != nil:
			continue
		case err != nil:
			i.log.Error("restart refused: the program would not start, this one goes on", "event", "restart-refused", "reason", err)
			continue
		}
		i.awaitEndings(ctx)
		if ctx.Err() != nil {
			continue
		}
		if err := i.backend.Replaceable(); err != nil {
			i.log.Error("restart refused, this program goes on: it cannot be replaced just now, try again later", "event", "restart-refused", "reason", err)
			continue
		}
		return version, nil
	}
}

// check asks the program whether it would start, and returns the version of the
// state that it knows.
func (p Program) check(ctx context.Context, now config.Config) (version int, err error) {
	next, err := p.Config()
	if err != nil {
		return 0, err
	}
	if err := runningWith(now).sameLocks(next); err != nil {
		return 0, err
	}
	for _, version := range []int{stateAdmin, stateLocks, stateConnections} { // an older program knows only the last ones
		if err = p.canTakeOver(ctx, version, now); err == nil {
			return version, nil
		}
	}
	return 0, err
}

func (p Program) canTakeOver(ctx context.Context, version int, now config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	args := append(append([]string{}, p.Args[1:]...), "--"+TakeOverFlag, strconv.Itoa(version))
	cmd := exec.CommandContext(ctx, p.Path, args...)
	cmd.Env = append(os.Environ(), runningWith(now).variable())
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
