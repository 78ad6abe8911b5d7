package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestHolderEndsAfterTheCheck: the holder was complete when it was asked whether this
// program can be replaced, and is gone when that is to happen. Then no other program is
// executed, as this one has the last descriptor, and it goes on with it.
func TestHolderEndsAfterTheCheck(t *testing.T) {
	c := config.Default()
	c.RunDir = t.TempDir()
	disk := filepath.Join(t.TempDir(), "web.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	for _, whole := range []bool{true, false} {
		b, err := newKeptFiles(c, log, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		h, err := b.Open(t.Context(), locking.Ref{Name: disk}, false)
		if err == nil {
			err = h.Lock(t.Context(), locking.Exclusive)
		}
		if err != nil {
			t.Fatal(err)
		}
		held := locking.Held{ID: h.ID(), Ref: locking.Ref{Name: disk}, Mode: locking.Exclusive, Told: true}
		if err := b.Replaceable(); err != nil {
			t.Fatal(err)
		}
		blocked, err := os.OpenFile(filepath.Join(c.RunDir, "holder.sock.lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(blocked.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(b.keeper.Status().PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the end of the holder is noticed", func() bool { return b.keeper.Complete() != nil })
		if err := b.Replaceable(); !errors.Is(err, holder.ErrIncomplete) {
			t.Errorf("replaceable: %v", err)
		}
		stop := watchHeld(t, disk)
		kept, err := b.Keep(t.Context(), whole)
		if err != nil || kept.here == nil || kept.look == whole {
			t.Fatalf("kept: %+v, %v", kept, err)
		}
		r, w, err := os.Pipe() // in place of a listener
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		program, err := exec.LookPath("false") // would end this test if it were executed
		if err != nil {
			t.Fatal(err)
		}
		s := &state{Version: stateLocks, listener: r, kept: kept}
		if err := s.execute(t.Context(), t.Context(), program, []string{program}, nil); !errors.Is(err, kept.here) {
			t.Errorf("executed: %v", err)
		}
		next, err := newKeptFiles(c, log, s.kept.takeLocal(), kept.look)
		if err != nil {
			t.Fatal(err)
		}
		res := next.Restore(context.Background(), []locking.Held{held})
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
		blocked.Close()
		until(t, "the next holder has everything", func() bool { return next.Replaceable() == nil })
		stop()
		if err := res[0].Handle.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		if !isFree(t, disk) {
			t.Error("it is not released")
		}
		if err := next.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	}
}
