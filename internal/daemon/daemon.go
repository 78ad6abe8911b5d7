// Package daemon wires the parts of vmlockd together. It is the one place that
// knows all of them.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/backend/local"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// shutdownTimeout bounds how long calls under way may take once the daemon has
// been told to stop; the kernel may hold one for as long as it likes.
const shutdownTimeout = 5 * time.Second

// backend is what both backends offer beyond locking.
type backend interface {
	locking.Backend
	// Close lets go of the backend; it returns when ctx ends at the latest.
	Close(ctx context.Context) error
}

type localBackend struct{ *local.Backend }

func (localBackend) Close(context.Context) error { return nil }

func newBackend(c config.Config, log *slog.Logger) (backend, error) {
	if c.Backend == config.BackendCluster {
		b, err := cluster.New(cluster.Options{Lockspace: c.Cluster.Lockspace, Log: log})
		if err != nil {
			return nil, fmt.Errorf("backend \"cluster\" cannot be used on this host: %w", err)
		}
		return b, nil
	}
	return localBackend{local.New()}, nil
}

// Run serves until ctx ends. An error means that it could not start, or could
// not go on.
func Run(ctx context.Context, c config.Config, log *slog.Logger) error {
	b, err := newBackend(c, log)
	if err != nil {
		return err
	}
	defer closeWithin(log, "the backend", b.Close)
	l, err := listen(c.Socket)
	if err != nil {
		return err
	}
	locks := locking.New(locking.Options{
		Backend:        b,
		Processes:      owner.Processes{},
		Observe:        logEvents(log),
		RequestTimeout: time.Duration(c.RequestTimeout),
		AnyLockspace:   c.Backend == config.BackendCluster,
	})
	defer closeWithin(log, "the lock table", locks.Close)
	server := rpc.NewServer(rpc.Options{
		Programs:   []rpc.Program{lockprogram.New(locks)},
		MaxClients: c.MaxClients,
		Log:        log,
	})
	serveCtx, stop := context.WithCancel(ctx)
	defer stop()
	var serving sync.WaitGroup
	var serveErr error
	serving.Go(func() {
		defer stop()
		serveErr = server.Serve(serveCtx, l)
	})
	log.Info("vmlockd is ready", "backend", c.Backend, "socket", c.Socket, "pid", os.Getpid())
	notify(log, sd.SdNotifyReady)
	<-serveCtx.Done()
	notify(log, sd.SdNotifyStopping)
	if held := len(locks.Holders()); held > 0 {
		log.Warn("stopping while locks are held: this version gives them up", "locks", held)
	}
	closeWithin(log, "the connections", server.Shutdown)
	serving.Wait()
	if errors.Is(serveErr, rpc.ErrServerClosed) {
		serveErr = nil
	}
	if serveErr != nil {
		return fmt.Errorf("serve %s: %w", c.Socket, serveErr)
	}
	log.Info("vmlockd has stopped")
	return nil
}

func listen(path string) (*net.UnixListener, error) {
	// libvirt's directory is made by whichever of its daemons starts first.
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	return rpc.Listen(path)
}

func closeWithin(log *slog.Logger, what string, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := f(ctx); err != nil {
		log.Warn("could not close "+what+" cleanly", "reason", err)
	}
}

func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be notified", "reason", err)
	}
}
