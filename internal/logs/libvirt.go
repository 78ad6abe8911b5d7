package logs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
)

// What libvirt's daemons are told about their log, as virt-admin has it: levels 1 to
// 4, outputs "LEVEL:stderr", "LEVEL:journald", "LEVEL:syslog:NAME" and
// "LEVEL:file:PATH", filters "LEVEL:SOURCE". Formats and words of errors are those of src/util/virlog.c in
// libvirt 9.0.

// maxFilters and maxOutputs bound what a record is compared with, and written to.
const maxFilters, maxOutputs = 64, 16

var (
	levels   = [...]slog.Level{1: slog.LevelDebug, 2: slog.LevelInfo, 3: slog.LevelWarn, 4: slog.LevelError}
	kindName = [places]string{toStderr: "stderr", toJournald: "journald", toFile: "file", toSyslog: "syslog"}
)

// levelOf reads a level; false if it is none.
func levelOf(s string) (slog.Level, bool) {
	s = strings.TrimLeft(s, "0")
	if len(s) != 1 || s[0] < '1' || s[0] > '4' {
		return 0, false
	}
	return levels[s[0]-'0'], true
}

func numberOf(l slog.Level) int {
	for n := len(levels) - 1; n > 1; n-- {
		if l >= levels[n] {
			return n
		}
	}
	return 1
}

// wrong is an error in libvirt's words, which begin as a sentence does.
func wrong(format string, args ...any) error { return wrongText(fmt.Sprintf(format, args...)) }

type wrongText string

func (w wrongText) Error() string { return string(w) }

var errNotOurs = errors.New("it was not made by this package")

// Outputs says where log goes, and how many places that are.
func Outputs(log *slog.Logger) (text string, n int) {
	h, ok := log.Handler().(handler)
	if !ok {
		return "", 0
	}
	r := h.rules.Load()
	list := make([]string, 0, len(r.outputs))
	for _, o := range r.outputs {
		s := fmt.Sprintf("%d:%s", numberOf(o.level), kindName[o.kind])
		switch o.kind {
		case toFile:
			s += ":" + o.file.path
		case toSyslog:
			s += ":" + o.syslog.tag
		}
		list = append(list, s)
	}
	return strings.Join(list, " "), len(list)
}

// SetOutputs changes where log goes, with all loggers that derive from the same one;
// "" is where it went in the beginning, or what Configure has said. Of several outputs to
// one place the last one counts. Nothing is changed by an error, which is an *fs.PathError
// if a file cannot be opened.
func SetOutputs(log *slog.Logger, text string) error {
	h, ok := log.Handler().(handler)
	if !ok {
		return errNotOurs
	}
	return h.setOutputs(text)
}

