package deadline_test

import (
	"context"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// toldTwiceToStop: without quorum the kernel does not answer, so that a daemon with
// requests under way that is told to stop cannot do so in order. Told again, it says
// what it waited for and ends at once; the next one has its locks.
//
// Node 1 must be rebooted anyway. Until it is, node 2 is alone when node 3 is off too.
func (s *suite) toldTwiceToStop(t *testing.T) {
	s.restartWithoutQuorum(t, restart{
		prefix: "told", node: 2, others: [2]int{1, 3}, underWay: true,
		lose:     func(t *testing.T) { s.switchOff(t, 1, 3) },
		comeBack: func(t *testing.T, _ *asker, _ time.Time, _ lengths) { s.reboot(t, 1, 3) },
		end:      func(t *testing.T, watch *asker) { s.tellTwiceToStop(t, 2, watch) },
	})
}

// toldAgain is what the daemon says: it was closing what waits for the kernel.
var toldAgain = regexp.MustCompile(`told to stop again: ending without waiting any longer; locks stay held" ` +
	`signal=terminated waited_for="(the lock table|the backend)" unanswered_requests=[1-9]`)

func (s *suite) tellTwiceToStop(t *testing.T, node int, watch *asker) {
	t.Helper()
	daemon := s.Node(node).Service(lab.ServiceLock)
	tell := func(ctx context.Context) error { return daemon.Signal(ctx, syscall.SIGTERM) }
	before := s.logLengths(t)
	s.do(t, "stop vmlockd", tell)
	// From then on it closes what waits for the kernel, for several seconds.
	s.logged(t, before, node, "event=stopped-holding")
	pauses := ownPauses()
	again := time.Now()
	var st lab.ProcessStatus
	s.do(t, "stop vmlockd again", func(ctx context.Context) (err error) {
		if err := tell(ctx); err != nil {
			return err
		}
		st, err = daemon.Wait(ctx)
		return err
	})
	ended := answer{again, time.Since(again), "ended"}
	inTime(t, []answer{ended}, either(watch.answers(t), pauses()), again)
	if st.Status != 1 { // as vmlockd --help says
		t.Errorf("vmlockd ended with status %d", st.Status)
	}
	log := s.logSince(t, before, node)
	if !toldAgain.MatchString(log) {
		t.Errorf("vmlockd does not say what it waited for:\n%s", log)
	}
	if strings.Contains(log, "event=daemon-stopped") {
		t.Errorf("vmlockd stopped in order:\n%s", log)
	}
}
