package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// everywhere is a logger of which both ends can be seen.
type everywhere struct {
	*slog.Logger
	stderr   bytes.Buffer
	journald []string
}

func newEverywhere(t *testing.T, format string) *everywhere {
	e := &everywhere{}
	e.Logger = logger(t, slog.LevelInfo, format, &e.stderr, func(text string, _ journal.Priority, _ map[string]string) error {
		e.journald = append(e.journald, text)
		return nil
	})
	return e
}

// took returns what has been logged since the last time.
func (e *everywhere) took(t *testing.T) (stderr, journald string) {
	t.Helper()
	if !Flush(e.Logger) {
		t.Fatal("not written in time")
	}
	stderr, journald = e.stderr.String(), strings.Join(e.journald, "|")
	e.stderr.Reset()
	e.journald = nil
	return stderr, journald
}

func (e *everywhere) each(log *slog.Logger) {
	log.Debug("a debug")
	log.Info("an info")
	log.Warn("a warning")
	log.Error("an error")
}

func wantWords(t *testing.T, what, text string, levels int) {
	t.Helper()
	for i, word := range []string{"an error", "a warning", "an info", "a debug"} {
		if got := strings.Contains(text, word); got != (i < levels) {
			t.Errorf("%s: %q is there: %v, in %q", what, word, got, text)
		}
	}
}

func TestOutputs(t *testing.T) {
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			e := newEverywhere(t, format)
			derived := e.With("a", 1).WithGroup("g") // before anything is changed
			began := "2:stderr"
			if format == "journal" {
				began = "2:journald"
			}
			file := filepath.Join(t.TempDir(), "log")
			// From level 1 on the log has level info, as no filter says otherwise.
			for _, step := range []struct {
				set, get                 string
				stderr, journald, inFile int // how many of the four levels
			}{
				{"1:stderr", "1:stderr", 3, 0, 0},
				{"3:stderr", "3:stderr", 2, 0, 0},
				{" 4:journald  3:stderr", "4:journald 3:stderr", 2, 1, 0},
				{"2:file:" + file + " 04:stderr", "2:file:" + file + " 4:stderr", 1, 0, 3},
				{"4:file:" + file, "4:file:" + file, 0, 0, 1},
				{"1:stderr 3:stderr", "3:stderr", 2, 0, 0},
				{"1:journald", "1:journald", 0, 3, 0},
				{"", began, 0, 0, 0},
			} {
				if err := SetOutputs(derived, step.set); err != nil {
					t.Fatal(step.set, err)
				}
				if step.set == "" {
					step.stderr, step.journald = 3, 0
					if format == "journal" {
						step.stderr, step.journald = 0, 3
					}
				}
				if got, n := Outputs(e.Logger); got != step.get || n != len(strings.Fields(step.get)) {
					t.Errorf("%q became %q, %d", step.set, got, n)
				}
				os.Remove(file)
				if step.inFile > 0 { // made again when it is set
					if err := SetOutputs(e.Logger, step.set); err != nil {
						t.Fatal(err)
					}
				}
				e.each(derived)
				stderr, journald := e.took(t)
				text, _ := os.ReadFile(file)
				wantWords(t, step.set+" on stderr", stderr, step.stderr)
				wantWords(t, step.set+" in the journal", journald, step.journald)
				wantWords(t, step.set+" in the file", string(text), step.inFile)
				if all := stderr + journald + string(text); !strings.Contains(all, "a=1") && !strings.Contains(all, `"a":1`) {
					t.Errorf("%s: an attribute of before is missing: %q", step.set, all)
				}
			}
		})
	}
}

