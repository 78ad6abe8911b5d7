package guard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A device that does not take the timeout is not left running.
func TestDeviceThatIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	d := &Device{Path: path, Timeout: 10 * time.Second}
	if err := d.Feed(); err == nil {
		t.Error("a device that is not there was fed")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("and it was made")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Feed(); err == nil || !strings.Contains(err.Error(), "does not take a timeout of 10s") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != magicClose {
		t.Errorf("it was closed with %q, %v", b, err)
	}
	if err := d.Disarm(); err != nil {
		t.Errorf("disarm what is not armed: %v", err)
	}
}

// A device that is left to the next guard runs down meanwhile.
func TestDeviceThatIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{Path: path, f: f}
	if err := d.Feed(); err != nil {
		t.Fatal(err)
	}
	if err := d.Leave(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "\x00" {
		t.Errorf("it was closed with %q, %v", b, err)
	}
	if f.Close() == nil {
		t.Error("it is open yet, and the next guard cannot open it")
	}
	if err := d.Leave(); err != nil {
		t.Errorf("leave what is not open: %v", err)
	}
}

// A device that cannot be stopped again is not even opened: stopping vmlockd would reset the host.
func TestDeviceWithoutAWayOut(t *testing.T) {
	dir := t.TempDir()
	d := &Device{Path: filepath.Join(dir, "watchdog"), Timeout: 10 * time.Second, sys: dir}
	if err := os.WriteFile(d.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	attributes := filepath.Join(dir, "dev", "char", "0:0") // of a file that is no device
	if err := os.MkdirAll(attributes, 0o700); err != nil {
		t.Fatal(err)
	}
	for text, endless := range map[string]bool{"1\n": true, "0\n": false} {
		if err := os.WriteFile(filepath.Join(attributes, "nowayout"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Feed(); err == nil || strings.Contains(err.Error(), "nowayout=0") != endless {
			t.Errorf("nowayout is %q: %v", text, err)
		}
		b, err := os.ReadFile(d.Path)
		if err != nil || endless && len(b) > 0 {
			t.Errorf("it was opened, and %q written, %v", b, err)
		}
		if err := os.Truncate(d.Path, 0); err != nil {
			t.Fatal(err)
		}
	}
	// It runs already: whoever does not feed it has the host reset.
	if err := os.WriteFile(filepath.Join(attributes, "nowayout"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Left()
	if err := d.Feed(); err == nil || strings.Contains(err.Error(), "nowayout=0") {
		t.Errorf("an earlier daemon has left it running: %v", err)
	}
}
