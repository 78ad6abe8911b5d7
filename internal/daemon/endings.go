package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/owner"
)

// awaitEndings is for before this program ends or is replaced: owners that closed their
// connection while they hold locks are ended, and the next program, which never had that
// connection, would not send them SIGKILL. It takes locking.EndPatience for each, and
// stopTimeout for all, at the longest: an owner that the kernel does not let end keeps
// nothing else waiting. Everybody is served meanwhile who was before.
//
// One that begins to be ended later than this is waited for by locking.Manager.Close.
func (i *instance) awaitEndings(ctx context.Context) {
	n := i.locks.Endings()
	if n == 0 {
		return
	}
	i.waiting.Store("owners that are being ended")
	i.log.Info("waiting for owners that are being ended, which takes a moment", "owners", n)
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if left := i.locks.AwaitEndings(ctx); left > 0 {
		i.log.Warn("going on although owners that are being ended are still there: they keep their locks until the kernel lets them end", "owners", left)
	}
}

// endingNoted is a point at which a test kills the daemon.
var endingNoted = failpoint.New("daemon.ending.noted.after")

// endingsName is the file in run_dir with who was begun to be ended: a line for each, with the
// pid and the start time of its process. It is read by the next program only.
const endingsName = "endings"

// maxEndings bounds, in bytes, what is read of it.
const maxEndings = 1 << 20

// errLeftEnding is why an owner could not be ended by an earlier program.
var errLeftEnding = errors.New("it closed its connection and was being ended when an earlier lock daemon ended, and it is still there: nobody ends it any more")

// noteEnding is told before SIGTERM is sent. A daemon that is killed between that and SIGKILL
// leaves an owner that looks like all others. Without the file it is ended all the same, so
// that it cannot be written is no reason for anything.
func (i *instance) noteEnding(e locking.Event) {
	if e.Kind != locking.OwnerEnding {
		return
	}
	start, ok := startTime(e.Owner.PID)
	if !ok {
		return
	}
	path, how := filepath.Join(i.cfg.RunDir, endingsName), os.O_WRONLY|os.O_CREATE|os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > maxEndings/2 {
		how |= os.O_TRUNC // those of months ago, in a daemon that was never started again
	}
	f, err := os.OpenFile(path, how, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d %d\n", e.Owner.PID, start)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		i.log.Warn("the next start would not know that this owner is being ended", "pid", e.Owner.PID, "reason", err)
	}
	endingNoted.Pass()
}

// tellEndings says which owners an earlier program has not ended although it had begun to. They
// are not ended here: what they hold is as safe as before, and an operator may have mended
// meanwhile what they wait for.
func (i *instance) tellEndings() {
	path := filepath.Join(i.cfg.RunDir, endingsName)
	f, err := os.Open(path)
	if err != nil {
		return // as ever
	}
	data, _ := io.ReadAll(io.LimitReader(f, maxEndings))
	f.Close()
	noted := map[int32]uint64{}
	for line := range strings.Lines(string(data)) {
		var pid int32
		var start uint64
		if n, _ := fmt.Sscan(line, &pid, &start); n == 2 {
			noted[pid] = start
		}
	}
	var left strings.Builder // for the program after this one
	for _, h := range i.locks.Holders() {
		then, ok := noted[h.Owner.PID]
		if !ok {
			continue
		}
		delete(noted, h.Owner.PID) // it may hold more
		if now, ok := startTime(h.Owner.PID); ok && now == then {
			fmt.Fprintf(&left, "%d %d\n", h.Owner.PID, then)
			i.observe()(locking.Event{Kind: locking.OwnerEndFailed, Owner: h.Owner, Err: errLeftEnding, Time: time.Now()})
		}
	}
	if left.Len() == 0 {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, []byte(left.String()), 0o600)
	}
	if err != nil {
		i.log.Warn("who is being ended cannot be noted", "reason", err)
	}
}

func startTime(pid int32) (start uint64, ok bool) {
	p, err := owner.Processes{}.Open(pid)
	if err != nil {
		return 0, false
	}
	defer p.Close()
	return p.StartTime(), true
}
