package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/vmlockd/vmlockd/internal/config"
)

// part is for a start without a guard after an end of a vmlockd with one, which has left its watchdog armed, or processes stopped: what that one had
// promised is kept until all other hosts have heard that nobody does any more. It takes two messages in a cluster that is well. If this host has lost the cluster it takes
// as long as that guard would have: what it had promised to stop is stopped, and killed when the grace is over.
//
// A signal to stop does not shorten it: whoever ends now leaves the watchdog armed, and this host is reset. Nor would it take
// less time then, as the end of the daemon waits for the same. The second signal ends it all the same, as it does later.
func (i *instance) part() {
	if !i.parting {
		return
	}
	i.log.Warn("an earlier vmlockd, which had a guard, has left a watchdog armed or processes stopped: its promise is kept until the other hosts have heard that nothing guards this one any more",
		"grace", time.Duration(i.cfg.Guard.Grace))
	i.waiting.Store("the other hosts, which are told that nothing guards this one any more")
	// Beyond its own bound it hangs, and systemd is to end it.
	ctx, cancel := context.WithTimeout(context.Background(), i.guard.Status().Timing.HoldOff+2*stopTimeout)
	var telling sync.WaitGroup
	telling.Go(func() { stillParting(ctx, i.log, i.given.told) })
	callOff := i.endOnSignal(i.given.told, i.given.toldAgain)
	heard := i.guard.withdraw(fmt.Sprintf("guard.mode is %q now, and it is not certain that the other hosts know it", config.GuardOff))
	i.within("the guard", func(ctx context.Context) error { return i.guard.close(ctx, heard) })
	i.guard, i.parting = nil, !heard
	callOff()
	cancel()
	telling.Wait()
}

// stillParting tells systemd until ctx ends that the daemon is at work, and needs longer for its start; and once, for people, what a signal to
// stop has to wait for. After a restart in place systemd waits for signs of life, and nobody is there yet who gives them (see beater).
func stillParting(ctx context.Context, log *slog.Logger, told <-chan struct{}) {
	every, _ := beatInterval(log)
	state := fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\n%s", (3 * every).Microseconds(), sd.SdNotifyWatchdog)
	tick := time.NewTicker(every)
	defer tick.Stop()
	notify(log, state)
	for {
		select {
		case <-tick.C:
			notify(log, state)
		case <-told:
			log.Warn("told to stop while the promise of an earlier vmlockd is taken back: that is done first. Told again it ends at once, and a watchdog that is left armed resets this host")
			told = nil
		case <-ctx.Done():
			return
		}
	}
}
