package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vmlockd/vmlockd/internal/guard"
)

// feedEvery is how often a watchdog is fed that no guard has; none has a timeout below 5 s.
const feedEvery = time.Second

// leftover are watchdogs that an earlier vmlockd has left armed, on a host that is not guarded any more: they are disarmed, and what
// cannot be is fed for as long as vmlockd runs. A nil *leftover has none.
type leftover struct {
	store guard.Store
	log   *slog.Logger
	end   context.CancelFunc
	work  sync.WaitGroup

	mu   sync.Mutex // guards devs and each said
	devs []*leftDevice
}

type leftDevice struct {
	watchdog
	path  string
	said  string // what the log was told last
	stays bool
}

// watchdog is a *guard.Device.
type watchdog interface {
	guard.Dog
	Leave() error
}

// disarmLeft is for the moment when nobody counts on these watchdogs any more, and when hardly anything can fail: after a start that fails
// nothing else would keep what runs here from writing.
func (i *instance) disarmLeft(boot string) {
	if guarded(i.cfg) {
		return // they are the guard's
	}
	i.leftover = endLeft(guardStore(i.cfg, boot), i.log, func(path string) watchdog { return guard.LeftDevice(path) })
}

// endLeft disarms what can be disarmed at once. It is nil if nothing is left then.
func endLeft(store guard.Store, log *slog.Logger, open func(path string) watchdog) *leftover {
	l := &leftover{store: store, log: log}
	paths, _, err := guard.LeftArmed(store, "")
	if err != nil {
		return nil // startGuard has said that it cannot be read
	}
	for _, path := range paths {
		l.devs = append(l.devs, &leftDevice{watchdog: open(path), path: path})
	}
	if l.disarm(); len(l.devs) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.end = cancel
	l.work.Go(func() {
		t := time.NewTicker(feedEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				l.disarm()
			case <-ctx.Done():
				return
			}
		}
	})
	return l
}

// disarm disarms what can be, and feeds the rest.
func (l *leftover) disarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devs = slices.DeleteFunc(l.devs, func(d *leftDevice) bool {
		err := d.Feed() // which opens it
		if err == nil {
			err = d.Disarm()
		}
		if err == nil {
			l.log.Info("the watchdog "+d.path+", which an earlier vmlockd has left armed, and which the configuration does not name any more, is disarmed", "event", "guard-watchdog")
			if err := guard.Disarmed(l.store, d.path); err != nil {
				l.log.Warn("that a watchdog is disarmed could not be noted: the next start disarms it once more", "reason", err)
			}
			return true
		}
		if d.stays = errors.Is(err, guard.ErrStays); d.said != err.Error() {
			d.said = err.Error()
			if d.stays {
				l.log.Error("a watchdog that an earlier vmlockd has left armed cannot be disarmed", "event", "guard-watchdog-stays", "device", d.path, "reason", err)
			} else {
				l.log.Error("the watchdog "+d.path+", which an earlier vmlockd has left armed, cannot be disarmed: it may reset this host", "event", "guard-failed", "reason", err)
			}
		}
		return false
	})
}

// stays says, for people, what cannot be disarmed.
func (l *leftover) stays() (list []string) {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.devs {
		if d.stays {
			list = append(list, d.said)
		}
	}
	return list
}

// close leaves what is armed to the next program, or if there is none (last) to nobody, which is said.
func (l *leftover) close(last bool) {
	if l == nil {
		return
	}
	l.end()
	l.work.Wait()
	for _, d := range l.devs {
		if last && d.stays {
			l.log.Error("stopping, and nobody feeds a watchdog that cannot be disarmed: start vmlockd again at once, or this host is reset", "event", "guard-watchdog-stays", "device", d.path, "reason", d.said)
		}
		if err := d.Leave(); err != nil {
			l.log.Warn("a watchdog could not be closed", "device", d.path, "reason", err)
		}
	}
}
