package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// TestToldGifts: of thousands that cannot be kept the log has one line, and another one when it works again; and so each time.
func TestToldGifts(t *testing.T) {
	const many = 1000
	kept, log := locktest.NewGifts(t), &testenv.Log{}
	g := &toldGifts{GiftJournal: kept, dir: "/run/vmlockd/journal-local", log: slog.New(slog.NewTextHandler(log, nil))}
	add := func(fails error) {
		kept.Fail(fails)
		var group sync.WaitGroup
		for n := range many {
			group.Go(func() {
				seq, err := g.Add(locking.Kept{OwnerStart: 1, Stamp: locking.Stamp{Inode: uint64(n) + 1}})
				if err != fails || (seq == 0) != (fails != nil) {
					t.Errorf("%d, %v", seq, err)
				}
			})
		}
		group.Wait()
	}
	lines := func(want ...string) {
		t.Helper()
		got := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
		if log.String() == "" {
			got = nil
		}
		if len(got) != len(want) {
			t.Fatalf("%d lines, want %d: %s", len(got), len(want), log.String())
		}
		for i, part := range want {
			if !strings.Contains(got[i], part) {
				t.Errorf("line %d does not say %q: %s", i, part, got[i])
			}
		}
	}
	const fails = `event=given-back-not-kept directory=/run/vmlockd/journal-local reason="no space left on device"`
	add(nil)
	lines()
	add(unix.ENOSPC)
	lines(fails)
	add(unix.ENOSPC)
	lines(fails)
	add(nil)
	lines(fails, "not_kept=2000")
	add(unix.ENOSPC)
	add(nil)
	lines(fails, "not_kept=2000", fails, "not_kept=1000")
	if err := g.Forget(kept.Kept()[0].Seq); err != nil || len(kept.Kept()) != 3*many-1 {
		t.Errorf("it does not forget: %v", err)
	}
}

// TestGivenBackNotKept: a whole daemon says so, no release fails, and it goes on by itself.
func TestGivenBackNotKept(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	s.start()
	// libvirt's note of it, or it would not be remembered at all.
	err := os.Mkdir(statusDir(s.socket), 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(statusDir(s.socket), "web.xml"), []byte("<domstatus/>"), 0o600)
	}
	dir := filepath.Join(s.dir, "run", journalPrefix+"local")
	inTheWay := filepath.Join(dir, "given-back")
	if err == nil {
		err = os.WriteFile(inTheWay, nil, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, s.socket)
	if err == nil {
		defer c.Close()
		err = c.Register(ctx, locking.Owner{PID: int32(vm(t).Process.Pid), ID: 1, Name: "web"})
	}
	if err != nil {
		t.Fatal(err)
	}
	giveBack := func() {
		t.Helper()
		if err := c.Acquire(ctx, locking.Ref{Name: disk}, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Release(ctx, locking.Ref{Name: disk}); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		giveBack()
	}
	if f := s.event("given-back-not-kept"); f["VMLOCKD_DIRECTORY"] != dir || !strings.Contains(f["VMLOCKD_REASON"], "not a directory") || f["PRIORITY"] != "4" {
		t.Errorf("%v", f)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	giveBack()
	for {
		f := s.journal.Next(t)
		if f["VMLOCKD_EVENT"] == "given-back-not-kept" {
			t.Error("it says so more than once")
		}
		if n := f["VMLOCKD_NOT_KEPT"]; n != "" {
			if n != "3" {
				t.Errorf("it counts %s", n)
			}
			break
		}
	}
}
