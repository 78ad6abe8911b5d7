package logs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
)

// What libvirt's daemons are told about their log, as virt-admin has it: levels 1 to
// 4, outputs "LEVEL:stderr", "LEVEL:journald", "LEVEL:syslog:NAME" and
// "LEVEL:file:PATH", filters "LEVEL:SOURCE". Formats and words of errors are those of src/util/virlog.c in
// libvirt 9.0.

// maxFilters bounds what a record is compared with.
const maxFilters = 64

var (
	levels    = [...]slog.Level{1: slog.LevelDebug, 2: slog.LevelInfo, 3: slog.LevelWarn, 4: slog.LevelError}
	placeName = [places]string{toStderr: "stderr", toJournald: "journald", toFile: "file", toSyslog: "syslog"}
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
	list := make([]string, 0, len(r.order))
	for _, place := range r.order {
		s := fmt.Sprintf("%d:%s", numberOf(r.outputs[place]), placeName[place])
		switch place {
		case toFile:
			s += ":" + r.file.path
		case toSyslog:
			s += ":" + r.syslog.tag
		}
		list = append(list, s)
	}
	return strings.Join(list, " "), len(list)
}

// SetOutputs changes where log goes, with all loggers that derive from the same one;
// "" is where it went in the beginning. There can be one output of each kind; of several
// the last one counts, but a second file is an error. Nothing is changed by an error, which is an
// *fs.PathError if a file cannot be opened.
func SetOutputs(log *slog.Logger, text string) error {
	h, ok := log.Handler().(handler)
	if !ok {
		return errNotOurs
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.rules.Load()
	next := rules{level: before.level, filters: before.filters, outputs: h.start.outputs, order: h.start.order}
	if words := strings.Fields(text); len(words) > 0 {
		next.outputs, next.order = nowhere, nil
		path, tag := "", ""
		for _, word := range words {
			place, level, name, err := parseOutput(word)
			switch {
			case err != nil:
				return err
			case place == toFile && path != "" && path != name:
				return wrong("Log output '%s' is the second file, and vmlockd writes to one at most", word)
			case place == toFile:
				path = name
			case place == toSyslog:
				tag = name
			}
			if next.outputs[place] == off {
				next.order = append(next.order, place)
			}
			next.outputs[place] = level
		}
		if path != "" {
			f, err := openFile(path)
			if err != nil {
				return err
			}
			next.file = f
		}
		if tag != "" {
			next.syslog = &syslogOut{tag: tag}
		}
	}
	h.replace(&next)
	return nil
}

var nowhere = [places]slog.Level{off, off, off, off}

func parseOutput(word string) (place int, level slog.Level, name string, err error) {
	part := strings.Split(word, ":")
	if len(part) < 2 {
		return 0, 0, "", wrong("Malformed format for log output '%s'", word)
	}
	level, ok := levelOf(part[0])
	if !ok {
		return 0, 0, "", wrong("Invalid log priority '%s' for log output '%s'", part[0], word)
	}
	want := 2
	switch part[1] {
	case "stderr":
		place = toStderr
	case "journald":
		place = toJournald
	case "file":
		place, want = toFile, 3
	case "syslog":
		place, want = toSyslog, 3
	default:
		return 0, 0, "", wrong("Invalid log destination '%s' for log output '%s'", part[1], word)
	}
	if len(part) != want || want == 3 && part[2] == "" {
		return 0, 0, "", wrong("Log output '%s' does not meet the format requirements for destination type '%s'", word, part[1])
	}
	if want == 3 {
		name = part[2]
	}
	if place == toFile && !filepath.IsAbs(name) {
		return 0, 0, "", wrong("Log output '%s' has no absolute path: begin it with /", word)
	}
	return place, level, name, nil
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
