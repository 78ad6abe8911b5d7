// Package logs makes the daemon's logger: text for a person at a terminal,
// fields for journald under systemd, JSON for collectors.
//
// What it promises:
//
//   - Who logs waits for nobody. One goroutine writes, in the order in which records were
//     logged, as soon as those goroutines had their turn that were ready to run, and
//     what they have logged in one call for text and JSON.
//   - What waits to be written takes a few megabytes at most. Records beyond that are
//     dropped, and a line where they would be says how many.
//   - A record is made to text, or to fields, before the call that logs it returns: what
//     it was made of may change after that.
//   - Flush and Close wait for flushTime at most.
//   - Where it goes, and from which level on, can be changed at any time.
//
// A logger may be used from many goroutines.
package logs

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// Levels are the names that New takes for its level.
var Levels = map[string]slog.Level{
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
}

// flushTime is how long Flush and Close wait for who does not take what is logged.
const flushTime = time.Second

// New makes a logger with a level of Levels and a format, "text", "json",
// "journal" or "auto": journal if stderr is connected to journald, else text.
// The caller must Close it.
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

// Flush waits until what was logged is written, for a second at most, and reports
// whether it is. Of a logger that New has not made it knows nothing.
func Flush(log *slog.Logger) bool {
	h, ok := log.Handler().(handler)
	return ok && h.queue.flush(flushTime)
}

// Close is Flush for the last time: what is logged after it is lost. With it ends the
// goroutine that writes, unless it reports false and that waits still.
func Close(log *slog.Logger) bool {
	h, ok := log.Handler().(handler)
	if !ok {
		return false
	}
	h.closeOutputs()
	return h.queue.close(flushTime)
}

// Dropped is how many records were lost since New, as they could not be written in time.
func Dropped(log *slog.Logger) uint64 {
	h, ok := log.Handler().(handler)
	if !ok {
		return 0
	}
	h.queue.mu.Lock()
	defer h.queue.mu.Unlock()
	return h.queue.dropped
}

func newLogger(level slog.Level, format string, w io.Writer, send sendFunc) (*slog.Logger, error) {
	orText := func(send sendFunc) func(message) {
		return sendOr(send, slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	toJournal := orText(send)
	now, err := newHandler(format, w, toJournal)
	if err != nil {
		return nil, err
	}
	log := slog.New(now)
	s := &shared{queue: newQueue(func(records uint64) {
		log.Warn("records of this log are missing here: it was not read, or not as fast as it was written", "event", "log-lost", "records", records)
	})}
	first, onStderr := toStderr, format
	if format == "journal" {
		first, onStderr = toJournald, "text" // should it be wanted later
	}
	s.first = []output{{kind: first, level: level}}
	start := &rules{level: level}
	start.setOutputs(s.first)
	s.rules.Store(start)
	h := handler{shared: s}
	h.sinks[toStderr], err = newHandler(onStderr, queuedWriter{s.queue, w}, nil)
	h.sinks[toJournald] = &journalHandler{level: slog.LevelDebug, send: func(m message) { s.queue.put(m.bytes(), func() { toJournal(m) }) }}
	h.sinks[toFile] = newFilesHandler(s)
	h.sinks[toSyslog] = &journalHandler{level: slog.LevelDebug, send: s.toSyslogs(orText)}
	return slog.New(h), err
}

// newHandler makes one that takes all levels.
func newHandler(format string, w io.Writer, toJournal func(message)) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: slog.LevelDebug}
	switch format {
	case "text":
		return slog.NewTextHandler(w, options), nil
	case "json":
		return slog.NewJSONHandler(w, options), nil
	case "journal":
		return &journalHandler{level: slog.LevelDebug, send: toJournal}, nil
	}
	return nil, fmt.Errorf("log format %q is not known", format)
}

// queuedWriter is for handlers of slog, which write a record with one call.
type queuedWriter struct {
	queue *queue
	w     io.Writer
}

func (q queuedWriter) Write(p []byte) (int, error) {
	q.queue.putLine(q.w, slices.Clone(p)) // the handler uses it again
	return len(p), nil
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
