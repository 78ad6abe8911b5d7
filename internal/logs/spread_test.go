package logs

import (
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

func TestParseSettings(t *testing.T) {
	filters, err := ParseFilters(" 1:locking\t4:+util ")
	if d := cmp.Diff([]Filter{{slog.LevelDebug, "locking"}, {slog.LevelError, "util"}}, filters); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	outputs, err := ParseOutputs("1:file:/a:b 2:stderr 3:syslog:me 4:journald")
	want := []Output{{slog.LevelDebug, "file", "/a:b"}, {slog.LevelInfo, "stderr", ""}, {slog.LevelWarn, "syslog", "me"}, {slog.LevelError, "journald", ""}}
	if d := cmp.Diff(want, outputs); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for _, bad := range []string{"x", "1", "1:", ":x", "0:x", "5:x", "11:x", "1:+", strings.Repeat("1:x ", MaxFilters+1), "1:" + strings.Repeat("x", maxPart+1)} {
		if list, err := ParseFilters(bad); err == nil || list != nil || len(err.Error()) > 500 {
			t.Errorf("filter %.40q: %v, %v", bad, list, err)
		}
	}
	for _, bad := range []string{"x", "1", "1:foo", "1:stderr:x", "1:journald:", "1:file:", "1:file:rel", "1:syslog", "1:syslog:", "0:stderr", "1:file:/a\x00",
		strings.Repeat("1:stderr ", MaxOutputs+1), "1:file:/" + strings.Repeat("x", maxPart)} {
		if list, err := ParseOutputs(bad); err == nil || list != nil || len(err.Error()) > 500 {
			t.Errorf("output %.40q: %v, %v", bad, list, err)
		}
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add("1:locking 4:+util")
	f.Add("1:file:/a:b 2:stderr 3:syslog:me 4:journald")
	f.Fuzz(func(t *testing.T, text string) {
		filters, err := ParseFilters(text)
		if err == nil && (len(filters) > MaxFilters || len(filters) != len(strings.Fields(text))) || err != nil && len(err.Error()) > 1000 {
			t.Fatalf("%q: %v, %v", text, filters, err)
		}
		outputs, err := ParseOutputs(text)
		if err == nil && (len(outputs) > MaxOutputs || len(outputs) != len(strings.Fields(text))) || err != nil && len(err.Error()) > 1000 {
			t.Fatalf("%q: %v, %v", text, outputs, err)
		}
	})
}

// TestSpread: a filter for this package, and outputs with levels of their own.
func TestSpread(t *testing.T) {
	dir := t.TempDir()
	all, grave := filepath.Join(dir, "all"), filepath.Join(dir, "grave")
	outputs, err := ParseOutputs("1:file:" + all + " 3:file:" + grave + " 2:journald")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		filters string
		want    []string // of all
		sent    []string
	}{
		{"", []string{"info", "warning"}, []string{"info a=1", "warning a=1"}},
		{"1:logs 4:logs", []string{"debug", "info", "warning"}, []string{"info a=1", "warning a=1"}},
		{"4:log 1:logs", nil, nil},
		{"1:locking", []string{"info", "warning"}, []string{"info a=1", "warning a=1"}},
	} {
		_, _ = os.Remove(all), os.Remove(grave)
		filters, err := ParseFilters(c.filters)
		if err != nil {
			t.Fatal(err)
		}
		var sent []string
		send := func(m string, _ journal.Priority, _ map[string]string) error {
			sent = append(sent, m)
			return nil
		}
		log, err := newSpread(slog.LevelInfo, "text", Options{Filters: filters, Outputs: outputs}, os.Stderr, send)
		if err != nil {
			t.Fatal(err)
		}
		more := log.With("a", 1)
		more.Debug("debug")
		more.Info("info")
		more.Warn("warning")
		if !Close(log) {
			t.Error("not everything is written")
		}
		if d := cmp.Diff(c.sent, sent); d != "" {
			t.Errorf("%q: sent to journald: %s", c.filters, d)
		}
		said := func(path string) (list []string) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				_, rest, _ := strings.Cut(line, " msg=")
				m, rest, _ := strings.Cut(rest, " ")
				if rest != "a=1\n" {
					t.Errorf("%q", line)
				}
				list = append(list, m)
			}
			return list
		}
		if d := cmp.Diff(c.want, said(all)); d != "" {
			t.Errorf("%q: %s", c.filters, d)
		}
		if got := said(grave); len(c.want) > 0 && !cmp.Equal(got, []string{"warning"}) {
			t.Errorf("%q: %q is grave", c.filters, got)
		}
	}
	if _, err := Open(Options{Level: "info", Outputs: []Output{{Kind: "file", Name: dir + "/none/x"}}}, os.Stderr); err == nil || !strings.Contains(err.Error(), dir+"/none/x") {
		t.Errorf("a directory that is missing: %v", err)
	}
}

// TestSyslog: a syslog that is not there is asked again, and each level has its severity.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s := &lazySyslog{dial: func() (*syslog.Writer, error) {
		return syslog.Dial("unixgram", path, syslog.LOG_DAEMON|syslog.LOG_INFO, "tag")
	}}
	if err := s.send("lost", journal.PriErr, nil); err == nil {
		t.Fatal("nobody was there, and that is no error")
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for p, begin := range map[journal.Priority]string{journal.PriErr: "<27>", journal.PriWarning: "<28>", journal.PriInfo: "<30>", journal.PriDebug: "<31>"} {
		if err := s.send("said", p, nil); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1000)
		n, err := conn.Read(b)
		if got := string(b[:n]); err != nil || !strings.HasPrefix(got, begin) || !strings.Contains(got, " tag[") || !strings.HasSuffix(got, ": said\n") {
			t.Errorf("%q, %v", got, err)
		}
	}
	s.w.Close()
}
