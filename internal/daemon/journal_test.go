package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// The journal is removed while the daemon is down. What is held stays so, at the next
// start and the one after, until somebody settles it.
func TestJournalGone(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	web := vm(t)
	s.start()
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	defer watchHeld(t, disk)()
	s.end(syscall.SIGKILL)
	if err := os.RemoveAll(filepath.Join(s.dir, "run", "journal-local")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.launch()
		if f := s.event("journal-damaged"); !strings.Contains(f["VMLOCKD_DAMAGE"], "there is no journal in "+filepath.Join(s.dir, "run")) {
			t.Errorf("%v", f)
		}
		s.event("daemon-ready")
		if err := s.try(vm(t).Process.Pid, "mail", disk); err == nil {
			t.Error("granted twice")
		}
		s.end(syscall.SIGTERM)
	}
}

// A daemon that was killed in the middle of a record has lost nothing, so there is no alarm, and nothing to
// settle; what it held is held by those who had it.
func TestJournalCutShort(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	web := vm(t)
	s.start()
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	s.end(syscall.SIGKILL)
	path := filepath.Join(s.dir, "run", "journal-local", "journal")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Begins as each record does: the file has its mark at 24 (internal/journal/record.go).
	if err := os.WriteFile(path, append(b, b[24:29]...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.launch()
	if f := s.event("journal-mended"); f["PRIORITY"] != "6" || !strings.Contains(f["VMLOCKD_DAMAGE"], "its 5 bytes are removed") {
		t.Errorf("%v", f)
	}
	s.event("daemon-ready")
	if err := s.try(vm(t).Process.Pid, "mail", disk); err == nil {
		t.Error("granted twice")
	}
	s.end(syscall.SIGTERM)
}

// A lockspace that was there before the daemon may have locks, if the journal is new.
func TestLockspaceWithoutJournal(t *testing.T) {
	for name, k := range map[string]struct{ fresh, there, want bool }{
		"the first start of a boot":   {true, false, false},
		"a journal, and a lockspace":  {false, true, false},
		"no journal, and a lockspace": {true, true, true},
		"a journal, and it was left":  {false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, _, err := journal.Open(dir, "boot")
			if err != nil {
				t.Fatal(err)
			}
			c := config.Default()
			c.Backend = config.BackendCluster
			i := &instance{cfg: c, journal: j, log: slog.New(slog.DiscardHandler)}
			found := journal.Recovered{Fresh: k.fresh}
			if err := i.judgeJournal(&found, k.there); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			if doubt := found.Damage != nil && found.Damage.Unknown; doubt != k.want {
				t.Errorf("in doubt: %v (%v)", doubt, found.Damage)
			}
			j, found, err = journal.Open(dir, "boot")
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if doubt := found.Damage != nil && found.Damage.Unknown; doubt != k.want {
				t.Errorf("in doubt at the next start: %v (%v)", doubt, found.Damage)
			}
		})
	}
}

// What is held with the configuration of before keeps a daemon with another one from
// starting: it would grant the same disks to others.
func TestNoOtherLocks(t *testing.T) {
	c := config.Default()
	c.RunDir = t.TempDir()
	old := c
	old.Backend, old.Cluster.Lockspace = config.BackendCluster, "old"
	dir := filepath.Join(c.RunDir, journalDir(old))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := noOtherLocks(c, "boot"); err != nil {
		t.Errorf("with an empty directory: %v", err)
	}
	j, _, err := journal.Open(dir, "boot")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := noOtherLocks(c, "boot"); err != nil {
		t.Errorf("with an empty journal: %v", err)
	}
	seq, err := j.Intend(locking.Entry{ID: "x", Ref: locking.Ref{Name: "/d"}})
	if err != nil {
		t.Fatal(err)
	}
	err = noOtherLocks(c, "boot")
	for _, want := range []string{"1 locks", `backend = "cluster"`, `cluster.lockspace = "old"`, dir, "drain"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if err := noOtherLocks(old, "boot"); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := noOtherLocks(c, "another boot"); err != nil {
		t.Errorf("of another boot: %v", err)
	}
	if err := j.Forget(seq); err != nil {
		t.Fatal(err)
	}
	if err := noOtherLocks(c, "boot"); err != nil {
		t.Errorf("when nothing is held any more: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal"), []byte("no journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := noOtherLocks(c, "boot"); err == nil || !strings.Contains(err.Error(), "remove that directory") {
		t.Errorf("with a damaged one: %v", err)
	}
}
