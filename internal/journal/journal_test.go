package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestLife(t *testing.T) {
	dir := memoryDir(t)
	j, r := mustOpen(t, dir)
	if len(r.Entries) > 0 || len(r.Lockspaces) > 0 || r.Damage != nil {
		t.Fatalf("a new journal holds %+v", r)
	}
	must(t, j.Settled())
	want := newModel()
	for i, last := range []func(uint64) error{
		func(uint64) error { return nil }, j.Grant, j.Releasing,
		func(seq uint64) error { return errors.Join(j.Grant(seq), j.Releasing(seq)) },
		func(seq uint64) error { return errors.Join(j.Releasing(seq), j.Grant(seq), j.Grant(seq)) },
	} {
		e := entry(i)
		e.Ref.Lockspace, e.Autocreate = strings.Repeat("\xff", i*MaxName/4), i%2 == 0
		e.Mode = locking.Mode(i % 2)
		e.Seq = mustIntend(t, j, e)
		must(t, last(e.Seq))
		e.State = []locking.EntryState{locking.EntryIntended, locking.EntryGranted, locking.EntryReleasing, locking.EntryReleasing, locking.EntryGranted}[i]
		want.entries[e.Seq] = e
	}
	gone := mustIntend(t, j, entry(9))
	must(t, j.Forget(gone))
	for _, f := range []func(uint64) error{j.Grant, j.Releasing, j.Forget} {
		if err := f(gone); !errors.Is(err, ErrNoEntry) {
			t.Errorf("after Forget: %v, want ErrNoEntry", err)
		}
	}
	want.spaces = []string{"/b", "", "/a\x00\xff"}
	for _, s := range append(want.spaces, want.spaces...) {
		must(t, j.AddLockspace(s))
	}
	records := j.Stats().Records
	must(t, j.Settled()) // nothing to settle, nothing to write
	if s := j.Stats(); s.Records != records || s.Entries != 5 || s.Lockspaces != 3 || s.LiveBytes > s.Bytes {
		t.Errorf("stats %+v", s)
	}
	must(t, j.Close())

	j, r = mustOpen(t, dir)
	if d := want.diff(r); d != "" || r.Damage != nil {
		t.Fatalf("%s, damage %v", d, r.Damage)
	}
	if seq := mustIntend(t, j, entry(1)); seq <= gone {
		t.Errorf("seq %d is not higher than %d", seq, gone)
	}
}

// A note that is too long for the journal is none.
func TestLongNote(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	for _, n := range []int{MaxNote, MaxNote + 1} {
		e := entry(0)
		e.Note = strings.Repeat("n", n)
		mustIntend(t, j, e)
	}
	must(t, j.Close())
	_, r := mustOpen(t, dir)
	if len(r.Entries) != 2 || len(r.Entries[0].Note) != MaxNote || r.Entries[1].Note != "" || r.Damage != nil {
		t.Errorf("it holds %d entries, damage %v", len(r.Entries), r.Damage)
	}
}

func TestRefusals(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	long := strings.Repeat("x", MaxName+1)
	for name, change := range map[string]func(*locking.Entry){
		"name":      func(e *locking.Entry) { e.Ref.Name = long },
		"lockspace": func(e *locking.Entry) { e.Ref.Lockspace = long },
		"owner":     func(e *locking.Entry) { e.Owner.Name = long },
		"id":        func(e *locking.Entry) { e.ID = strings.Repeat("x", MaxID+1) },
	} {
		e := entry(0)
		change(&e)
		if _, err := j.Intend(e); !errors.Is(err, ErrTooLong) {
			t.Errorf("%s: %v, want ErrTooLong", name, err)
		}
	}
	if err := j.AddLockspace(long); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v, want ErrTooLong", err)
	}
	e := entry(0)
	e.State = 3
	if _, err := j.Intend(e); err == nil {
		t.Error("a state that does not exist is accepted")
	}
	if n := j.Stats().Records; n != 0 {
		t.Errorf("%d records were written", n)
	}
	// The longest that is accepted is read again.
	e = locking.Entry{ID: strings.Repeat("i", MaxID), Ref: locking.Ref{Lockspace: long[1:], Name: long[1:]}, Owner: locking.Owner{Name: long[1:]}}
	e.Seq = mustIntend(t, j, e)
	must(t, j.Close())
	for _, err := range []error{j.Grant(e.Seq), j.Forget(e.Seq), j.AddLockspace("a"), j.Settled(), j.Close()} {
		if err != ErrClosed {
			t.Errorf("%v, want ErrClosed", err)
		}
	}
	_, r := mustOpen(t, dir)
	if len(r.Entries) != 1 || r.Entries[0].Seq != e.Seq || r.Entries[0].ID != e.ID {
		t.Errorf("%d entries, damage %v", len(r.Entries), r.Damage)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	if _, _, err := Open(dir, boot); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("%v, want ErrInUse and who", err)
	}
	must(t, j.Close())
	for _, id := range []string{"", strings.Repeat("b", maxBoot+1)} {
		if _, _, err := Open(dir, id); err == nil {
			t.Errorf("boot id %q is accepted", id)
		}
	}
	if _, _, err := Open(filepath.Join(dir, "missing"), boot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want ErrNotExist", err)
	}
	must(t, os.Rename(journalFile(dir), journalFile(dir)+"2"))
	must(t, os.Symlink(journalName+"2", journalFile(dir)))
	if _, _, err := Open(dir, boot); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link: %v, want ELOOP", err)
	}
	// None of these took the lock with it.
	must(t, os.Rename(journalFile(dir)+"2", journalFile(dir)))
	_, r := mustOpen(t, dir)
	if r.Damage != nil {
		t.Error(r.Damage)
	}
}

