package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestCheckTakeOver: what would keep a new program from starting is found while the
// old one serves, and nothing is touched.
func TestCheckTakeOver(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.RunDir, c.Socket = filepath.Join(dir, "run"), filepath.Join(dir, "sock")
	boot, err := journal.BootID()
	if err != nil {
		t.Fatal(err)
	}
	jdir := filepath.Join(c.RunDir, journalDir(c))
	if err := os.MkdirAll(jdir, 0o700); err != nil {
		t.Fatal(err)
	}
	j, _, err := journal.Open(jdir, boot) // of the old program, which has it open
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for range 10 {
		if _, err := j.Intend(locking.Entry{ID: "file 1 2", Ref: locking.Ref{Name: "/d"}}); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(jdir, "journal")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte(nil), good...)
	damaged[len(damaged)-150] ^= 1
	busy, err := net.Listen("unix", filepath.Join(dir, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := runningWith(c)
	for name, k := range map[string]struct {
		version int
		journal []byte
		change  func(*config.Config)
		want    string
	}{
		"nothing":            {2, good, func(*config.Config) {}, ""},
		"a new socket":       {2, good, func(c *config.Config) { c.Socket = filepath.Join(dir, "new", "sock") }, ""},
		"version":            {4, good, func(*config.Config) {}, "version 4"},
		"run_dir":            {2, good, func(c *config.Config) { c.RunDir = dir }, "run_dir"},
		"backend":            {2, good, func(c *config.Config) { c.Backend = config.BackendCluster }, "backend"},
		"a socket in use":    {2, good, func(c *config.Config) { c.Socket = filepath.Join(dir, "busy") }, "listens on"},
		"no socket":          {2, good, func(c *config.Config) { c.Socket = filepath.Join(dir, "file") }, "is no socket"},
		"below no directory": {2, good, func(c *config.Config) { c.Socket = filepath.Join(dir, "file", "sock") }, "is no directory"},
		"a damaged journal":  {2, damaged, func(*config.Config) {}, "journal"},
		"a torn journal":     {2, good[:len(good)-3], func(*config.Config) {}, ""}, // a record is being written
		"no journal":         {2, nil, func(*config.Config) {}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			if k.journal == nil {
				os.Remove(file)
			} else if err := os.WriteFile(file, k.journal, 0o600); err != nil {
				t.Fatal(err)
			}
			text := now.variable()
			_, value, _ := strings.Cut(text, "=")
			t.Setenv(runningEnv, value)
			next := c
			k.change(&next)
			err := CheckTakeOver(next, k.version)
			switch {
			case k.want == "" && err != nil:
				t.Error(err)
			case k.want != "" && (err == nil || !strings.Contains(err.Error(), k.want)):
				t.Errorf("%v, and not %q", err, k.want)
			}
			if left, _ := os.ReadFile(file); string(left) != string(k.journal) {
				t.Error("the journal was changed")
			}
			if list, _ := filepath.Glob(filepath.Join(jdir, "*damaged*")); len(list) > 0 {
				t.Errorf("it was set aside: %v", list)
			}
		})
	}
}

// A watchdog that may be armed is not left behind by a restart in place.
func TestSameWatchdog(t *testing.T) {
	c := config.Default()
	c.Backend, c.Guard.Watchdog = config.BackendCluster, "/dev/watchdog"
	for name, k := range map[string]struct {
		change func(*config.Config)
		want   string
	}{
		"the same":   {func(*config.Config) {}, ""},
		"none":       {func(c *config.Config) { c.Guard.Watchdog = "" }, "guard.watchdog"},
		"another":    {func(c *config.Config) { c.Guard.Watchdog = "/dev/watchdog1" }, "/dev/watchdog1"},
		"guard off":  {func(c *config.Config) { c.Guard.Mode = config.GuardOff }, "the guard is off"},
		"other mode": {func(c *config.Config) { c.Guard.Mode = config.GuardFencing }, ""},
	} {
		next := c
		k.change(&next)
		err := runningWith(c).sameLocks(next)
		if (err != nil) != (k.want != "") || err != nil && !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v, and not %q", name, err, k.want)
		}
	}
	next := c
	c.Guard.Watchdog = ""
	if err := runningWith(c).sameLocks(next); err != nil {
		t.Errorf("a new one: %v", err)
	}
}
