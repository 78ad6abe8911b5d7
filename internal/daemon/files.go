package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmlockd/vmlockd/internal/backend/local"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/holder"
)

// keptWorkers is how many goroutines wait for accesses to files, 8 KiB each at most.
const keptWorkers = 16

// keptFiles is the local backend with the process that keeps its files open.
type keptFiles struct {
	*local.Backend
	keeper *holder.Client
	log    *slog.Logger
}

// newKeptFiles goes on with kept, if it is not nil. With look, each of its files is
// locked once more.
func newKeptFiles(c config.Config, log *slog.Logger, kept *holder.Handover, look bool) (keptFiles, error) {
	o := holder.Options{Socket: c.HolderSocket(), Log: log}
	if kept != nil {
		keeper, err := holder.Resume(o, kept)
		switch {
		case err == nil && look:
			return withKeeper(local.NewKept(keeper, log), keeper, log), nil
		case err == nil:
			return withKeeper(local.NewSame(keeper, log), keeper, log), nil
		}
		log.Warn("the earlier program's descriptors are of no use, the process that keeps them is asked for others", "reason", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	keeper, err := holder.Connect(ctx, o)
	if err != nil {
		return keptFiles{}, err
	}
	return withKeeper(local.NewKept(keeper, log), keeper, log), nil
}

func withKeeper(b *local.Backend, keeper *holder.Client, log *slog.Logger) keptFiles {
	b.KeepWorkers(keptWorkers)
	return keptFiles{b, keeper, log}
}

// Replaceable is nil only if the end of this process would end no lock: whatever
// becomes of the execution of another program, there is no moment without a holder.
func (k keptFiles) Replaceable() error {
	if n := k.Unsettled(); n > 0 {
		return fmt.Errorf("%d file accesses hang in the kernel", n)
	}
	return k.keeper.Complete()
}

func (k keptFiles) Close(context.Context, bool) error {
	k.KeepWorkers(0)
	return k.keeper.Close()
}

// Keep looks at the keeper once more, which may have ended since Replaceable.
func (k keptFiles) Keep(_ context.Context, whole bool) (keptLocks, error) {
	k.KeepWorkers(0)
	unsure := k.Settled()
	if unsure == nil && !whole {
		unsure = errors.New("calls are under way, or the new program is of an earlier version")
	}
	if unsure != nil && k.keeper.Complete() == nil {
		k.log.Warn("each file's lock is looked at again after this restart", "reason", unsure)
		return keptLocks{}, k.keeper.Close()
	}
	h, err := k.keeper.Handover()
	switch {
	case errors.Is(err, holder.ErrIncomplete):
		return keptLocks{local: h, here: err, look: unsure != nil}, nil
	case err != nil:
		return keptLocks{}, err
	case unsure != nil: // it has become complete just now
		return keptLocks{local: h, here: unsure, look: true}, nil
	}
	return keptLocks{local: h}, nil
}

// incompletePatience is how long the daemon waits, when it stops, for a holder that
// has just been started to get everything: it takes some milliseconds.
const incompletePatience = 2 * time.Second

// warnIncomplete says that locks will end with this process, if so.
func (i *instance) warnIncomplete(held int) {
	if err := i.incomplete(); err != nil {
		i.log.Error("stopping while locks are held that nobody keeps: they end with this process, and another program can use these disks until vmlockd is started again",
			"event", "holder-incomplete", "locks", held, "reason", err)
	}
}

// incomplete is nil as soon as the holder has everything, or says after a while why not.
func (i *instance) incomplete() error {
	k, ok := i.backend.(keptFiles)
	if !ok {
		return nil
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		err := k.keeper.Complete()
		if err == nil || time.Since(begin) > incompletePatience {
			return err
		}
	}
}