func (s *shared) setOutputs(text string) error {
	if strings.TrimSpace(text) == "" {
		s.mu.Lock()
		text = s.configured
		s.mu.Unlock()
	}
	list := s.first
	if words := strings.Fields(text); len(words) > 0 {
		var err error
		if list, err = openOutputs(words); err != nil { // which may wait for storage, and nobody for it
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.rules.Load()
	next.setOutputs(list)
	s.replace(&next)
	return nil
}

// openOutputs reads outputs and opens their files. With an error nothing stays open.
func openOutputs(words []string) (list []output, err error) {
	for _, word := range words {
		o, err := parseOutput(word)
		if err != nil {
			return nil, err
		}
		list = append(slices.DeleteFunc(list, o.samePlace), o)
		if len(list) > maxOutputs {
			return nil, fmt.Errorf("there are more than %d outputs", maxOutputs)
		}
	}
	for i, o := range list {
		if o.kind != toFile {
			continue
		}
		if err := o.file.open(); err != nil {
			for _, before := range list[:i] {
				if before.kind == toFile {
					before.file.close()
				}
			}
			return nil, err
		}
	}
	return list, nil
}

// samePlace says whether another output would write to the place of o.
func (o output) samePlace(other output) bool {
	if o.kind != other.kind {
		return false
	}
	return (o.kind != toFile || o.file.path == other.file.path) && (o.kind != toSyslog || o.syslog.tag == other.syslog.tag)
}

// parseOutput reads one output. Its file is not open yet.
func parseOutput(word string) (o output, err error) {
	part := strings.Split(word, ":")
	if len(part) < 2 {
		return o, wrong("Malformed format for log output '%s'", word)
	}
	level, ok := levelOf(part[0])
	if !ok {
		return o, wrong("Invalid log priority '%s' for log output '%s'", part[0], word)
	}
	kind := slices.Index(kindName[:], part[1])
	if kind < 0 {
		return o, wrong("Invalid log destination '%s' for log output '%s'", part[1], word)
	}
	o = output{kind: kind, level: level}
	name, want := "", 2
	if kind == toFile || kind == toSyslog {
		want = 3
	}
	if len(part) == 3 {
		name = part[2]
	}
	if len(part) != want || want == 3 && name == "" {
		return o, wrong("Log output '%s' does not meet the format requirements for destination type '%s'", word, part[1])
	}
	switch {
	case kind == toFile && !filepath.IsAbs(name):
		return o, wrong("Log output '%s' has no absolute path: begin it with /", word)
	case kind == toFile:
		o.file = &logFile{path: name}
	case kind == toSyslog:
		o.syslog = &syslogOut{tag: name}
	}
	return o, nil
}

// Configure is SetFilters and SetOutputs for a configuration, which later is what "" means
// for SetOutputs. With "" nothing is changed.
func Configure(log *slog.Logger, filters, outputs string) error {
	h, ok := log.Handler().(handler)
	if !ok {
		return errNotOurs
	}
	if err := SetFilters(log, filters); err != nil {
		return err
	}
	if err := h.setOutputs(outputs); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.configured = outputs
	return nil
}

// Filters returns the filters of log, and how many there are.
func Filters(log *slog.Logger) (text string, n int) {
	h, ok := log.Handler().(handler)
	if !ok {
		return "", 0
	}
	var b strings.Builder
	list := h.rules.Load().filters
	for _, f := range list {
		fmt.Fprintf(&b, "%d:%s ", numberOf(f.level), unescape.Replace(f.match)) // libvirt has a space after each
	}
	return b.String(), len(list)
}

// SetFilters changes from which level on records of some sources are kept, with all
// loggers that derive from the same one; "" is no filters. A source is a package of
// vmlockd, such as "rpc" or "backend.cluster", and a part of its name is enough. Of
// what is kept an output takes what has its own level. Nothing is changed by an error.
func SetFilters(log *slog.Logger, text string) error {
	h, ok := log.Handler().(handler)
	if !ok {
		return errNotOurs
	}
	var list []filter
	for word := range strings.FieldsSeq(text) {
		part := strings.Split(word, ":")
		if len(part) < 2 {
			return wrong("Malformed format for filter '%s'", word)
		}
		level, ok := levelOf(part[0])
		if !ok {
			return wrong("Invalid priority '%s' for filter '%s'", part[0], word)
		}
		match := strings.TrimPrefix(part[1], "+") // once, a trace of the stack was wanted by that
		if match == "" {
			return wrong("Invalid match string '%s'", part[1])
		}
		if len(list) == maxFilters {
			return fmt.Errorf("there are more than %d filters", maxFilters)
		}
		list = append(list, filter{level, "*" + escape.Replace(match) + "*"})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := *h.rules.Load()
	next.filters = list
	h.replace(&next)
	return nil
}

// Patterns of libvirt have * and ? only, and those of package path more.
var (
	escape   = strings.NewReplacer(`\`, `\\`, `[`, `\[`)
	unescape = strings.NewReplacer(`\\`, `\`, `\[`, `[`)
)
