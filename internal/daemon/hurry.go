package daemon

import (
	"os"
	"sync"

	"github.com/vmlockd/vmlockd/internal/logs"
)

// exitHurried is the status of a process that was told twice to stop.
const exitHurried = 1

// endOnSignal ends the process at once if a signal comes, after the first one (told), while the instance
// stops or cannot yet, and says what it would have waited for. Locks stay held, as after any
// other end. The returned function calls it off.
//
// The kernel removes a process only when it has answered the process's last
// request (a DLM lockspace in recovery, a file system that hangs): then the
// process stays in the list of processes until that is over, and keeps the
// journal locked, so that no other daemon begins meanwhile.
func (i *instance) endOnSignal(told <-chan struct{}, again <-chan os.Signal) (callOff func()) {
	stopped := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-told: // before that the next signal is the first one, and somebody else's
		case <-stopped:
			return
		}
		select {
		case s := <-again:
			what, _ := i.waiting.Load().(string)
			i.log.Warn("told to stop again: ending without waiting any longer; locks stay held",
				"signal", s.String(), "waited_for", what, "unanswered_requests", i.backend.Unsettled())
			logs.Flush(i.log)
			os.Exit(exitHurried)
		case <-stopped:
		}
	})
	return func() {
		close(stopped)
		watching.Wait()
	}
}
