package logs

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	_ "unsafe" // for the link to the library's address of journald

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/logs/logstest"
)

// journalSocket is where the library sends to; it says itself that a build may
// set it.
//
//go:linkname journalSocket github.com/coreos/go-systemd/v22/journal.journalSocket
var journalSocket string

// journald receives what the library sends.
func journald(t *testing.T) *logstest.Journald {
	j := logstest.New(t)
	old := journalSocket
	journalSocket = j.Path
	t.Cleanup(func() { journalSocket = old })
	return j
}

func TestNativeProtocol(t *testing.T) {
	c := journald(t)
	log, err := New("info", "journal", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(log)
	log.Warn("lock refused", EventKey, "lock-refused", "name", "/a\nPRIORITY=0\nMESSAGE_ID=0", "pid", 12)
	want := map[string]string{
		"MESSAGE": `lock refused name="/a` + "\nPRIORITY=0\nMESSAGE_ID=0" + `" pid=12`, "PRIORITY": "4", "MESSAGE_ID": idOf["lock-refused"],
		"VMLOCKD_EVENT": "lock-refused", "VMLOCKD_NAME": "/a\nPRIORITY=0\nMESSAGE_ID=0", "VMLOCKD_PID": "12",
	}
	if d := cmp.Diff(want, c.Next(t)); d != "" {
		t.Error(d)
	}
	log.With(EventKey, "owner-gone").Info("owner has ended")
	if f := c.Next(t); f["MESSAGE_ID"] != idOf["owner-gone"] || f["MESSAGE"] != "owner has ended" {
		t.Errorf("an event that a logger was made with: %v", f)
	}
	log.Info("something else", EventKey, "unheard-of", slog.Group("vm", EventKey, "lock-lost"))
	if f := c.Next(t); f["MESSAGE_ID"] != "" || f["VMLOCKD_EVENT"] != "unheard-of" || f["VMLOCKD_VM_EVENT"] != "lock-lost" {
		t.Errorf("what is no event: %v", f)
	}
}

func TestEventsAreWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range Events {
		if len(e.ID) != 32 || strings.Trim(e.ID, "0123456789abcdef") != "" {
			t.Errorf("%s: %q is no 128-bit number in lower case", e.Name, e.ID)
		}
		if seen[e.ID] || seen[e.Name] {
			t.Errorf("%s: its name or id occurs twice", e.Name)
		}
		seen[e.ID], seen[e.Name] = true, true
	}
	if len(Events) < 20 {
		t.Errorf("only %d events", len(Events))
	}
}

func TestOtherFormatsNameTheEvent(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := logger(t, slog.LevelInfo, format, &out, func(string, journal.Priority, map[string]string) error { return nil })
		log.Info("x", EventKey, "lock-lost")
		Flush(log)
		if s := out.String(); !slices.ContainsFunc([]string{`event=lock-lost`, `"event":"lock-lost"`}, func(w string) bool { return strings.Contains(s, w) }) {
			t.Errorf("%s: %s", format, s)
		}
	}
}