func TestFilters(t *testing.T) {
	e := newEverywhere(t, "text")
	if err := SetOutputs(e.Logger, "1:stderr"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		set, get string
		n        int
		levels   int
	}{
		{"", "", 0, 3},
		{"1:logs", "1:*logs* ", 1, 4},
		{"4:logs", "4:*logs* ", 1, 1},
		{"1:rpc 3:+log?", "1:*rpc* 3:*log?* ", 2, 2},
		{"1:*", "1:*** ", 1, 4},
		{"1:backend.cluster:x", "1:*backend.cluster* ", 1, 3},
		{`4:l[o]gs 4:l\ogs`, `4:*l[o]gs* 4:*l\ogs* `, 2, 3},
		{"3:logs 1:logs", "3:*logs* 1:*logs* ", 2, 2}, // the first one counts
	} {
		if err := SetFilters(e.Logger, step.set); err != nil {
			t.Fatal(step.set, err)
		}
		if got, n := Filters(e.Logger); got != step.get || n != step.n {
			t.Errorf("%q became %q, %d", step.set, got, n)
		}
		e.each(e.Logger)
		stderr, _ := e.took(t)
		wantWords(t, step.set, stderr, step.levels)
	}
	// What nobody would take is not even made.
	if err := SetFilters(e.Logger, ""); err != nil {
		t.Fatal(err)
	}
	if e.Enabled(t.Context(), slog.LevelDebug) || !e.Enabled(t.Context(), slog.LevelInfo) {
		t.Error("levels")
	}
	if err := errors.Join(SetFilters(e.Logger, "1:x"), SetOutputs(e.Logger, "3:stderr")); err != nil {
		t.Fatal(err)
	}
	if e.Enabled(t.Context(), slog.LevelInfo) || !e.Enabled(t.Context(), slog.LevelWarn) {
		t.Error("levels with an output that takes less")
	}
}

func TestSource(t *testing.T) {
	e := newEverywhere(t, "text")
	var pc uintptr
	e.Logger = slog.New(seen{e.Handler(), &pc})
	e.Logger.Info("x")
	if got := source(pc); got != "logs" {
		t.Errorf("%q", got)
	}
	if got := source(0); got != "" {
		t.Errorf("%q", got)
	}
}

type seen struct {
	slog.Handler
	pc *uintptr
}

func (s seen) Handle(_ context.Context, r slog.Record) error {
	*s.pc = r.PC
	return nil
}

