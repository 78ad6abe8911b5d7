package logs

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
)

// logFile is one that records are appended to.
type logFile struct {
	path string
	f    *os.File // nil until open
}

// open opens or makes the file. It does not wait for who reads from a pipe.
func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		if err == nil {
			err = &fs.PathError{Op: "open", Path: l.path, Err: syscall.EINVAL}
		}
		return err
	}
	l.f = f
	return nil
}

func (l *logFile) close() { l.f.Close() }

// filesHandler makes a record to text once, for all files that want it.
type filesHandler struct {
	slog.Handler // writes to files
	files        *filesWriter
}

func newFilesHandler(s *shared) filesHandler {
	w := &filesWriter{shared: s}
	return filesHandler{slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}), w}
}

func (h filesHandler) Handle(ctx context.Context, rec slog.Record) error {
	h.files.mu.Lock()
	defer h.files.mu.Unlock()
	h.files.level = rec.Level
	return h.Handler.Handle(ctx, rec)
}

func (h filesHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return filesHandler{h.Handler.WithAttrs(attrs), h.files}
}

func (h filesHandler) WithGroup(name string) slog.Handler {
	return filesHandler{h.Handler.WithGroup(name), h.files}
}

// filesWriter appends to the files that the rules name when a record is logged.
type filesWriter struct {
	*shared

	mu    sync.Mutex // is held while a record is made; guards level
	level slog.Level // of that record
}

func (w *filesWriter) Write(p []byte) (int, error) {
	for _, o := range w.rules.Load().outputs {
		if o.kind == toFile && w.level >= o.level {
			_, _ = queuedWriter{w.queue, o.file.f}.Write(p)
		}
	}
	return len(p), nil
}
