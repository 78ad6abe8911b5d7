package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// fileWorkers is how many goroutines there are for accesses to files, and how many of them wait for one.
func fileWorkers() (all, waiting int) {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for one := range strings.SplitSeq(string(stacks), "\n\n") {
		state, calls, _ := strings.Cut(one, "\n")
		if !strings.Contains(calls, "local.(*Backend).work(") {
			continue
		}
		all++
		if strings.Contains(state, "[chan receive") {
			waiting++
		}
	}
	return all, waiting
}

// TestKeptWorkers: the daemon's goroutines for files wait for the next access, and are gone when the
// backend is closed or given to the next instance, of which there can be many in one process.
func TestKeptWorkers(t *testing.T) {
	c := config.Default()
	c.RunDir = t.TempDir()
	path := filepath.Join(t.TempDir(), "web.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pair := func(b keptFiles) {
		t.Helper()
		h, err := b.Open(t.Context(), locking.Ref{Name: path}, false)
		if err == nil {
			err = h.Lock(t.Context(), locking.Exclusive)
		}
		if err == nil {
			err = h.Unlock(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	none := func() bool { all, _ := fileWorkers(); return all == 0 }
	some := func() bool { _, waiting := fileWorkers(); return waiting > 0 }
	log := slog.New(slog.DiscardHandler)
	until(t, "none of an earlier test is left", none)
	b, err := newKeptFiles(c, log, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	pair(b)
	until(t, "some wait", some)
	kept, err := b.Keep(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "none is left after Keep", none)
	next, err := newKeptFiles(c, log, kept.takeLocal(), kept.look)
	if err != nil {
		t.Fatal(err)
	}
	pair(next)
	until(t, "some wait again", some)
	if err := next.Close(context.Background(), false); err != nil {
		t.Error(err)
	}
	until(t, "none is left after Close", none)
}
