package daemon

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/virtlockd"
)

// The journal is removed while the daemon is down. What is held stays so, at the next
// start and the one after, until somebody settles it; also if the first one is killed before
// it has written down what it found.
func TestJournalGone(t *testing.T) {
	for _, killedAt := range []string{"", "journal.fresh.rename.after", "journal.suspect.before", "journal.append.half", "journal.suspect.after"} {
		t.Run(killedAt, func(t *testing.T) { journalGone(t, killedAt) })
	}
}

func journalGone(t *testing.T, killedAt string) {
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
	s.killedAt(killedAt)
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

// killedAt runs a daemon that is killed at a fail point; "" is none.
func (s *served) killedAt(point string) {
	s.t.Helper()
	if point == "" {
		return
	}
	s.t.Setenv(failpoint.Variable, point)
	s.launch()
	_ = s.cmd.Wait()
	if ws := s.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		s.t.Fatalf("it was to be killed at %s: %v", point, s.cmd.ProcessState)
	}
	if err := os.Unsetenv(failpoint.Variable); err != nil {
		s.t.Fatal(err)
	}
}

// The first start of a boot is no reason for alarm, also if it is killed; and a journal of which that was
// found out is one like any other, for earlier versions too.
func TestFirstStartKilled(t *testing.T) {
	for _, killedAt := range []string{"", "journal.fresh.rename.after", "journal.settled.before", "journal.append.half", "journal.settled.after"} {
		t.Run(killedAt, func(t *testing.T) {
			s := build(t)
			s.killedAt(killedAt)
			s.launch()
			for ready := false; !ready; {
				f := s.journal.Next(t)
				if f["VMLOCKD_EVENT"] == "journal-damaged" {
					t.Errorf("%v", f)
				}
				ready = f["VMLOCKD_EVENT"] == "daemon-ready"
			}
			s.end(syscall.SIGTERM)
			boot, err := journal.BootID()
			if err != nil {
				t.Fatal(err)
			}
			j, found, err := journal.Open(filepath.Join(s.dir, "run", "journal-local"), boot)
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if found.Fresh || found.Damage != nil {
				t.Errorf("%+v", found)
			}
		})
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

// lockspaceAt has the kernel say whether this host is in the lockspace.
func lockspaceAt(t *testing.T, there *bool) {
	real := minorOf
	minorOf = func(string) (uint32, error) {
		if *there {
			return 1, nil
		}
		return 0, dlm.ErrNoLockspace
	}
	t.Cleanup(func() { minorOf = real })
}

// A lockspace that was there before the daemon may have locks, if the journal is new. What a start that
// failed has joined itself has none.
func TestLockspaceWithoutJournal(t *testing.T) {
	const (
		killed = iota // before it has looked for the lockspace
		failed        // after it has
		served
	)
	type try struct {
		there bool
		end   int
	}
	for name, k := range map[string]struct {
		journal bool
		starts  []try
		want    bool
	}{
		"the first start of a boot":                           {false, []try{{false, served}}, false},
		"a journal, and a lockspace":                          {true, []try{{true, served}}, false},
		"no journal, and a lockspace":                         {false, []try{{true, served}}, true},
		"a journal, and it was left":                          {true, []try{{false, served}}, false},
		"first start failed":                                  {false, []try{{true, failed}, {true, served}}, true},
		"first start failed, and it was left":                 {false, []try{{true, failed}, {false, served}}, true},
		"first start killed":                                  {false, []try{{true, killed}, {true, killed}, {true, served}}, true},
		"first start failed, when it had joined":              {false, []try{{false, failed}, {true, failed}, {true, served}}, false},
		"first start killed, and the next one failed, joined": {false, []try{{false, killed}, {false, failed}, {true, served}}, false},
		"first start failed without joining":                  {false, []try{{false, failed}, {false, served}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			there := false
			lockspaceAt(t, &there)
			c := config.Default()
			c.Backend, c.RunDir = config.BackendCluster, t.TempDir()
			starts := append([]try{}, k.starts...)
			if k.journal {
				starts = append([]try{{false, served}}, starts...)
			}
			for n, s := range append(starts, try{true, served}) {
				there = s.there
				i := &instance{cfg: c, log: slog.New(slog.DiscardHandler)}
				found, err := i.openJournal("boot")
				if err != nil {
					t.Fatal(err)
				}
				if s.end != killed {
					if err := i.judgeLockspace(&found); err != nil {
						t.Fatal(err)
					}
				}
				if s.end == served {
					if err := i.judgeJournal(&found); err != nil {
						t.Fatal(err)
					}
				}
				if err := i.journal.Close(); err != nil {
					t.Fatal(err)
				}
				if doubt := found.Damage != nil && found.Damage.Unknown; s.end == served && n >= len(starts)-1 && doubt != k.want {
					t.Errorf("in doubt at start %d: %v (%v)", n, doubt, found.Damage)
				}
			}
		})
	}
}

// A start that cannot use the cluster has looked for the lockspace before: nothing that comes later
// may make the next one forget it.
func TestStartFailedWithoutJournal(t *testing.T) {
	for _, there := range []bool{false, true} {
		t.Run(fmt.Sprint(there), func(t *testing.T) {
			lockspaceAt(t, &there)
			c := inProcess(t)
			c.Backend, c.Cluster.Lockspace = config.BackendCluster, "no-such-lockspace"
			if _, err := start(c, "test", quiet(), nil, &given{}); err == nil {
				t.Fatal("there is a DLM on this machine")
			}
			boot, err := journal.BootID()
			if err != nil {
				t.Fatal(err)
			}
			j, found, err := journal.Open(filepath.Join(c.RunDir, journalDir(c)), boot)
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if doubt := found.Damage != nil && found.Damage.Unknown; found.Fresh || doubt != there {
				t.Errorf("fresh: %v, in doubt: %v (%v)", found.Fresh, doubt, found.Damage)
			}
		})
	}
}

// What a virtlockd has left is all that is held: its journal is one like any other before the holder has it,
// and a doubt that was there stays.
func TestVirtlockdWithoutJournal(t *testing.T) {
	for _, doubt := range []bool{false, true} {
		t.Run(fmt.Sprint(doubt), func(t *testing.T) {
			dir := t.TempDir()
			j, found, err := journal.Open(dir, "boot")
			if err != nil {
				t.Fatal(err)
			}
			if doubt {
				if found.Damage, err = j.Suspect("it is held"); err != nil {
					t.Fatal(err)
				}
				found.Fresh = false
			}
			r := &replaced{left: &virtlockd.State{}, entries: []locking.Entry{{ID: "x", Ref: locking.Ref{Name: "/d"}}}}
			if err := r.noteFiles(config.Default(), j, &found); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			j, found, err = journal.Open(dir, "boot")
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if known := found.Damage != nil && found.Damage.Unknown; found.Fresh || len(found.Entries) != 1 || known != doubt {
				t.Errorf("%+v", found)
			}
		})
	}
}

// A kernel that does not say whether there is a lockspace may have it.
func TestLockspaceIsThere(t *testing.T) {
	real := minorOf
	defer func() { minorOf = real }()
	for _, k := range []struct {
		err  error
		want bool
	}{{nil, true}, {dlm.ErrNoLockspace, false}, {fs.ErrPermission, true}} {
		minorOf = func(string) (uint32, error) { return 1, k.err }
		if got := lockspaceIsThere("x"); got != k.want {
			t.Errorf("%v: %v", k.err, got)
		}
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
