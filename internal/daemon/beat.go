package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// beatEvery is the longest time between two signs of life; systemd may want more.
const beatEvery = 10 * time.Second

// beater tells systemd that the daemon works, and in one line what it does. It says so
// only after all who serve have answered: the loop that waits for signals, the goroutine that
// accepts connections, and the table of locks. If one does not, it says nothing more, and
// systemd ends the daemon when WatchdogSec= is over; locks stay held, as after any end.
type beater struct {
	every  time.Duration
	notify func(state string)
	// alive returns when all have answered, or an error when ctx has ended.
	alive  func(context.Context) error
	status func() string
	dog    bool // systemd waits for it

	loop chan struct{} // received from by who waits for signals
	end  context.CancelFunc
	work sync.WaitGroup
}

// newBeater starts one if systemd, or whoever is like it, listens.
func (i *instance) newBeater() *beater {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	every, dog := beatInterval(i.log)
	b := &beater{every: every, dog: dog, status: i.statusLine, notify: func(state string) { notify(i.log, state) }, loop: make(chan struct{})}
	b.alive = func(ctx context.Context) error { return i.allAnswer(ctx, b.loop) }
	b.start()
	return b
}

// beatInterval is how often a sign of life is due, and whether systemd waits for it.
func beatInterval(log *slog.Logger) (every time.Duration, dog bool) {
	dies, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog of systemd is not answered: "+err.Error(), "variable", "WATCHDOG_USEC")
	}
	if dies <= 0 {
		return beatEvery, false
	}
	return min(dies/3, beatEvery), true
}

func (b *beater) start() {
	ctx, cancel := context.WithCancel(context.Background())
	b.end = cancel
	b.work.Go(func() {
		tick := time.NewTicker(b.every)
		defer tick.Stop()
		for told := ""; ; {
			if b.alive(ctx) == nil {
				told = b.beat(told)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

// beat returns the line that was told last.
func (b *beater) beat(told string) string {
	line := b.status()
	state := ""
	if line != told {
		state = "STATUS=" + line
	}
	if b.dog {
		if state != "" {
			state += "\n"
		}
		state += sd.SdNotifyWatchdog
	}
	if state != "" {
		b.notify(state)
	}
	return line
}

// asks is what the loop that waits for signals receives from; nil without a beater.
func (b *beater) asks() <-chan struct{} {
	if b == nil {
		return nil
	}
	return b.loop
}

func (b *beater) stop() {
	if b != nil {
		b.end()
		b.work.Wait()
	}
}

// allAnswer asks all who serve.
func (i *instance) allAnswer(ctx context.Context, loop chan<- struct{}) error {
	select {
	case loop <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !i.server.Answers(ctx) {
		return fmt.Errorf("connections are not accepted")
	}
	i.locks.Draining() // needs the lock of the table
	return ctx.Err()
}

// statusLine is what 'systemctl status' shows.
func (i *instance) statusLine() string {
	locks, owners := len(i.locks.Holders()), len(i.owners())
	s := fmt.Sprintf("%d locks of %d processes, backend %s", locks, owners, i.cfg.Backend)
	if i.locks.Draining() {
		s += ", draining"
	}
	return s
}
