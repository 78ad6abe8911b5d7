package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logger makes one that ends with the test.
func logger(t *testing.T, level slog.Level, format string, w io.Writer, send sendFunc) *slog.Logger {
	t.Helper()
	log, err := newLogger(level, format, w, send)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !Close(log) {
			t.Error("what was logged is not written at the end")
		}
	})
	return log
}

func TestJournalFields(t *testing.T) {
	var message string
	var prio journal.Priority
	var fields map[string]string
	send := func(m string, p journal.Priority, f map[string]string) error {
		message, prio, fields = m, p, f
		return nil
	}
	log := logger(t, slog.LevelInfo, "journal", &bytes.Buffer{}, send)
	log.Debug("not this")
	Flush(log)
	if message != "" {
		t.Fatalf("a debug record was sent at level info: %q", message)
	}
	log.With("lockspace", "").Warn("refused", "name", `/a "b"`, "owner-pid", 12, slog.Group("vm", "name", "web"))
	Flush(log)
	if want := `refused lockspace="" name="/a \"b\"" owner-pid=12 vm_name=web`; message != want {
		t.Errorf("message %q, want %q", message, want)
	}
	if prio != journal.PriWarning {
		t.Errorf("priority %d", prio)
	}
	want := map[string]string{"VMLOCKD_LOCKSPACE": "", "VMLOCKD_NAME": `/a "b"`, "VMLOCKD_OWNER_PID": "12", "VMLOCKD_VM_NAME": "web"}
	if d := cmp.Diff(want, fields); d != "" {
		t.Error(d)
	}
	log.WithGroup("vm").Info("x", "name", "web")
	Flush(log)
	if fields["VMLOCKD_VM_NAME"] != "web" {
		t.Errorf("a group's field: %v", fields)
	}
}

func TestJournalThatIsGone(t *testing.T) {
	var out bytes.Buffer
	log := logger(t, slog.LevelInfo, "journal", &out, func(string, journal.Priority, map[string]string) error {
		return errors.New("no journald")
	})
	log.With("a", 1).Info("kept", "b", 2, EventKey, "lock-lost")
	Flush(log)
	if s := out.String(); !strings.Contains(s, `level=INFO msg="kept a=1 b=2" event=lock-lost`) {
		t.Fatalf("a record that journald did not take is lost: %q", s)
	}
}

// TestAuto: the format is chosen by what stderr is, which a unit's children cannot
// tell by JOURNAL_STREAM alone.
func TestAuto(t *testing.T) {
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(stderr.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		stream  string
		journal bool
	}{
		{fmt.Sprintf("%d:%d", st.Dev, st.Ino), true},
		{fmt.Sprintf("%d:%d", st.Dev, st.Ino+1), false}, // inherited, and stderr is elsewhere
		{"", false},
	} {
		t.Setenv("JOURNAL_STREAM", tc.stream)
		if tc.stream == "" {
			os.Unsetenv("JOURNAL_STREAM") // Setenv has it restored
		}
		log, err := New("info", "auto", stderr)
		if err != nil {
			t.Fatal(err)
		}
		// Nothing is logged where it would go to this host's journal.
		made, _ := Outputs(log)
		if journal := made == "2:journald"; journal != tc.journal {
			t.Errorf("JOURNAL_STREAM=%q: it goes to %s", tc.stream, made)
		}
		defer Close(log)
		if tc.journal {
			continue
		}
		if err := stderr.Truncate(0); err != nil {
			t.Fatal(err)
		}
		log.Info("for people", "a", 1)
		Flush(log)
		if text, err := os.ReadFile(stderr.Name()); err != nil || !strings.Contains(string(text), `level=INFO msg="for people" a=1`) {
			t.Errorf("JOURNAL_STREAM=%q: %q, %v", tc.stream, text, err)
		}
	}
}

func TestIsJournal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if !isJournal(f, fmt.Sprintf("%d:%d", st.Dev, st.Ino)) {
		t.Error("the stream of JOURNAL_STREAM is not seen")
	}
	for _, s := range []string{"", "x", "1:", fmt.Sprintf("%d:%d", st.Dev, st.Ino+1)} {
		if isJournal(f, s) {
			t.Errorf("JOURNAL_STREAM=%q is taken for stderr", s)
		}
	}
}

func TestUnknownNames(t *testing.T) {
	if _, err := New("loud", "text", os.Stderr); err == nil {
		t.Error("an unknown level is accepted")
	}
	if _, err := New("info", "xml", os.Stderr); err == nil {
		t.Error("an unknown format is accepted")
	}
}
