package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/closer"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func newBackend(c config.Config, log *slog.Logger, holders func() []locking.Holder, d *disks, o *others, admit func(context.Context) error, kept *keptLocks, earlier int) (backend, error) {
	if c.Backend == config.BackendCluster {
		last, err := closer.NewGuard(c.RunDir, c.Cluster.Lockspace, earlier)
		if err != nil {
			return nil, err
		}
		options := cluster.Options{
			Lockspace: c.Cluster.Lockspace, Log: log, Holders: holders, Earlier: kept.takeCluster(), LastClose: last, NodeName: o.name,
			Identify: d.forBackend, Admit: admit,
		}
		if o != nil {
			options.Peers = forRefusals{o}
		}
		b, err := cluster.New(options)
		if err != nil {
			return nil, fmt.Errorf("backend \"cluster\" cannot be used on this host: %w", err)
		}
		resource := b.DiskResource
		d.resource.Store(&resource)
		return dlmLocks{b, last}, nil
	}
	closer.Earlier(earlier).Dismiss() // the configuration names another backend now
	b, err := newKeptFiles(c, log, kept.takeLocal(), kept.look)
	if err != nil {
		return nil, fmt.Errorf("backend \"local\" cannot be used on this host: the process that keeps locks across restarts: %w", err)
	}
	return b, nil
}

// dlmLocks is the cluster backend.
type dlmLocks struct {
	*cluster.Backend
	last *closer.Guard
}

func (d dlmLocks) Keep(ctx context.Context, whole bool) (keptLocks, error) {
	if !whole {
		return keptLocks{}, d.Close(ctx, false)
	}
	h, err := d.Handover(ctx)
	if err == nil { // otherwise requests go on, and are counted, until the next program
		d.last.Close()
	}
	return keptLocks{cluster: h}, err
}

func (i *instance) takeBack(found journal.Recovered, from locking.Restorer) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), restoreTimeout)
	defer cancel()
	doubt := found.Damage != nil && found.Damage.Unknown
	_, orphans := i.backend.(dlmLocks)
	i.doubt = &doubter{backend: i.backend, locks: i.locks, journal: i.journal, orphans: orphans, log: i.log}
	if doubt {
		i.doubt.suspect(found.Damage.String())
	}
	defer i.tidy.did(int64(len(found.Entries)), nil)
	later := i.locks.Restore(ctx, from, found.Entries, found.Lockspaces, doubt)
	if n := len(found.Entries); n > 0 && later == 0 {
		i.log.Info("locks from before the restart were taken back", "event", "locks-restored", "entries", n, "took", time.Since(begin))
	}
	// What a damaged journal may have explained stays locked.
	if b, ok := i.backend.(dlmLocks); ok && !doubt {
		b.DropUnclaimed()
	}
	if b, ok := i.backend.(keptFiles); ok && !doubt {
		n, err := b.DropOthers(ctx)
		if n > 0 || err != nil {
			i.log.Warn("files that were kept locked for nobody were given back", "files", n, "error", err)
		}
	}
}
