package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestDrainIsRemembered, as it was begun first, until it is undone.
func TestDrainIsRemembered(t *testing.T) {
	dir := t.TempDir()
	open := func() (*drainer, *locking.Manager) {
		m := locking.New(locking.Options{})
		return openDrainer(dir, m, func(bool) {}, slog.New(slog.DiscardHandler)), m
	}
	d, m := open()
	if d.Drained() != nil || m.Draining() {
		t.Fatal("drained from the beginning")
	}
	first := control.Drained{Since: time.Unix(1000, 0).UTC(), By: "root", Reason: "kernel"}
	for _, want := range []control.Drained{first, {Reason: "again"}} {
		if err := d.Drain(&want); err != nil || !m.Draining() || *d.Drained() != first {
			t.Fatalf("%v, %+v", err, d.Drained())
		}
	}
	if d, m = open(); d.Drained() == nil || *d.Drained() != first || !m.Draining() {
		t.Fatalf("after a restart: %+v", d.Drained())
	}
	for range 2 {
		if err := d.Drain(nil); err != nil || m.Draining() || d.Drained() != nil {
			t.Fatalf("undone: %v, %+v", err, d.Drained())
		}
	}
	if d, m = open(); d.Drained() != nil || m.Draining() {
		t.Error("undone, and a restart has brought it back")
	}
}

// TestDrainInDoubt: a file that cannot be understood is a drain.
func TestDrainInDoubt(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "torn": `{"since":"20`, "large": strings.Repeat("x", maxDrainFile+1)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, drainFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m := locking.New(locking.Options{})
		d := openDrainer(dir, m, func(bool) {}, slog.New(slog.DiscardHandler))
		if !m.Draining() || d.Drained() == nil {
			t.Errorf("%s: not drained", name)
		}
		if err := d.Drain(nil); err != nil || m.Draining() {
			t.Errorf("%s: undone: %v", name, err)
		}
	}
}

// TestDrainThatCannotBeRemembered is not begun.
func TestDrainThatCannotBeRemembered(t *testing.T) {
	m := locking.New(locking.Options{})
	d := openDrainer(filepath.Join(t.TempDir(), "gone"), m, func(bool) {}, slog.New(slog.DiscardHandler))
	if err := d.Drain(&control.Drained{}); err == nil || m.Draining() || d.Drained() != nil {
		t.Errorf("%v, %+v", err, d.Drained())
	}
}

// TestKilledWhileADrainBegins: what the next daemon finds is whole, and a drain that the
// operator was told of is there.
func TestKilledWhileADrainBegins(t *testing.T) {
	want := control.Drained{Since: time.Unix(1000, 0).UTC(), By: "root", Reason: "kernel"}
	for point, drained := range map[string]bool{"daemon.drain.rename.before": false, "daemon.drain.rename.after": true} {
		dir := t.TempDir()
		d := openDrainer(dir, locking.New(locking.Options{}), func(bool) {}, slog.New(slog.DiscardHandler))
		disarm := failpoint.Find(point).Arm(1, func() { panic("killed") })
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was not passed", point)
				}
			}()
			_ = d.Drain(&want)
		}()
		disarm()
		m := locking.New(locking.Options{})
		d = openDrainer(dir, m, func(bool) {}, slog.New(slog.DiscardHandler))
		if m.Draining() != drained || drained && *d.Drained() != want {
			t.Errorf("%s: draining %v, %+v", point, m.Draining(), d.Drained())
		}
		if err := d.Drain(&want); err != nil || !m.Draining() {
			t.Errorf("%s: again: %v", point, err)
		}
	}
}