func TestOtherBoot(t *testing.T) {
	dir := memoryDir(t)
	for range 2 {
		j, _ := mustOpen(t, dir)
		mustIntend(t, j, entry(1))
		must(t, j.AddLockspace("/a"))
		must(t, j.Close())
		old := readFile(t, journalFile(dir))
		j, r, err := Open(dir, "another boot")
		must(t, err)
		if d := r.Damage; len(r.Entries)+len(r.Lockspaces) > 0 || d == nil || d.Unknown || d.OtherBoot != boot {
			t.Fatalf("%+v", r)
		}
		if !slices.Equal(readFile(t, r.Damage.Aside), old) {
			t.Error("what was set aside is something else")
		}
		must(t, j.Close())
		must(t, os.Remove(journalFile(dir)))
	}
}

func TestMissing(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	mustIntend(t, j, entry(1))
	must(t, j.Close())
	must(t, os.Remove(journalFile(dir)))
	j, r := mustOpen(t, dir)
	if r.Damage == nil || !r.Damage.Unknown || !r.Damage.Missing {
		t.Errorf("damage %v", r.Damage)
	}
	must(t, j.Close())
	if _, r = mustOpen(t, dir); r.Damage == nil || !r.Damage.Unknown || r.Damage.Missing {
		t.Errorf("at the next start: damage %v", r.Damage)
	}
}

// Who opens the first journal of a boot is told so, as often as nobody has said what that
// means, and can say that something is held all the same.
func TestFresh(t *testing.T) {
	dir := memoryDir(t)
	j, r := mustOpen(t, dir)
	if !r.Fresh || r.Damage != nil {
		t.Errorf("%+v", r)
	}
	mustIntend(t, j, entry(1))
	must(t, j.compactOnce())
	must(t, j.Close())
	if j, r = mustOpen(t, dir); !r.Fresh || r.Damage != nil || len(r.Entries) != 1 {
		t.Errorf("the second time: %+v", r)
	}
	must(t, j.Close())
	b := readFile(t, journalFile(dir))
	b[copyLen] ^= 1 // of what is there twice
	must(t, os.WriteFile(journalFile(dir), b, 0o600))
	if j, r = mustOpen(t, dir); !r.Fresh || r.Damage == nil || r.Damage.Unknown {
		t.Errorf("with a damaged header: %+v", r)
	}
	must(t, j.Close())
	if j, r = mustOpen(t, dir); !r.Fresh || r.Damage != nil {
		t.Errorf("after that: %+v", r)
	}
	if err := Check(dir, boot); err != nil {
		t.Error(err)
	}
	if d, err := j.Suspect("it is held"); err != nil || !d.Unknown || !strings.Contains(d.String(), "it is held") {
		t.Errorf("%v, %v", d, err)
	}
	must(t, j.Close())
	j, r = mustOpen(t, dir)
	if r.Fresh || r.Damage == nil || !r.Damage.Unknown || !strings.Contains(r.Damage.Earlier, "it is held") {
		t.Errorf("at the next start: %+v", r)
	}
	must(t, j.Settled())
	must(t, j.Close())
	if j, r = mustOpen(t, dir); r.Fresh || r.Damage != nil {
		t.Errorf("when it is settled: %+v", r)
	}
	must(t, j.Close())
	j, r, err := Open(dir, "another boot")
	must(t, err)
	if !r.Fresh || r.Damage.Unknown {
		t.Errorf("in another boot: %+v", r)
	}
	must(t, j.Close())
	must(t, os.Remove(journalFile(dir)))
	j, r, err = Open(dir, "another boot")
	must(t, err)
	if r.Fresh || !r.Damage.Missing {
		t.Errorf("when it was removed: %+v", r)
	}
	must(t, j.Close())
}

// A new journal of which part is lost before somebody has judged it brings a doubt like any other.
func TestFreshAndDamaged(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	off := j.end
	mustIntend(t, j, entry(1))
	mustIntend(t, j, entry(2))
	must(t, j.Close())
	b := readFile(t, journalFile(dir))
	b[off+20] ^= 1
	must(t, os.WriteFile(journalFile(dir), b, 0o600))
	for range 2 {
		j, r := mustOpen(t, dir)
		if r.Fresh || r.Damage == nil || !r.Damage.Unknown {
			t.Errorf("%+v", r)
		}
		must(t, j.Close())
	}
}

