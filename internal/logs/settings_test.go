package logs

import (
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestCheckSettings(t *testing.T) {
	if err := CheckFilters(" 1:locking\t4:+util "); err != nil {
		t.Error(err)
	}
	if err := CheckOutputs("1:file:/a 2:stderr 3:syslog:me 4:journald"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"x", "1", "1:", ":x", "0:x", "5:x", "11:x", "1:+", "1:a:b", strings.Repeat("1:x ", maxFilters+1), "1:" + strings.Repeat("x", maxPart+1)} {
		if err := CheckFilters(bad); err == nil || len(err.Error()) > 500 {
			t.Errorf("filter %.40q: %v", bad, err)
		}
	}
	for _, bad := range []string{"x", "1", "1:foo", "1:stderr:x", "1:journald:", "1:file:", "1:file:rel", "1:syslog", "1:syslog:", "0:stderr", "1:file:/a\x00", "1:file:/a:b",
		strings.Repeat("1:stderr ", maxOutputs+1), "1:file:/" + strings.Repeat("x", maxPart)} {
		if err := CheckOutputs(bad); err == nil || len(err.Error()) > 500 {
			t.Errorf("output %.40q: %v", bad, err)
		}
	}
}

// FuzzCheckSettings: what is found right in a configuration is taken, but for files that cannot be opened.
func FuzzCheckSettings(f *testing.F) {
	f.Add("1:locking 4:+util")
	f.Add("1:file:/a:b 2:stderr 3:syslog:me 4:journald")
	f.Fuzz(func(t *testing.T, text string) {
		var filters, outputs error
		testenv.Bounded(t, 100, len(text), func() { filters, outputs = CheckFilters(text), CheckOutputs(text) })
		for _, err := range []error{filters, outputs} {
			if err != nil && len(err.Error()) > 1000 {
				t.Fatalf("%q: an error of %d bytes", text, len(err.Error()))
			}
		}
		log, err := newLogger(slog.LevelInfo, "text", io.Discard, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer Close(log)
		if filters == nil {
			if err := SetFilters(log, text); err != nil {
				t.Fatalf("filters %q: %v", text, err)
			}
		}
		if outputs == nil && !strings.Contains(text, "file") && !strings.Contains(text, "syslog") {
			if err := SetOutputs(log, text); err != nil {
				t.Fatalf("outputs %q: %v", text, err)
			}
		}
	})
}