func TestMistakes(t *testing.T) {
	e := newEverywhere(t, "text")
	if err := errors.Join(SetOutputs(e.Logger, "3:journald"), SetFilters(e.Logger, "1:rpc")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	many := strings.Repeat("1:x ", maxFilters+1)
	for _, test := range []struct {
		set        func(*slog.Logger, string) error
		text, want string
	}{
		{SetOutputs, "x", "Malformed format for log output 'x'"},
		{SetOutputs, "1:stderr 9:stderr", "Invalid log priority '9' for log output '9:stderr'"},
		{SetOutputs, ":stderr", "Invalid log priority '' for log output ':stderr'"},
		{SetOutputs, "0:stderr", "Invalid log priority '0' for log output '0:stderr'"},
		{SetOutputs, "11:stderr", "Invalid log priority '11' for log output '11:stderr'"},
		{SetOutputs, "1:nosuch", "Invalid log destination 'nosuch' for log output '1:nosuch'"},
		{SetOutputs, "1:stderr:x", "Log output '1:stderr:x' does not meet the format requirements for destination type 'stderr'"},
		{SetOutputs, "1:file", "Log output '1:file' does not meet the format requirements for destination type 'file'"},
		{SetOutputs, "1:file:rel", "Log output '1:file:rel' has no absolute path: begin it with /"},
		{SetOutputs, "1:syslog", "Log output '1:syslog' does not meet the format requirements for destination type 'syslog'"},
		{SetOutputs, "1:syslog:", "Log output '1:syslog:' does not meet the format requirements for destination type 'syslog'"},
		{SetOutputs, "1:stderr" + syslogs(maxOutputs), fmt.Sprintf("there are more than %d outputs", maxOutputs)},
		{SetFilters, "x", "Malformed format for filter 'x'"},
		{SetFilters, "9:x", "Invalid priority '9' for filter '9:x'"},
		{SetFilters, "1:", "Invalid match string ''"},
		{SetFilters, "1:+", "Invalid match string '+'"},
		{SetFilters, many, fmt.Sprintf("there are more than %d filters", maxFilters)},
	} {
		if err := test.set(e.Logger, test.text); err == nil || err.Error() != test.want {
			t.Errorf("%q: %v, want %s", test.text, err, test.want)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "no", "such"), fifo, os.DevNull} {
		var pe *fs.PathError
		if err := SetOutputs(e.Logger, "1:file:"+path); !errors.As(err, &pe) || pe.Path != path {
			t.Errorf("%s: %v", path, err)
		}
	}
	outputs, _ := Outputs(e.Logger)
	filters, _ := Filters(e.Logger)
	if outputs != "3:journald" || filters != "1:*rpc* " {
		t.Errorf("what was wrong has changed something: %q, %q", outputs, filters)
	}
	foreign := slog.New(slog.DiscardHandler)
	if SetOutputs(foreign, "") == nil || SetFilters(foreign, "") == nil {
		t.Error("a logger of others was changed")
	}
	if _, n := Outputs(foreign); n != 0 {
		t.Error(n)
	}
	if _, n := Filters(foreign); n != 0 {
		t.Error(n)
	}
}

// syslogs are so many outputs, each with a blank before it.
func syslogs(n int) (text string) {
	for i := range n {
		text += fmt.Sprintf(" 1:syslog:x%d", i)
	}
	return text
}

// TestSeveralFiles: each takes what has its level, and where one cannot be opened the
// others are not kept open.
func TestSeveralFiles(t *testing.T) {
	e := newEverywhere(t, "text")
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	set := "3:file:" + a + " 1:file:" + b
	if err := SetOutputs(e.Logger, set); err != nil {
		t.Fatal(err)
	}
	if got, n := Outputs(e.Logger); got != set || n != 2 {
		t.Errorf("%q, %d", got, n)
	}
	e.each(e.Logger.With("a", 1))
	if stderr, journald := e.took(t); stderr+journald != "" {
		t.Errorf("elsewhere too: %q, %q", stderr, journald)
	}
	for path, levels := range map[string]int{a: 2, b: 3} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		wantWords(t, path, string(text), levels)
		if strings.Count(string(text), " a=1\n") != levels {
			t.Errorf("%s: %s", path, text)
		}
	}
	if err := SetOutputs(e.Logger, "1:file:"+b+" 1:file:"+filepath.Join(dir, "none", "c")); err == nil {
		t.Error("a file in no directory is open")
	}
	if n := opened(t, b); n != 1 {
		t.Errorf("opened %d times", n)
	}
	if err := SetOutputs(e.Logger, "1:file:"+b+" 4:file:"+b); err != nil {
		t.Fatal(err)
	}
	Flush(e.Logger)
	if got, _ := Outputs(e.Logger); got != "4:file:"+b || opened(t, a) != 0 || opened(t, b) != 1 {
		t.Errorf("%q, and %d and %d times open", got, opened(t, a), opened(t, b))
	}
}

// TestConfigure: what a configuration says is where it goes again with "".
func TestConfigure(t *testing.T) {
	e := newEverywhere(t, "text")
	if err := Configure(e.Logger, "4:rpc", "4:journald"); err != nil {
		t.Fatal(err)
	}
	if err := SetOutputs(e.Logger, "1:stderr"); err != nil {
		t.Fatal(err)
	}
	if err := SetOutputs(e.Logger, " "); err != nil {
		t.Fatal(err)
	}
	outputs, _ := Outputs(e.Logger)
	filters, _ := Filters(e.Logger)
	if outputs != "4:journald" || filters != "4:*rpc* " {
		t.Errorf("%q, %q", outputs, filters)
	}
	if Configure(e.Logger, "x", "") == nil || Configure(e.Logger, "", "x") == nil || Configure(slog.New(slog.DiscardHandler), "", "") == nil {
		t.Error("a mistake is none")
	}
	if err := Configure(newEverywhere(t, "text").Logger, "", ""); err != nil {
		t.Error(err)
	}
}

