package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/logs"
	"github.com/vmlockd/vmlockd/internal/metrics"
)

// makeMetrics makes the metrics of this instance, whose handler is not to be used
// before all parts are there.
func (i *instance) makeMetrics() {
	i.hide = func() {}
	p := metrics.Ports{
		Locks: func() locking.Counts { return i.locks.Counts() },
		Journal: func() metrics.Journal {
			s := i.journal.Stats()
			return metrics.Journal{Entries: s.Entries, Bytes: s.Bytes, LiveBytes: s.LiveBytes, Records: s.Records, Compactions: s.Compactions, Failures: s.Failures}
		},
		Connections: func() metrics.Connections {
			s := i.server.Stats()
			return metrics.Connections{Open: s.Clients, Limit: s.MaxClients, Refused: s.Refused, Failures: s.Failures}
		},
		Starts: func() metrics.Starts { return i.starts },
		Log:    func() metrics.Log { return metrics.Log{Dropped: logs.Dropped(i.log)} },
	}
	switch b := i.backend.(type) {
	case dlmLocks:
		p.Peers = i.others.figures
		p.Cluster = func() metrics.Cluster { return clusterFigures(b.Figures()) }
		p.Kernel = func() metrics.Kernel {
			f := b.Figures()
			return metrics.Kernel{InFlight: f.InFlight, Queued: f.Queued, Oldest: f.Oldest, Unsettled: f.Unsettled}
		}
	case keptFiles:
		p.Kernel = func() metrics.Kernel {
			f := b.Figures()
			return metrics.Kernel{InFlight: f.InFlight, Oldest: f.Oldest, Unsettled: f.Unsettled}
		}
		p.Holder = func() metrics.Holder {
			s := b.keeper.Status()
			return metrics.Holder{Up: s.PID != 0, Held: s.Held, Unkept: s.Unkept}
		}
	}
	i.metrics = metrics.New(metrics.Options{Version: i.version, Backend: i.cfg.Backend, Ports: p})
}

func clusterFigures(f cluster.Figures) metrics.Cluster {
	return metrics.Cluster{
		Joined: f.Joined, Running: f.Running, Cause: f.Cause, Stopped: f.Stopped, Releasing: f.Releasing, Unsaid: f.Unsaid,
		Heard: f.Heard, Quorate: f.Quorate, Members: f.Members, Missing: f.Missing, Fencing: f.Fencing,
	}
}

// showMetrics counts this start, and serves the metrics on loopback if that is
// configured. Locks are served also when that cannot be done.
func (i *instance) showMetrics(inPlace bool) {
	boot, err := journal.BootID()
	if err == nil {
		i.starts, err = countStart(i.cfg.RunDir, boot, inPlace)
	}
	if err != nil {
		i.log.Warn("the starts of the daemon cannot be counted", "reason", err)
	}
	if i.cfg.Metrics.Listen == "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	i.hide = cancel
	i.serving.Go(func() { serveMetrics(ctx, i.cfg.Metrics.Listen, i.metrics.Handler(), i.log) })
}

// noteStop says for the next start that this was no crash.
func (i *instance) noteStop() {
	boot, err := journal.BootID()
	if err == nil {
		err = countStop(i.cfg.RunDir, boot)
	}
	if err != nil {
		i.log.Warn("the stop of the daemon cannot be noted", "reason", err)
	}
}

const (
	// firstMetricsRetry is the pause before an address is tried again, which doubles up to
	// lastMetricsRetry.
	firstMetricsRetry, lastMetricsRetry = 250 * time.Millisecond, 5 * time.Second
	// metricsClients is how many connections are served at once: everybody on this
	// host may connect, and must not use up descriptors.
	metricsClients = 8
	// metricsSilence is how long a client may take over its request, and
	// metricsTime over all.
	metricsSilence = 5 * time.Second
	metricsTime    = 15 * time.Second
	maxHeader      = 8 << 10
)

// serveMetrics serves until ctx ends. An address that cannot be had now, for
// example as another program has it, is tried again.
func serveMetrics(ctx context.Context, address string, h http.Handler, log *slog.Logger) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", h)
	told := ""
	for retry := firstMetricsRetry; ; retry = min(2*retry, lastMetricsRetry) {
		err := serveOnce(ctx, address, mux)
		if ctx.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			log.Warn("metrics cannot be served there now, trying again", "event", "metrics-unreachable", "address", address, "reason", err)
		}
		pause := time.NewTimer(retry)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

func serveOnce(ctx context.Context, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: metricsSilence, ReadTimeout: metricsSilence, WriteTimeout: metricsTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // what clients do wrong is not our business
	}
	s.SetKeepAlivesEnabled(false) // so that nobody keeps a place
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	return s.Serve(newFew(l, metricsClients))
}
