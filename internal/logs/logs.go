// Package logs makes the daemon's logger: text for a person at a terminal,
// fields for journald under systemd, JSON for collectors.
//
// What it promises:
//
//   - Who logs waits for nobody. One goroutine writes, in the order in which records were
//     logged, at once if it can.
//   - What waits to be written takes a few megabytes at most. Records beyond that are
//     dropped, and a line where they would be says how many.
//   - A record is made to text, or to fields, before the call that logs it returns: what
//     it was made of may change after that.
//   - Flush and Close wait for flushTime at most.
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

// New is Open with a level, a format and nothing else.
func New(level, format string, stderr *os.File) (*slog.Logger, error) {
	return Open(Options{Level: level, Format: format}, stderr)
}

// Options are what is logged, and where to.
type Options struct {
	Level  string // one of Levels, for what no filter is for
	Format string // text, json, journal or auto: journal if stderr is connected to journald, else text; of no account if there are Outputs
	// Filters are for records of some parts of the program, Outputs for places other than
	// stderr; see ParseFilters and ParseOutputs.
	Filters []Filter
	Outputs []Output
}

// Open makes a logger. The caller must Close it.
func Open(o Options, stderr *os.File) (*slog.Logger, error) {
	l, ok := Levels[o.Level]
	if !ok {
		return nil, fmt.Errorf("log level %q is not known", o.Level)
	}
	format := o.Format
	if format == "auto" {
		format = "text"
		if isJournal(stderr, os.Getenv("JOURNAL_STREAM")) {
			format = "journal"
		}
	}
	if len(o.Filters) == 0 && len(o.Outputs) == 0 {
		return newLogger(l, format, stderr, journal.Send)
	}
	return newSpread(l, format, o, stderr, journal.Send)
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
	if !ok || !h.queue.close(flushTime) {
		return false
	}
	for _, f := range h.files {
		f.Close()
	}
	return true
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

// handler makes records ready for queue.
type handler struct {
	slog.Handler
	queue *queue
	files []*os.File // of outputs, which Close closes
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.queue, h.files}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.queue, h.files}
}

func newLogger(level slog.Level, format string, w io.Writer, send sendFunc) (*slog.Logger, error) {
	toJournal := sendOr(send, slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	now, err := newHandler(slog.LevelDebug, format, w, toJournal)
	if err != nil {
		return nil, err
	}
	q := newQueue(tellLost(now))
	later, err := newHandler(level, format, queuedWriter{q, w}, func(m message) { q.put(m.bytes(), func() { toJournal(m) }) })
	return slog.New(handler{later, q, nil}), err
}

// tellLost writes, at once, the line about records that were dropped.
func tellLost(now slog.Handler) func(uint64) {
	log := slog.New(now)
	return func(records uint64) {
		log.Warn("records of this log are missing here: it was not read, or not as fast as it was written", "event", "log-lost", "records", records)
	}
}

func newHandler(level slog.Level, format string, w io.Writer, toJournal func(message)) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.NewTextHandler(w, options), nil
	case "json":
		return slog.NewJSONHandler(w, options), nil
	case "journal":
		return &journalHandler{level: level, send: toJournal}, nil
	}
	return nil, fmt.Errorf("log format %q is not known", format)
}

// queuedWriter is for handlers of slog, which write a record with one call.
type queuedWriter struct {
	queue *queue
	w     io.Writer
}

func (q queuedWriter) Write(p []byte) (int, error) {
	line := slices.Clone(p) // the handler uses it again
	q.queue.put(len(line), func() { _, _ = q.w.Write(line) })
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
