package daemon

import (
	"context"
	"log/slog"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// logEvents writes one line for each thing that happens to a lock.
func logEvents(log *slog.Logger) func(locking.Event) {
	return func(e locking.Event) {
		level, message := describe(e.Kind)
		ctx := context.Background()
		if !log.Enabled(ctx, level) {
			return
		}
		attrs := make([]slog.Attr, 0, 10)
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

func describe(k locking.EventKind) (slog.Level, string) {
	switch k {
	case locking.Granted:
		return slog.LevelInfo, "lock granted"
	case locking.Refused:
		return slog.LevelWarn, "lock refused"
	case locking.Released:
		return slog.LevelInfo, "lock released"
	case locking.ReleasedGone:
		return slog.LevelInfo, "lock released, its owner has ended"
	case locking.ReleaseFailed:
		return slog.LevelError, "lock could not be released and stays held"
	case locking.OwnerEnding:
		return slog.LevelWarn, "owner closed its connection while it holds locks: ending it"
	case locking.OwnerEndFailed:
		return slog.LevelError, "owner could not be ended: it keeps its locks"
	case locking.OwnerUnverified:
		return slog.LevelWarn, "owner registered with a pid that no process has: only a release ends its locks"
	case locking.TakenBack:
		// One line says how many there were: a line for each would delay the first
		// answer, and use up what the journal takes of a service in a while
		// (RateLimitBurst= of journald.conf, 10,000 lines).
		return slog.LevelDebug, "lock taken back after a restart"
	case locking.ReleasedUntold:
		return slog.LevelInfo, "lock released that was being taken or given back when the daemon ended"
	case locking.Lost:
		return slog.LevelError, "lock could not be taken back after a restart: end this virtual machine; nobody gets the disk before"
	case locking.Forced:
		return slog.LevelWarn, "lock released by an operator"
	}
	return slog.LevelError, "unknown event"
}
