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

// The places where records can go. At most one of each is used at a time.
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
	outputs [places]slog.Level // off where nothing goes
	order   []int              // of outputs that are not off, as they were set
	file    *logFile           // nil without toFile
	syslog  *syslogOut         // nil without toSyslog
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
	return l >= max(least, slices.Min(r.outputs[:]))
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
	start *rules // with which the logger was made

	mu sync.Mutex // is held while rules are replaced
}

// replace makes r the rules. What they do not need any more is closed when all that
// was logged is written. It is called with mu held.
func (s *shared) replace(r *rules) {
	before := s.rules.Swap(r)
	if f := before.file; f != nil && f != r.file {
		s.queue.after(f.close)
	}
	if out := before.syslog; out != nil && out != r.syslog {
		s.queue.after(out.close)
	}
}

// closeOutputs gives up what was opened.
func (s *shared) closeOutputs() {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := *s.rules.Load()
	r.file, r.syslog = nil, nil
	r.outputs[toFile], r.outputs[toSyslog] = off, off
	r.order = slices.DeleteFunc(slices.Clone(r.order), func(place int) bool { return place == toFile || place == toSyslog })
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
		if rec.Level >= r.outputs[i] {
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
