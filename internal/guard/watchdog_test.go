package guard

import (
	"errors"
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

// A watchdog that a daemon was killed with, and that the next one does not have, is disarmed by it, once: else it would reset
// the host for nothing.
func TestLeftByAnother(t *testing.T) {
	armed := Saved{Armed: true, Device: "/dev/watchdog", Ring: 7}
	for name, tc := range map[string]struct {
		saved    *Saved
		keep     string
		err      error
		disarmed int
	}{
		"there was none":                    {nil, "", nil, 0},
		"it was not armed":                  {&Saved{Device: "/dev/watchdog"}, "", nil, 0},
		"nobody knows which":                {&Saved{Armed: true}, "", nil, 0},
		"it is still used":                  {&armed, "/dev/watchdog", nil, 0},
		"it is not any more":                {&armed, "", nil, 1},
		"another one is":                    {&armed, "/dev/watchdog1", nil, 1},
		"and it is another program's (sbd)": {&armed, "", errors.New("busy"), 0},
	} {
		d, s := &dog{err: tc.err}, File{Path: filepath.Join(t.TempDir(), "guard.json")}
		if tc.saved != nil {
			if err := s.Save(*tc.saved); err != nil {
				t.Fatal(err)
			}
		}
		opened := ""
		open := func(path string) Dog { opened = path; return d }
		path, err := DisarmLeft(s, tc.keep, open)
		tried := tc.disarmed > 0 || tc.err != nil
		if !errors.Is(err, tc.err) || d.disarmed != tc.disarmed || path != opened || (path != "") != tried {
			t.Errorf("%s: %q, %v; opened %q, fed %d times and disarmed %d times", name, path, err, opened, d.fed, d.disarmed)
		}
		if now, err := s.Load(); tc.saved != nil && (err != nil || now.Ring != tc.saved.Ring || now.Armed != (tc.saved.Armed && tc.disarmed == 0)) {
			t.Errorf("%s: noted after that: %+v, %v", name, now, err)
		}
		if _, err := DisarmLeft(s, tc.keep, open); tc.err == nil && (err != nil || d.disarmed != tc.disarmed) {
			t.Errorf("%s: once more: %v, disarmed %d times", name, err, d.disarmed)
		}
	}
	// The notes say which one.
	g, err := New(Options{Clock: func() time.Duration { return time.Hour }, Store: &steps{}, Dog: &Device{Path: "/dev/watchdog1"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &kept{}
	g.o.Store, g.dog.open = s, true
	g.lockedSave()
	if s.Device != "/dev/watchdog1" || !s.Armed {
		t.Errorf("noted: %+v", s.Saved)
	}
}

// What an earlier daemon has left armed is only the device that it has named: another one is not running, and is not opened if
// it could not be stopped again.
func TestLeftIsTheSameDevice(t *testing.T) {
	for name, tc := range map[string]struct {
		saved Saved
		dog   Dog
		left  bool
	}{
		"the same":                               {Saved{Armed: true, Device: "/dev/watchdog"}, &Device{Path: "/dev/watchdog"}, true},
		"nobody knows which":                     {Saved{Armed: true}, &Device{Path: "/dev/watchdog"}, true},
		"another one":                            {Saved{Armed: true, Device: "/dev/watchdog"}, &Device{Path: "/dev/watchdog1"}, false},
		"there is none":                          {Saved{Armed: true, Device: "/dev/watchdog"}, nil, false},
		"none, and nobody knows which there was": {Saved{Armed: true}, nil, false},
	} {
		s := &kept{tc.saved}
		g, err := New(Options{Clock: func() time.Duration { return time.Hour }, Store: s, Dog: tc.dog})
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := tc.dog.(*Device); g.dog.left != tc.left || ok && d.left != tc.left {
			t.Errorf("%s: it is taken for one that runs: %v", name, g.dog.left)
		}
		if g.lockedSave(); s.Armed != tc.left {
			t.Errorf("%s: noted: %+v", name, s.Saved)
		}
	}
}

// kept is what was saved last.
type kept struct{ Saved }

func (k *kept) Load() (*Saved, error) { return &k.Saved, nil }
func (k *kept) Save(s Saved) error    { k.Saved = s; return nil }

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
