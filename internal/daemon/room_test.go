package daemon

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/journal"
)

// A journal's size decides how much of the heap is ready, and no size makes that much.
func TestMakeRoom(t *testing.T) {
	c := config.Config{RunDir: t.TempDir(), Backend: config.BackendLocal}
	dir := filepath.Join(c.RunDir, journalDir(c))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	makeRoom(c) // of nothing
	if n := journal.Size(dir); n != 0 {
		t.Fatalf("there is no journal, and it has %d bytes", n)
	}
	file := filepath.Join(dir, "journal")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{100 << 10, 2 << 20, 1 << 40} {
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		makeRoom(c)
		runtime.ReadMemStats(&after)
		taken := int64(after.TotalAlloc - before.TotalAlloc)
		left := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		switch want := min(roomFactor*size, mostRoom); {
		case size < 1<<20 && taken > 1<<20,
			size > 1<<20 && (taken < want || taken > want+1<<20),
			left > 1<<20:
			t.Errorf("a journal of %d bytes: %d were taken, %d are left", size, taken, left)
		}
	}
}
