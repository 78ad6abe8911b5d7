package journal

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const boot = "6f1c9bd6-ed0b-4a6e-9d33-2bdff8e9e7a1"

// TestMain is also the child that the crash tests kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("JOURNAL_CHILD"); dir != "" {
		child(dir)
		os.Exit(0)
	}
	// Two runs of FuzzOpen never cover quite the same, as marks are random. By
	// default the fuzzer would spend its time on making inputs smaller, in vain.
	_ = flag.Set("test.fuzzminimizetime", "5x")
	os.Exit(m.Run())
}

// memoryDir is a directory in memory where there is one, as the run-time directory is.
func memoryDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "journal-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mustOpen(t testing.TB, dir string) (*Journal, Recovered) {
	t.Helper()
	j, r, err := Open(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j, r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustIntend(t testing.TB, j *Journal, e locking.Entry) uint64 {
	t.Helper()
	seq, err := j.Intend(e)
	must(t, err)
	return seq
}

// entry is an entry like those of libvirt, n of them different.
func entry(n int) locking.Entry {
	return locking.Entry{
		ID:         fmt.Sprintf("file:fd00:%d", 1000000+n),
		Ref:        locking.Ref{Name: fmt.Sprintf("/var/lib/libvirt/images/vm-%06d.qcow2", n)},
		Owner:      locking.Owner{PID: int32(1000 + n), ID: uint32(n), Name: fmt.Sprintf("vm-%06d", n), UUID: [16]byte{1, byte(n)}},
		OwnerStart: uint64(123456 + n),
		Since:      time.Unix(1700000000, int64(n)),
	}
}

// journalFile is the path of the journal in dir.
func journalFile(dir string) string { return filepath.Join(dir, journalName) }

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// model is what a journal must hold.
type model struct {
	entries map[uint64]locking.Entry
	spaces  []string
}

func newModel() model { return model{entries: map[uint64]locking.Entry{}} }

func (m model) clone() model {
	return model{maps.Clone(m.entries), slices.Clone(m.spaces)}
}

// diff says how what was recovered differs from the model, or "".
func (m model) diff(r Recovered) string {
	var seqs []uint64
	for _, e := range r.Entries {
		seqs = append(seqs, e.Seq)
		if want, ok := m.entries[e.Seq]; !ok || !same(e, want) {
			return fmt.Sprintf("entry %+v, want %+v (%v)", e, want, ok)
		}
	}
	if !slices.IsSorted(seqs) {
		return fmt.Sprintf("not in order: %v", seqs)
	}
	if len(seqs) != len(m.entries) {
		return fmt.Sprintf("entries %v, want %v", seqs, slices.Sorted(maps.Keys(m.entries)))
	}
	if !slices.Equal(r.Lockspaces, m.spaces) {
		return fmt.Sprintf("lockspaces %q, want %q", r.Lockspaces, m.spaces)
	}
	return ""
}

func same(a, b locking.Entry) bool {
	ok := a.Since.Equal(b.Since)
	a.Since, b.Since = time.Time{}, time.Time{}
	return ok && a == b
}
