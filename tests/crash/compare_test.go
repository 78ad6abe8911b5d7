package crash_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// kill ends a daemon that has settled what the one before it left.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGKILL)
	<-d.done
	if !endedBySignal(d.err) {
		t.Fatalf("the daemon ended by itself: %v\n%s", d.err, d.out.String())
	}
}

// compare holds the journal and the kernel, while there is no daemon, against what
// clients were told. It is for the backend "local".
func (w *world) compare(t *testing.T, state map[string]*told) {
	t.Helper()
	w.compareEntries(t, filepath.Join(w.dir, "run", "journal-local"), state)
	for name, st := range state {
		if st.doubt {
			continue
		}
		if got := kernelMode(t, w.path(name)); got != wantedMode(st) {
			t.Errorf("%s: clients were told that it is %s, and the kernel says %s", name, wantedMode(st), got)
		}
	}
}

// compareJournal holds the journal of a daemon that runs, and is asked for nothing,
// against what clients were told. What the kernel has of it is seen by who asks for it.
func (w *world) compareJournal(t *testing.T, state map[string]*told) {
	t.Helper()
	b, err := os.ReadFile(w.journal(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // the daemon has locked the other one
	if err := os.WriteFile(filepath.Join(dir, "journal"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.compareEntries(t, dir, state)
}

// journal is the file of the one journal that there is.
func (w *world) journal(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.dir, "run", "journal-*", "journal"))
	if err != nil || len(found) != 1 {
		t.Fatalf("journals: %v, %v", found, err)
	}
	return found[0]
}

// compareEntries does that with the journal in dir, which nobody has open.
func (w *world) compareEntries(t *testing.T, dir string, state map[string]*told) {
	t.Helper()
	boot, err := journal.BootID()
	if err != nil {
		t.Fatal(err)
	}
	j, found, err := journal.Open(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if found.Fresh {
		t.Error("there was no journal of this boot")
	}
	if found.Damage != nil && found.Damage.Unknown {
		t.Errorf("the journal is damaged: %v", found.Damage)
	}
	entries := map[string]map[int32]int{}
	for _, e := range found.Entries {
		if e.State != locking.EntryGranted {
			if st := state[e.Ref.Name]; st == nil || !st.doubt {
				t.Errorf("the journal has an entry of %s that was not settled: state %v", e.Ref.Name, e.State)
			}
			continue
		}
		if entries[e.Ref.Name] == nil {
			entries[e.Ref.Name] = map[int32]int{}
		}
		entries[e.Ref.Name][e.Owner.PID]++
	}
	for name, st := range state {
		if st.doubt {
			continue
		}
		uses := 0
		for v, n := range st.owners {
			uses += n
			if got := entries[name][v.owner.PID]; got != n {
				t.Errorf("%s was told %d times that it has %s, and the journal says %d", v.owner.Name, n, name, got)
			}
		}
		all := 0
		for _, n := range entries[name] {
			all += n
		}
		if all != uses {
			t.Errorf("%s: clients were told of %d uses, and the journal has %d", name, uses, all)
		}
	}
}

const (
	free      = "free"
	shared    = "shared"
	exclusive = "exclusive"
)

func wantedMode(st *told) string {
	switch {
	case len(st.owners) == 0:
		return free
	case st.shared:
		return shared
	}
	return exclusive
}

// kernelMode is how the file is locked.
func kernelMode(t *testing.T, path string) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return free // it was removed with its lock
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		t.Fatal(err)
	}
	switch l.Type {
	case unix.F_UNLCK:
		return free
	case unix.F_RDLCK:
		return shared
	}
	return exclusive
}
