package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"runtime"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// spread gives each record to all outputs that want it, if it is wanted at all.
type spread struct {
	level   slog.Level
	filters []Filter
	outs    []out
}

type out struct {
	level slog.Level
	slog.Handler
}

// newSpread is newLogger with filters and outputs. Without outputs there is one, in the
// given format.
func newSpread(level slog.Level, format string, o Options, stderr *os.File, send sendFunc) (*slog.Logger, error) {
	var files []*os.File
	fail := func(err error) (*slog.Logger, error) {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	type place struct {
		out    Output
		format string
		w      io.Writer
		send   sendFunc
	}
	places := []place{{Output{Level: slog.LevelDebug}, format, stderr, send}}
	if len(o.Outputs) > 0 {
		places = nil
	}
	for _, out := range o.Outputs {
		p := place{out, "text", stderr, send}
		switch out.Kind {
		case "journald":
			p.format = "journal"
		case "syslog":
			p.format, p.send = "journal", (&lazySyslog{dial: func() (*syslog.Writer, error) { return syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, out.Name) }}).send
		case "file":
			f, err := os.OpenFile(out.Name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			if err != nil {
				return fail(fmt.Errorf("output of the log: %w", err))
			}
			files = append(files, f)
			p.w = f
		}
		places = append(places, p)
	}
	now, later := spread{level: slog.LevelDebug}, spread{level: level, filters: o.Filters}
	var direct []slog.Handler
	for _, p := range places {
		toJournal := sendOr(p.send, slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		h, err := newHandler(slog.LevelDebug, p.format, p.w, toJournal)
		if err != nil {
			return fail(err)
		}
		now.outs = append(now.outs, out{p.out.Level, h})
		direct = append(direct, h)
	}
	q := newQueue(tellLost(now))
	for i, p := range places {
		toJournal := sendOr(p.send, slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		h, err := newHandler(slog.LevelDebug, p.format, queuedWriter{q, p.w}, func(m message) { q.put(m.bytes(), func() { toJournal(m) }) })
		if err != nil { // it was made once already
			h = direct[i]
		}
		later.outs = append(later.outs, out{p.out.Level, h})
	}
	return slog.New(handler{later, q, files}), nil
}

func (s spread) Enabled(_ context.Context, l slog.Level) bool {
	least := s.level
	for _, f := range s.filters {
		least = min(least, f.Level)
	}
	return l >= least
}

func (s spread) Handle(ctx context.Context, r slog.Record) (first error) {
	want := s.level
	if len(s.filters) > 0 {
		name := sourceOf(r.PC)
		for _, f := range s.filters {
			if strings.Contains(name, f.Match) {
				want = f.Level
				break
			}
		}
	}
	if r.Level < want {
		return nil
	}
	for _, o := range s.outs {
		if r.Level < o.level {
			continue
		}
		if err := o.Handle(ctx, r.Clone()); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (s spread) WithAttrs(attrs []slog.Attr) slog.Handler {
	return s.with(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (s spread) WithGroup(name string) slog.Handler {
	return s.with(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (s spread) with(f func(slog.Handler) slog.Handler) slog.Handler {
	outs := make([]out, len(s.outs))
	for i, o := range s.outs {
		outs[i] = out{o.level, f(o.Handler)}
	}
	s.outs = outs
	return s
}

// sourceOf is the name of the part of the program that logs: its package without what
// all of them begin with, with points for slashes, as in "backend.local".
func sourceOf(pc uintptr) string {
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	dir, last := "", frame.Function
	if i := strings.LastIndexByte(last, '/'); i >= 0 {
		dir, last = last[:i+1], last[i+1:]
	}
	last, _, _ = strings.Cut(last, ".") // what follows is in the package
	name := dir + last
	if _, rest, ok := strings.Cut(name, "/vmlockd/"); ok {
		name = strings.TrimPrefix(strings.TrimPrefix(rest, "vmlockd/"), "internal/")
	}
	return strings.ReplaceAll(name, "/", ".")
}

// lazySyslog connects when there is something to say, and again when that is of no use
// any more: who logs to syslog may start before it. Only one goroutine uses it.
type lazySyslog struct {
	dial func() (*syslog.Writer, error)
	w    *syslog.Writer // nil before
}

func (s *lazySyslog) send(text string, p journal.Priority, _ map[string]string) error {
	if s.w == nil {
		w, err := s.dial()
		if err != nil {
			return err
		}
		s.w = w
	}
	switch p {
	case journal.PriErr:
		return s.w.Err(text)
	case journal.PriWarning:
		return s.w.Warning(text)
	case journal.PriDebug:
		return s.w.Debug(text)
	}
	return s.w.Info(text)
}
