package daemon

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/logs"
)

// maxTakenBackLogged is how many locks that are taken back have a line each that
// is seen at log.level info. A line for each of thousands would delay the first
// answer, and use up what the journal takes of a service in a while (RateLimitBurst=
// of journald.conf, 10,000 lines); one more line says how many there were.
const maxTakenBackLogged = 200

// logEvents writes one line for each thing that happens to a lock.
func logEvents(log *slog.Logger) func(locking.Event) {
	var takenBack atomic.Int64
	return func(e locking.Event) {
		level, event, message := describe(e.Kind)
		if e.Kind == locking.TakenBack && takenBack.Add(1) > maxTakenBackLogged {
			level = slog.LevelDebug
		}
		ctx := context.Background()
		if !log.Enabled(ctx, level) {
			return
		}
		attrs := make([]slog.Attr, 0, 12)
		attrs = append(attrs, slog.String(logs.EventKey, event))
		if e.Ref != (locking.Ref{}) {
			attrs = append(attrs,
				slog.String("lockspace", e.Ref.Lockspace),
				slog.String("name", e.Ref.Name),
				slog.String("mode", e.Mode.String()))
		}
		attrs = append(attrs,
			slog.String("owner", e.Owner.Name),
			slog.String("uuid", locking.FormatUUID(e.Owner.UUID)),
			slog.Int("pid", int(e.Owner.PID)))
		if e.Err != nil {
			attrs = append(attrs, slog.String("reason", e.Err.Error()))
			if cause := locking.Cause(e.Err); cause != "" {
				attrs = append(attrs, slog.String("cause", cause))
			}
		}
		if e.Locks > 0 {
			attrs = append(attrs, slog.Int("locks", e.Locks))
		}
		if e.Held > 0 {
			attrs = append(attrs, slog.Duration("held", e.Held))
		}
		if e.Took > 0 {
			attrs = append(attrs, slog.Duration("took", e.Took))
		}
		log.LogAttrs(ctx, level, message, attrs...)
	}
}

// observers tells all.
func observers(list ...func(locking.Event)) func(locking.Event) {
	return func(e locking.Event) {
		for _, f := range list {
			f(e)
		}
	}
}

// tellLater is for locking.Options.Later.
func tellLater(log *slog.Logger) func(int, error, time.Duration) {
	return func(entries int, why error, took time.Duration) {
		if why == nil {
			log.Info("locks from before the restart were taken back, now that the kernel could be asked", "event", "locks-restored", "entries", entries, "took", took)
			return
		}
		log.Warn("locks from before the restart cannot be taken back yet: they stay held, and their disks are refused until then",
			"event", "locks-not-yet", "entries", entries, "reason", why, "cause", locking.Cause(why))
	}
}

// describe gives the event of logs.Events and a sentence for a kind.
func describe(k locking.EventKind) (level slog.Level, event, message string) {
	switch k {
	case locking.Granted:
		return slog.LevelInfo, "lock-granted", "lock granted"
	case locking.Refused:
		return slog.LevelWarn, "lock-refused", "lock refused"
	case locking.Released:
		return slog.LevelInfo, "lock-released", "lock released"
	case locking.ReleasedGone:
		return slog.LevelInfo, "lock-released-gone", "lock released, its owner has ended"
	case locking.ReleaseFailed:
		return slog.LevelError, "lock-release-failed", "lock could not be released and stays held"
	case locking.OwnerEnding:
		return slog.LevelWarn, "owner-ending", "owner closed its connection while it holds locks: ending it"
	case locking.OwnerEndFailed:
		return slog.LevelError, "owner-end-failed", "owner could not be ended: it keeps its locks"
	case locking.OwnerUnverified:
		return slog.LevelWarn, "owner-unverified", "owner registered with a pid that no process has: only a release ends its locks"
	case locking.OwnerGone:
		return slog.LevelInfo, "owner-gone", "owner has ended: its locks are released"
	case locking.Forced:
		return slog.LevelWarn, "lock-forced", "lock released by force"
	case locking.TakenBack:
		return slog.LevelInfo, "lock-taken-back", "lock taken back after a restart"
	case locking.ReleasedUntold:
		return slog.LevelInfo, "lock-released-untold", "lock released that was being taken or given back when the daemon ended"
	case locking.Lost:
		return slog.LevelError, "lock-lost", "lock could not be taken back after a restart: end this virtual machine; nobody gets the disk before"
	case locking.TakenAgain:
		return slog.LevelWarn, "lock-taken-again", "virtual machine runs and its lock was given back: taken again for it"
	case locking.NotTakenAgain:
		return slog.LevelError, "lock-not-taken-again", "virtual machine runs and its lock was given back, and cannot be taken again: it writes a disk that is not locked for it"
	}
	return slog.LevelError, "", "unknown event"
}
