package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/config"
	vmlockd "github.com/vmlockd/vmlockd/internal/daemon"
	"github.com/vmlockd/vmlockd/internal/logs"
)

// profileCommand makes this program a vmlockd that writes a profile of its processor time when it ends, and one of
// its allocations beside it, in FILE.allocs: profileCommand FILE --config FILE.
const profileCommand = "profiled-vmlockd"

// newProfiled starts such a vmlockd.
func newProfiled(ctx context.Context, path string) (*daemon, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return newVmlockd(ctx, "vmlockd, profiled", "local", []string{"/proc/self/exe", profileCommand, path}, "")
}

// stop ends the daemon in order, so that it writes its profile.
func (d *daemon) stop(ctx context.Context) error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// profiled is profileCommand.
func profiled(profile, configuration string) error {
	c, err := config.Load(configuration, false)
	if err != nil {
		return err
	}
	f, err := os.Create(profile)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	p := vmlockd.Program{Path: "/proc/self/exe", Args: os.Args, OwnProcess: true}
	log, err := logs.New(c.Log.Level, c.Log.Format, os.Stderr)
	if err != nil {
		return err
	}
	defer logs.Close(log)
	if err := vmlockd.Run(ctx, p, c, log); err != nil {
		return err
	}
	return writeAllocations(profile + ".allocs")
}

// writeAllocations is a profile of what was allocated so far, as pprof reads it (-sample_index=alloc_objects).
func writeAllocations(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.Lookup("allocs").WriteTo(f, 0); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
