package crash_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/lab"
)

// restart sends SIGUSR1 and waits until the log says what came of it.
func (d *daemon) restart(t *testing.T, w *world, words string) {
	t.Helper()
	before := strings.Count(d.log(t), words)
	if err := d.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := lab.WaitFor(ctx, "the log to say: "+words, func(context.Context) (bool, error) {
		return strings.Count(d.log(t), words) > before, nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, d.log(t))
	}
}

// replace restarts it in place and waits until that is over, or it has ended. While the kernel has not answered all that it
// has asked, a daemon says that it cannot be replaced just now, and is told again.
func (d *daemon) replace(t *testing.T) {
	t.Helper()
	const words, later = "vmlockd is ready", "it cannot be replaced just now, try again later"
	text := d.log(t)
	before, waited := strings.Count(text, words), strings.Count(text, later)
	if err := d.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, "the restart in place", func(context.Context) (bool, error) {
		if d.ended() {
			return true, nil
		}
		text := d.log(t)
		if n := strings.Count(text, later); n > waited {
			waited = n
			_ = d.cmd.Process.Signal(syscall.SIGUSR1) // it may be killed meanwhile
		}
		return strings.Count(text, words) > before, nil
	})
	if d.ended() {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(d.logPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRestartInPlace is about the daemon that is executed again while clients
// are connected: one that owns a lock, one that has not registered, as libvirtd
// keeps one, and one whose owner has a name that is no UTF-8.
func TestRestartInPlace(t *testing.T) {
	if inside() {
		t.Skip("it does not depend on the backend, and ran outside")
	}
	ctx := context.Background()
	program := filepath.Join(t.TempDir(), "vmlockd")
	move(t, lab.Build(t, vmlockd), program)
	w := newWorld(t, program)
	d := w.start(t, "")
	defer d.stop(t)

	v, odd := newVM(t, 1), newVM(t, 2)
	odd.owner.Name = "\xff\xfe vm"
	connect := func() *lockprogram.Client {
		c, err := lockprogram.Dial(ctx, w.socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	owner, stranger, oddOne := connect(), connect(), connect()
	if err := stranger.CreateLockspace(ctx, ""); err != nil {
		t.Fatal(err)
	}
	weird := filepath.Join(w.dir, "disk \xff")
	if err := os.WriteFile(weird, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		owner.Register(ctx, v.owner), owner.Acquire(ctx, locking.Ref{Name: w.names[0]}, 0),
		oddOne.Register(ctx, odd.owner), oddOne.Acquire(ctx, locking.Ref{Name: weird}, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		if known, err := w.acquire(newVM(t, 9), w.names[0], 0); !known || err == nil {
			t.Errorf("what a virtual machine holds: %v", err)
		}
		for _, c := range []*lockprogram.Client{owner, stranger, oddOne} {
			if err := c.CreateLockspace(ctx, ""); err != nil {
				t.Errorf("a connection from before: %v", err)
			}
		}
		if d.ended() {
			t.Fatalf("the process has ended: %v", d.err)
		}
	}
	for range 3 {
		d.restart(t, w, "vmlockd is ready")
		check()
	}

	// A program that cannot be started, and one that would not start.
	good := program + ".good"
	move(t, program, good)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho this program is broken\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.restart(t, w, "this program is broken")
	check()
	move(t, good, program)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.config, []byte("backend = \"no such\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.restart(t, w, "restart refused")
	check()
	if err := os.WriteFile(w.config, text, 0o600); err != nil {
		t.Fatal(err)
	}

	// What was locked before can be released now, on the old connections.
	d.restart(t, w, "vmlockd is ready")
	if err := owner.Release(ctx, locking.Ref{Name: w.names[0]}); err != nil {
		t.Error(err)
	}
	if err := oddOne.Release(ctx, locking.Ref{Name: weird}); err != nil {
		t.Error(err)
	}
}

// TestStopWithLocks is about the end of the daemon in order.
func TestStopWithLocks(t *testing.T) {
	if inside() {
		t.Skip("it does not depend on the backend, and ran outside")
	}
	w := newWorld(t, lab.Build(t, vmlockd))
	d := w.start(t, "")
	v := newVM(t, 1)
	for _, name := range w.names[:2] {
		if _, err := w.acquire(v, name, 0); err != nil {
			t.Fatal(err)
		}
	}
	d.stop(t)
	if text := d.out.String(); !strings.Contains(text, "locks=2") {
		t.Errorf("it does not say how many locks stay held:\n%s", text)
	}
	d = w.start(t, "")
	defer d.stop(t)
	if known, err := w.acquire(newVM(t, 2), w.names[1], 0); !known || err == nil {
		t.Errorf("a lock from before the stop: %v", err)
	}
	for _, name := range w.names[:2] {
		if _, err := w.release(v, name); err != nil {
			t.Error(err)
		}
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if os.Rename(from, to) == nil {
		return
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(fmt.Errorf("copy %s: %w", from, err))
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
