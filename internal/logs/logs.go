// Package logs makes the daemon's logger: text for a person at a terminal,
// fields for journald under systemd, JSON for collectors.
package logs

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
)

// Levels are the names that New takes for its level.
var Levels = map[string]slog.Level{
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
}

// New makes a logger with a level of Levels and a format, "text", "json",
// "journal" or "auto": journal if stderr is connected to journald, else text.
func New(level, format string, stderr *os.File) (*slog.Logger, error) {
	l, ok := Levels[level]
	if !ok {
		return nil, fmt.Errorf("log level %q is not known", level)
	}
	if format == "auto" {
		format = "text"
		if isJournal(stderr, os.Getenv("JOURNAL_STREAM")) {
			format = "journal"
		}
	}
	return newLogger(l, format, stderr, journal.Send)
}

func newLogger(level slog.Level, format string, w io.Writer, send sendFunc) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "journal":
		return slog.New(&journalHandler{level: level, send: send, fallback: slog.NewTextHandler(w, options)}), nil
	}
	return nil, fmt.Errorf("log format %q is not known", format)
}

// isJournal tells if f is the stream that systemd made for a unit:
// JOURNAL_STREAM has its device and inode (systemd.exec(5)). A child of a unit
// inherits the variable, but not necessarily the stream.
func isJournal(f *os.File, stream string) bool {
	var dev, ino uint64
	if n, err := fmt.Sscanf(stream, "%d:%d", &dev, &ino); n != 2 || err != nil {
		return false
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return false
	}
	return st.Dev == dev && st.Ino == ino
}