// A journal of the versions before, which said nothing of what they had found out, is not Fresh.
func TestFreshOfEarlierVersion(t *testing.T) {
	dir := memoryDir(t)
	w, err := newFresh(dir, boot, 1)
	must(t, err)
	must(t, w.install())
	must(t, w.f.Close())
	if _, r := mustOpen(t, dir); r.Fresh || r.Damage != nil {
		t.Errorf("%+v", r)
	}
}

func TestLive(t *testing.T) {
	dir := memoryDir(t)
	if n, err := Live(dir, boot); n != 0 || err != nil {
		t.Errorf("without a journal: %d, %v", n, err)
	}
	j, _ := mustOpen(t, dir)
	seq := mustIntend(t, j, entry(1))
	mustIntend(t, j, entry(2))
	if n, err := Live(dir, boot); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	must(t, j.Forget(seq))
	if n, err := Live(dir, boot); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := Live(dir, "another boot"); n != 0 || err != nil {
		t.Errorf("in another boot: %d, %v", n, err)
	}
	must(t, os.WriteFile(journalFile(dir), []byte("none"), 0o600))
	if _, err := Live(dir, boot); err == nil {
		t.Error("no error for a damaged one")
	}
}

// Of a newer version nothing is taken for granted.
func TestNewerVersion(t *testing.T) {
	t.Run("header", func(t *testing.T) {
		dir := memoryDir(t)
		j, _ := mustOpen(t, dir)
		mustIntend(t, j, entry(1))
		must(t, j.Close())
		b := readFile(t, journalFile(dir))
		for _, c := range [][]byte{b[:copyLen], b[copyLen:headersLen]} {
			c[8] = version + 1
			copy(c[copyLen-sumLen:], leSum(sum(0, c[:copyLen-sumLen])))
		}
		must(t, os.WriteFile(journalFile(dir), b, 0o600))
		_, r := mustOpen(t, dir)
		if r.Damage == nil || !r.Damage.Unknown || len(r.Entries) > 0 || !strings.Contains(r.Damage.String(), "version 2") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("kind", func(t *testing.T) {
		dir := memoryDir(t)
		j, _ := mustOpen(t, dir)
		mustIntend(t, j, entry(1))
		j.buf = appendText(nil, j.mark, j.end, kindSettled+1, "what is this")
		must(t, j.lockedWrite(stepIntend))
		mustIntend(t, j, entry(2))
		must(t, j.Close())
		_, r := mustOpen(t, dir)
		if r.Damage == nil || !r.Damage.Unknown || len(r.Damage.Regions) != 1 || len(r.Entries) != 2 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("transition", func(t *testing.T) {
		dir := memoryDir(t)
		j, _ := mustOpen(t, dir)
		must(t, j.lockedNote(stepGrant, kindGrant, 7))
		must(t, j.Close())
		_, r := mustOpen(t, dir)
		if r.Damage == nil || !r.Damage.Unknown || !strings.Contains(r.Damage.String(), "entry 7") {
			t.Errorf("%+v", r)
		}
	})
}

func leSum(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }

// A name that holds the bytes of a record does not become one.
func TestForgedRecord(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	e := entry(1)
	e.Ref.Name = string(appendEntry(nil, mark{}, 512, &locking.Entry{Seq: 77})) + string(appendNote(nil, mark{}, 600, kindForget, 1))
	off := j.end
	mustIntend(t, j, e)
	mustIntend(t, j, entry(2))
	must(t, j.Close())
	b := readFile(t, journalFile(dir))
	b[off] ^= 1
	must(t, os.WriteFile(journalFile(dir), b, 0o600))
	_, r := mustOpen(t, dir)
	if len(r.Entries) != 1 || r.Entries[0].Seq != 2 || !r.Damage.Unknown {
		t.Errorf("%+v, damage %v", r.Entries, r.Damage)
	}
}

func TestConcurrent(t *testing.T) {
	old := compactMin
	t.Cleanup(func() { compactMin = old }) // when no journal is open any more
	compactMin = 16 << 10
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	const goroutines, rounds = 8, 400
	kept := make([]locking.Entry, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range rounds {
				pair(t, j, entry(g*rounds+i))
			}
			e := entry(g)
			e.Seq = mustIntend(t, j, e)
			kept[g] = e
		})
	}
	wg.Wait()
	must(t, j.Close())
	s := j.Stats()
	if s.Compactions == 0 || s.Failures > 0 || s.LastFailure != nil {
		t.Errorf("%+v", s)
	}
	want := newModel()
	for _, e := range kept {
		want.entries[e.Seq] = e
	}
	_, r := mustOpen(t, dir)
	if d := want.diff(r); d != "" || r.Damage != nil {
		t.Errorf("%s, damage %v", d, r.Damage)
	}
}
