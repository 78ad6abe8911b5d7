package logs

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// The syntax of log_filters and log_outputs is libvirt's, of virtlockd.conf and of
// virt-admin: settings that are separated by blanks, each with a number of Priorities,
// a colon and the rest (libvirt's docs/logging.rst).

// Bounds of what is read.
const (
	// MaxFilters and MaxOutputs bound what one text may set.
	MaxFilters = 100
	MaxOutputs = 16
	// maxPart bounds, in bytes, a match and the name of a file or of a syslog.
	maxPart = 4096
)

// Priorities are libvirt's numbers of levels, from 1 on.
var Priorities = []string{"debug", "info", "warning", "error"}

// Filter is for the parts of the program whose names contain Match. The first that
// matches counts, and its level then in place of the logger's.
type Filter struct {
	Level slog.Level
	Match string
}

// Output is a place for what is logged.
type Output struct {
	Level slog.Level // what is below it is left out
	Kind  string     // stderr, journald, syslog or file
	// Name is the file's absolute path, or how syslog calls the program; else empty.
	Name string
}

// ParseFilters reads filters such as "1:locking 4:rpc".
func ParseFilters(text string) (list []Filter, err error) {
	for _, word := range strings.Fields(text) {
		level, match, ok := cut(word)
		match = strings.TrimPrefix(match, "+") // once asked for a stack trace, and libvirt ignores it since 7.10
		if !ok || match == "" || len(match) > maxPart {
			return nil, fmt.Errorf("%q is no filter: write a number from 1 (debug) to 4 (error), a colon and part of a name, as in \"1:locking\", with blanks between filters", short(word))
		}
		if len(list) == MaxFilters {
			return nil, fmt.Errorf("there are more than %d filters", MaxFilters)
		}
		list = append(list, Filter{level, match})
	}
	return list, nil
}

// ParseOutputs reads outputs such as "3:syslog:vmlockd 1:file:/var/log/vmlockd.log".
func ParseOutputs(text string) (list []Output, err error) {
	const remedy = `write a number from 1 (debug) to 4 (error) and where to, as in "2:stderr", "2:journald", "2:syslog:vmlockd" or "1:file:/var/log/vmlockd/vmlockd.log", with blanks between outputs`
	for _, word := range strings.Fields(text) {
		level, rest, ok := cut(word)
		o := Output{Level: level}
		o.Kind, o.Name, _ = strings.Cut(rest, ":")
		switch o.Kind {
		case "stderr", "journald":
			ok = ok && rest == o.Kind
		case "syslog":
			ok = ok && o.Name != "" && len(o.Name) <= maxPart && !strings.ContainsRune(o.Name, 0)
		case "file":
			ok = ok && filepath.IsAbs(o.Name) && len(o.Name) <= maxPart && !strings.ContainsRune(o.Name, 0)
		default:
			ok = false
		}
		if !ok {
			return nil, fmt.Errorf("%q is no output: %s", short(word), remedy)
		}
		if len(list) == MaxOutputs {
			return nil, fmt.Errorf("there are more than %d outputs", MaxOutputs)
		}
		list = append(list, o)
	}
	return list, nil
}

func cut(word string) (level slog.Level, rest string, ok bool) {
	number, rest, ok := strings.Cut(word, ":")
	if !ok || len(number) != 1 || number[0] < '1' || int(number[0]-'1') >= len(Priorities) {
		return 0, "", false
	}
	return Levels[Priorities[number[0]-'1']], rest, true
}

// short is what an error shows of a word.
func short(word string) string {
	const most = 100
	if len(word) > most {
		return word[:most] + "..."
	}
	return word
}

// Background is where to log without a terminal: journald, or the file if there is none.
func Background(file string) []Output {
	if journal.Enabled() {
		return []Output{{Level: slog.LevelDebug, Kind: "journald"}}
	}
	return []Output{{Level: slog.LevelDebug, Kind: "file", Name: file}}
}
