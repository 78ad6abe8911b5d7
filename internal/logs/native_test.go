package logs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for the link to the library's address of journald

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

// journalSocket is where the library sends to; it says itself that a build may
// set it.
//
//go:linkname journalSocket github.com/coreos/go-systemd/v22/journal.journalSocket
var journalSocket string

// journald is a socket like journald's.
func journald(t *testing.T) *net.UnixConn {
	path := filepath.Join(t.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	old := journalSocket
	journalSocket = path
	t.Cleanup(func() {
		journalSocket = old
		c.Close()
	})
	return c
}

// received reads one datagram of the native protocol.
func received(t *testing.T, c *net.UnixConn) map[string]string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := parseNative(buf[:n])
	if err != nil {
		t.Fatalf("%v in %q", err, buf[:n])
	}
	return fields
}

// parseNative reads what systemd.io/JOURNAL_NATIVE_PROTOCOL describes.
func parseNative(b []byte) (map[string]string, error) {
	fields := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, errors.New("the last line has no end")
		}
		name, value, short := bytes.Cut(line, []byte("="))
		if !short {
			if len(rest) < 8 {
				return nil, errors.New("no length")
			}
			size := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; uint64(len(rest)) < size+1 || rest[size] != '\n' {
				return nil, errors.New("a wrong length")
			}
			value, rest = rest[:size], rest[size+1:]
		}
		if _, twice := fields[string(name)]; twice {
			return nil, fmt.Errorf("%s twice", name)
		}
		fields[string(name)], b = string(value), rest
	}
	return fields, nil
}

func TestNativeProtocol(t *testing.T) {
	c := journald(t)
	log, err := New("info", "journal", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	log.Warn("lock refused", EventKey, "lock-refused", "name", "/a\nPRIORITY=0\nMESSAGE_ID=0", "pid", 12)
	want := map[string]string{
		"MESSAGE": `lock refused name="/a` + "\nPRIORITY=0\nMESSAGE_ID=0" + `" pid=12`, "PRIORITY": "4", "MESSAGE_ID": idOf["lock-refused"],
		"VMLOCKD_EVENT": "lock-refused", "VMLOCKD_NAME": "/a\nPRIORITY=0\nMESSAGE_ID=0", "VMLOCKD_PID": "12",
	}
	if d := cmp.Diff(want, received(t, c)); d != "" {
		t.Error(d)
	}
	log.With(EventKey, "owner-gone").Info("owner has ended")
	if f := received(t, c); f["MESSAGE_ID"] != idOf["owner-gone"] || f["MESSAGE"] != "owner has ended" {
		t.Errorf("an event that a logger was made with: %v", f)
	}
	log.Info("something else", EventKey, "unheard-of", slog.Group("vm", EventKey, "lock-lost"))
	if f := received(t, c); f["MESSAGE_ID"] != "" || f["VMLOCKD_EVENT"] != "unheard-of" || f["VMLOCKD_VM_EVENT"] != "lock-lost" {
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
		log, err := newLogger(slog.LevelInfo, format, &out, func(string, journal.Priority, map[string]string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		log.Info("x", EventKey, "lock-lost")
		if s := out.String(); !slices.ContainsFunc([]string{`event=lock-lost`, `"event":"lock-lost"`}, func(w string) bool { return strings.Contains(s, w) }) {
			t.Errorf("%s: %s", format, s)
		}
	}
}
