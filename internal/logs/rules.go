package logs

import (
	"context"
	"log/slog"
	"math"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// The kinds of places where records can go.
const (
	toStderr = iota // as text or JSON
	toJournald
	toFile // as text
	toSyslog
	places
)

// off is a level that no record has.
const off = slog.Level(math.MaxInt)

// rules say which records go where. They are not changed, but replaced.
type rules struct {
	level   slog.Level // of records from sources that no filter names
	filters []filter
	outputs []output           // one to stderr and one to journald at most
	least   [places]slog.Level // of the outputs of each kind; off where there is none
}

// output is one place, and the level from which on records go there.
type output struct {
	kind   int
	level  slog.Level
	file   *logFile   // with toFile
	syslog *syslogOut // with toSyslog
}

// setOutputs is for rules that nobody uses yet.
func (r *rules) setOutputs(list []output) {
	r.outputs = list
	for i := range r.least {
		r.least[i] = off
	}
	for _, o := range list {
		r.least[o.kind] = min(r.least[o.kind], o.level)
	}
}

// filter is what a source's records need to be kept.
type filter struct {
	level slog.Level
	match string // with * and ?, for the whole name of a source
}

// enabled says whether a record of that level may go anywhere, whatever its source is.
func (r *rules) enabled(l slog.Level) bool {
	least := r.level
	for _, f := range r.filters {
		least = min(least, f.level)
	}
	return l >= max(least, slices.Min(r.least[:]))
}

// keeps says whether a record goes to the outputs. Where more than one filter names
// its source the first one counts.
func (r *rules) keeps(rec *slog.Record) bool {
	if len(r.filters) == 0 {
		return rec.Level >= r.level
	}
	name := source(rec.PC)
	for _, f := range r.filters {
		if ok, err := path.Match(f.match, name); ok && err == nil {
			return rec.Level >= f.level
		}
	}
	return rec.Level >= r.level
}

// source names the part of the program that logged a record: its package, without
// what all have in common, and with dots, as libvirt's sources have: "rpc",
// "backend.cluster", "main".
func source(pc uintptr) string {
	if pc == 0 {
		return ""
	}
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	name := frame.Function // module/internal/backend/cluster.(*Backend).Acquire
	slash := strings.LastIndexByte(name, '/') + 1
	if dot := strings.IndexByte(name[slash:], '.'); dot >= 0 {
		name = name[:slash+dot]
	}
	const module = "/vmlockd/"
	if at := strings.LastIndex(name, module); at >= 0 {
		name = strings.TrimPrefix(name[at+len(module):], "internal/")
	}
	return strings.ReplaceAll(name, "/", ".")
}

// shared is what all loggers that derive from one have in common.
type shared struct {
	queue *queue
	rules atomic.Pointer[rules]
	first []output // with which the logger was made

	mu         sync.Mutex // is held while rules are replaced; guards configured
	configured string     // of Configure
}

// replace makes r the rules. What they do not need any more is closed when all that
// was logged is written. It is called with mu held.
func (s *shared) replace(r *rules) {
	for _, o := range s.rules.Swap(r).outputs {
		switch {
		case slices.Contains(r.outputs, o):
		case o.file != nil:
			s.queue.after(o.file.close)
		case o.syslog != nil:
			s.queue.after(o.syslog.close)
		}
	}
}

// closeOutputs gives up what was opened.
func (s *shared) closeOutputs() {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := *s.rules.Load()
	r.setOutputs(slices.DeleteFunc(slices.Clone(r.outputs), func(o output) bool { return o.kind == toFile || o.kind == toSyslog }))
	s.replace(&r)
}

// handler makes records ready for the queue.
type handler struct {
	*shared
	sinks [places]slog.Handler // all of them take any level
}

func (h handler) Enabled(_ context.Context, l slog.Level) bool { return h.rules.Load().enabled(l) }

func (h handler) Handle(ctx context.Context, rec slog.Record) error {
	r := h.rules.Load()
	if !r.keeps(&rec) {
		return nil
	}
	for i, sink := range h.sinks {
		if rec.Level >= r.least[i] {
			_ = sink.Handle(ctx, rec) // into the queue, which takes or counts it
		}
	}
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i := range h.sinks {
		h.sinks[i] = h.sinks[i].WithAttrs(attrs)
	}
	return h
}

func (h handler) WithGroup(name string) slog.Handler {
	for i := range h.sinks {
		h.sinks[i] = h.sinks[i].WithGroup(name)
	}
	return h
}
