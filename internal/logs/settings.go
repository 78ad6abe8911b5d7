package logs

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// Priorities are libvirt's numbers of levels, from 1 on.
var Priorities = []string{"debug", "info", "warning", "error"}

// maxPart bounds, in bytes, a match and the name of a file or of a syslog in a configuration.
const maxPart = 4096

// CheckFilters is nil if Configure takes these filters, such as "1:locking 4:rpc". An error says
// what to write instead, for a person who has written a file.
func CheckFilters(text string) error {
	n := 0
	for word := range strings.FieldsSeq(text) {
		level, match, ok := strings.Cut(word, ":")
		match = strings.TrimPrefix(match, "+") // once asked for a stack trace, and libvirt ignores it since 7.10
		if _, known := levelOf(level); !ok || !known || match == "" || strings.Contains(match, ":") || len(match) > maxPart {
			return fmt.Errorf("%q is no filter: write a number from 1 (debug) to 4 (error), a colon and part of a name, as in \"1:locking\", with blanks between filters", short(word))
		}
		if n++; n > maxFilters {
			return fmt.Errorf("there are more than %d filters", maxFilters)
		}
	}
	return nil
}

// CheckOutputs is the same for outputs, such as "3:syslog:vmlockd 1:file:/var/log/vmlockd.log".
// It opens no file.
func CheckOutputs(text string) error {
	const remedy = `write a number from 1 (debug) to 4 (error) and where to, as in "2:stderr", "2:journald", "2:syslog:vmlockd" or "1:file:/var/log/vmlockd/vmlockd.log", with blanks between outputs`
	n := 0
	for word := range strings.FieldsSeq(text) {
		if _, err := parseOutput(word); err != nil || len(word) > maxPart || strings.ContainsRune(word, 0) {
			return fmt.Errorf("%q is no output: %s", short(word), remedy)
		}
		if n++; n > maxOutputs {
			return fmt.Errorf("there are more than %d outputs", maxOutputs)
		}
	}
	return nil
}

// short is what an error shows of a word.
func short(word string) string {
	const most = 100
	if len(word) > most {
		return word[:most] + "..."
	}
	return word
}

// Background is the output for a daemon without a terminal: journald, or the file if there is none.
func Background(file string) string {
	if journal.Enabled() {
		return "1:journald"
	}
	return "1:file:" + file
}
