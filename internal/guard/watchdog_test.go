package guard

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// What is left armed is known from the notes, also of more than one device, until it is noted that it is not any more.
func TestLeftArmed(t *testing.T) {
	armed := Saved{Armed: true, Device: "/dev/watchdog", Ring: 7, Frozen: []Frozen{{}}}
	two := armed
	two.Left = []string{"/dev/watchdog1"}
	parted := two
	parted.Parted = true
	for name, tc := range map[string]struct {
		saved *Saved
		keep  string
		want  []string
	}{
		"there was none":                     {nil, "", nil},
		"it was not armed":                   {&Saved{Device: "/dev/watchdog"}, "", nil},
		"nobody knows which":                 {&Saved{Armed: true}, "", nil},
		"it is still used":                   {&armed, "/dev/watchdog", nil},
		"it is not any more":                 {&armed, "", []string{"/dev/watchdog"}},
		"another one is":                     {&armed, "/dev/watchdog1", []string{"/dev/watchdog"}},
		"two were":                           {&two, "", []string{"/dev/watchdog1", "/dev/watchdog"}},
		"two were, and one of them is again": {&two, "/dev/watchdog1", []string{"/dev/watchdog"}},
		"two are, and nobody counts on them": {&parted, "", []string{"/dev/watchdog1", "/dev/watchdog"}},
	} {
		s := File{Path: filepath.Join(t.TempDir(), "guard.json")}
		stopped, due := 0, false
		if tc.saved != nil {
			stopped = len(tc.saved.Frozen)
			due = !tc.saved.Parted && stopped+len(tc.want) > 0
			if err := s.Save(*tc.saved); err != nil {
				t.Fatal(err)
			}
		}
		got, isDue, err := LeftArmed(s, tc.keep)
		if err != nil || !slices.Equal(got, tc.want) || isDue != due {
			t.Errorf("%s: %v, due: %v, %v", name, got, isDue, err)
		}
		for i, path := range tc.want {
			if err := Disarmed(s, path); err != nil {
				t.Error(err)
			}
			if got, _, err := LeftArmed(s, tc.keep); err != nil || len(got) != len(tc.want)-i-1 || slices.Contains(got, path) {
				t.Errorf("%s: without %s: %v, %v", name, path, got, err)
			}
		}
		if now, err := s.Load(); tc.saved != nil && (err != nil || now.Ring != tc.saved.Ring || len(now.Frozen) != stopped) {
			t.Errorf("%s: noted after that: %+v, %v", name, now, err)
		}
	}
	// The notes of a guard say which one it has, and which are left.
	g, err := New(Options{Clock: func() time.Duration { return time.Hour }, Store: &steps{}, Dog: &Device{Path: "/dev/watchdog1"}, Left: map[string]Dog{"/dev/watchdog": &dog{}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &kept{}
	g.o.Store, g.dog.open = s, true
	g.lockedSave()
	if s.Device != "/dev/watchdog1" || !s.Armed || !slices.Equal(s.Left, []string{"/dev/watchdog"}) {
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
		"it was left before":                     {Saved{Left: []string{"/dev/watchdog"}}, &Device{Path: "/dev/watchdog"}, true},
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
	// It is fed, and not closed with the letter that would say that all is well.
	if err := os.Truncate(d.Path, 0); err != nil {
		t.Fatal(err)
	}
	left := LeftDevice(d.Path)
	left.sys = dir
	for range 2 {
		if err := left.Feed(); err != nil {
			t.Fatal(err)
		}
		if err := left.Disarm(); !errors.Is(err, ErrStays) || !strings.Contains(err.Error(), "Before you stop vmlockd, move the virtual machines away") {
			t.Errorf("it cannot be stopped: %v", err)
		}
	}
	if err := left.Leave(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(d.Path); err != nil || string(b) != "\x00\x00" {
		t.Errorf("it was fed with %q, %v", b, err)
	}
}

// Where sysfs does not tell the driver does, once: it logs each attempt to stop it.
func TestDeviceThatCannotBeStopped(t *testing.T) {
	dir := t.TempDir()
	asked := 0
	d := &Device{Path: filepath.Join(dir, "watchdog"), sys: dir, setOption: func(*os.File, int) error { asked++; return unix.EBUSY }}
	if err := os.WriteFile(d.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := d.Feed(); err != nil {
			t.Fatal(err)
		}
		if err := d.Disarm(); !errors.Is(err, ErrStays) || d.Stays() == nil {
			t.Errorf("it cannot be stopped: %v", err)
		}
	}
	if b, err := os.ReadFile(d.Path); err != nil || string(b) != "\x00\x00\x00" || asked != 1 {
		t.Errorf("it was fed with %q, %v, and asked to stop %d times", b, err, asked)
	}
	if err := d.Leave(); err != nil {
		t.Error(err)
	}
}

// Where sysfs does not tell whether a device can be stopped again that is found out when it is opened, and else it is not touched.
func TestDeviceIsTried(t *testing.T) {
	for name, tc := range map[string]struct {
		disable, enable error
		nowayout        string
		stays, fails    bool
		asked           int
	}{
		"it cannot be stopped":         {unix.EBUSY, nil, "", true, false, 1},
		"it can":                       {nil, nil, "", false, false, 2},
		"and does not start again":     {nil, unix.EIO, "", false, true, 2},
		"a driver that knows no stop":  {unix.ENOTTY, nil, "", false, false, 1},
		"sysfs tells":                  {unix.EBUSY, nil, "0\n", false, false, 0},
		"sysfs tells that it does not": {nil, nil, "1\n", true, false, 0},
	} {
		dir := t.TempDir()
		asked := 0
		d := &Device{Path: filepath.Join(dir, "watchdog"), sys: dir, left: true, setOption: func(_ *os.File, option int) error {
			if asked++; option == unix.WDIOS_DISABLECARD {
				return tc.disable
			}
			return tc.enable
		}}
		if err := os.WriteFile(d.Path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if tc.nowayout != "" {
			attributes := filepath.Join(dir, "dev", "char", "0:0") // of a file that is no device
			if err := os.MkdirAll(attributes, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(attributes, "nowayout"), []byte(tc.nowayout), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := d.lockedTry(f); (err != nil) != tc.fails || asked != tc.asked {
			t.Errorf("%s: %v, asked %d times", name, err, asked)
		}
		if got := d.Stays(); (got != nil) != tc.stays {
			t.Errorf("%s: people are told %v", name, got)
		}
	}
}

// A device that its driver stops when vmlockd is killed is none that others could count on.
func TestDeviceStoppedByAnyClose(t *testing.T) {
	for name, tc := range map[string]struct {
		options  uint32
		err      error
		nowayout string
		refused  bool
	}{
		"magic close":                      {unix.WDIOF_MAGICCLOSE | unix.WDIOF_SETTIMEOUT, nil, "0\n", false},
		"none":                             {unix.WDIOF_SETTIMEOUT, nil, "0\n", true},
		"none, and no sysfs":               {unix.WDIOF_SETTIMEOUT, nil, "", true},
		"none, and nothing stops it":       {unix.WDIOF_SETTIMEOUT, nil, "1\n", false},
		"a driver that says nothing of it": {0, unix.ENOTTY, "0\n", false},
	} {
		dir := t.TempDir()
		// It runs already, as one that is never stopped is not opened else.
		d := &Device{Path: filepath.Join(dir, "watchdog"), Timeout: 10 * time.Second, sys: dir, left: true, options: func(*os.File) (uint32, error) { return tc.options, tc.err }}
		if err := os.WriteFile(d.Path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		attributes := filepath.Join(dir, "dev", "char", "0:0") // of a file that is no device
		if err := os.MkdirAll(attributes, 0o700); err != nil {
			t.Fatal(err)
		}
		if tc.nowayout != "" {
			if err := os.WriteFile(filepath.Join(attributes, "nowayout"), []byte(tc.nowayout), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// Else it is refused as a file takes no timeout.
		if err := d.Feed(); err == nil || strings.Contains(err.Error(), "no magic close") != tc.refused {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(d.Path); err != nil || string(b) != magicClose {
			t.Errorf("%s: it was closed with %q, %v", name, b, err)
		}
	}
}
