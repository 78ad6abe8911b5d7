package crash_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/journal"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// killedHolding has a daemon that is killed after the workload, and returns who did it and what they were told.
func (w *world) killedHolding(t *testing.T) ([]*vm, map[string]*told) {
	t.Helper()
	vms := []*vm{newVM(t, 0), newVM(t, 1), newVM(t, 2)}
	state := map[string]*told{}
	for _, name := range w.names {
		state[name] = &told{owners: map[*vm]int{}}
	}
	d := w.start(t, "")
	if !w.work(vms, state, d) {
		t.Fatal("the workload was not completed")
	}
	_ = d.cmd.Process.Signal(syscall.SIGKILL)
	<-d.done
	return vms, state
}

// goneRound is about a journal that is removed while something is held. The environment is that of
// the daemon that finds out so. The one after it keeps everything locked until an operator settles that.
func (w *world) goneRound(t *testing.T, env string) (killed bool) {
	vms, state := w.killedHolding(t)
	if err := os.RemoveAll(filepath.Dir(w.journal(t))); err != nil {
		t.Fatal(err)
	}
	d := w.start(t, env)
	if !d.ended() {
		d.stop(t)
	}
	killed = endedBySignal(d.err)
	if !killed && d.err != nil {
		t.Fatalf("the daemon ended by itself: %v\n%s", d.err, d.out.String())
	}

	again := w.start(t, "")
	defer func() {
		again.stop(t)
		if t.Failed() {
			t.Logf("the daemon that was to end:\n%s\nthe daemon after it:\n%s", d.out.String(), again.out.String())
		}
	}()
	for name, st := range state {
		if got := kernelMode(t, w.path(name)); got != wantedMode(st) {
			t.Errorf("%s: clients were told that it is %s, and the kernel says %s", name, wantedMode(st), got)
		}
		if len(st.owners) == 0 {
			continue
		}
		if known, err := w.acquire(newVM(t, 9), name, 0); !known || err == nil {
			t.Errorf("a stranger asks for %s, which %d owners have: answered %v, %v", name, len(st.owners), known, err)
		}
	}
	w.awaitControl(t, again)
	for _, v := range vms {
		v.end()
	}
	if !w.settle(t, again) {
		t.Error("the doubt cannot be settled")
	}
	w.nothingIsLeft(t, nil)
	if !w.audited(t) {
		t.Error("the audit log does not say who settled the doubt")
	}
	return killed
}

// tornRecord is what kind of record a daemon has written half of when it was killed.
func (w *world) tornRecord(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(w.journal(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // the next daemon is to find it as it is
	if err := os.WriteFile(filepath.Join(dir, "journal"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	boot, err := journal.BootID()
	if err != nil {
		t.Fatal(err)
	}
	j, found, err := journal.Open(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	const half = 14 // of a record about an entry: mark, size, check, kind, seq and sum have 29 bytes (internal/journal/record.go)
	switch {
	case found.Damage == nil || found.Damage.Tail == 0:
		return "none"
	case found.Damage.Tail != half:
		return "intend"
	}
	// The entry says how far it has come before.
	for _, e := range found.Entries {
		switch e.State {
		case locking.EntryIntended:
			return "grant"
		case locking.EntryReleasing:
			return "forget"
		}
	}
	return "releasing"
}