// TestFileIsClosed: a file that is not written to any more is not kept open.
func TestFileIsClosed(t *testing.T) {
	e := newEverywhere(t, "text")
	path := filepath.Join(t.TempDir(), "log")
	if err := SetOutputs(e.Logger, "2:file:"+path); err != nil {
		t.Fatal(err)
	}
	e.Info("one")
	if n := opened(t, path); n != 1 {
		t.Errorf("opened %d times", n)
	}
	if err := SetOutputs(e.Logger, "2:file:"+path); err != nil {
		t.Fatal(err)
	}
	e.Info("two")
	Flush(e.Logger)
	if n := opened(t, path); n != 1 {
		t.Errorf("opened %d times", n)
	}
	if text, err := os.ReadFile(path); strings.Count(string(text), "\n") != 2 {
		t.Errorf("%s, %v", text, err)
	}
	Close(e.Logger)
	if n := opened(t, path); n != 0 {
		t.Errorf("opened %d times after the end", n)
	}
	if got, n := Outputs(e.Logger); got != "" || n != 0 {
		t.Errorf("%q after the end", got)
	}
}

// TestSyslog: records get to syslog as another program of it, and to stderr while
// there is none.
func TestSyslog(t *testing.T) {
	dir := t.TempDir()
	syslogAt = filepath.Join(dir, "log")
	t.Cleanup(func() { syslogAt = "" })
	e := newEverywhere(t, "text")
	if err := SetOutputs(e.Logger, "3:syslog:locks 2:syslog:locks"); err != nil {
		t.Fatal(err)
	}
	if got, _ := Outputs(e.Logger); got != "2:syslog:locks" {
		t.Errorf("%q", got)
	}
	e.Info("nobody listens")
	if stderr, _ := e.took(t); !strings.Contains(stderr, "nobody listens") {
		t.Errorf("lost, with %q on stderr", stderr)
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: syslogAt, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Facility daemon (3), and the severities of syslog(3).
	for _, k := range []struct {
		log  func(string, ...any)
		want string
	}{{e.Error, "<27>"}, {e.Warn, "<28>"}, {e.Info, "<30>"}} {
		k.log("told", "a", 1)
		if !Flush(e.Logger) {
			t.Fatal("not written")
		}
		b := make([]byte, 1000)
		n, err := l.Read(b)
		if got := string(b[:n]); err != nil || !strings.HasPrefix(got, k.want) || !strings.Contains(got, " locks[") || !strings.HasSuffix(got, ": told a=1\n") {
			t.Errorf("%q, %v; want %s", got, err, k.want)
		}
	}
	if stderr, _ := e.took(t); stderr != "" {
		t.Errorf("on stderr as well: %q", stderr)
	}
}

// opened counts the descriptors of this process for a file.
func opened(t *testing.T, path string) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if to, _ := os.Readlink("/proc/self/fd/" + f.Name()); to == path {
			n++
		}
	}
	return n
}

// FuzzLibvirt: whatever is set, it is an error or can be read and set again.
func FuzzLibvirt(f *testing.F) {
	f.Add("1:stderr 3:journald", "1:rpc 2:*x[y]? 4:+locking")
	f.Add("9:x", ":::")
	var b bytes.Buffer
	log, err := newLogger(slog.LevelInfo, "text", &b, noJournald)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { Close(log) })
	f.Fuzz(func(t *testing.T, outputs, filters string) {
		if strings.Contains(outputs, "file") {
			// Outputs are opened, and what is tried may be any path.
			t.Skip("files of this host are not written to")
		}
		var err error
		testenv.Bounded(t, 100, len(outputs), func() { err = SetOutputs(log, outputs) })
		if err == nil {
			got, n := Outputs(log)
			if n == 0 || n > maxOutputs || SetOutputs(log, got) != nil {
				t.Fatalf("%q became %q", outputs, got)
			}
		}
		testenv.Bounded(t, 100, len(filters), func() { err = SetFilters(log, filters) })
		if err == nil {
			got, n := Filters(log)
			if n != len(strings.Fields(filters)) || n > maxFilters {
				t.Fatalf("%q became %q", filters, got)
			}
			log.Debug("x") // by all filters
		}
	})
}
