package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/fakeclock"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("AUDIT_TEST_WRITER"); path != "" {
		writeMany(path, fmt.Sprint("process ", os.Getpid()))
		return
	}
	goleak.VerifyTestMain(m)
}

const many = 50

func writeMany(path, name string) {
	l := New(path)
	for i := range many {
		a := sample()
		a.Login, a.PID, a.Reason = name, int32(i), strings.Repeat("x", 1+20*i)
		if err := l.Record(context.Background(), a); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func sample() Action {
	return Action{Time: time.Date(2026, 11, 25, 10, 0, 0, 123, time.FixedZone("", 3600)), Action: "release", UID: 0, Login: "anna", PID: 4711,
		Reason: "node 3 burned <down>", Target: "/srv/vm/web.img", Result: Asked}
}

// lines reads a log; what is no record is nil.
func lines(t *testing.T, path string) (list []*record) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for l := range bytes.Lines(text) {
		if len(l) > MaxRecord {
			t.Errorf("a line of %d bytes", len(l))
		}
		r := &record{}
		if json.Unmarshal(l, r) != nil {
			r = nil
		}
		list = append(list, r)
	}
	return list
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log", "vmlockd")
	l := New(filepath.Join(dir, "audit.log"))
	a := sample()
	if err := l.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	a.Time, a.Result = time.Time{}, "done"
	before := time.Now()
	if err := l.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-11-25T09:00:00.000000123Z","action":"release","who":{"uid":0,"login":"anna","pid":4711},` +
		`"reason":"node 3 burned <down>","target":"/srv/vm/web.img","result":"asked"}` + "\n"
	if !strings.HasPrefix(string(text), want) {
		t.Errorf("got  %swant %s", text, want)
	}
	list := lines(t, l.Path())
	if len(list) != 2 || list[1] == nil || list[1].Result != "done" || list[1].Time.Before(before.Add(-time.Second)) {
		t.Errorf("the second record: %s", text)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Dir(dir): 0o700, l.Path(): 0o600} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
	}
}

func TestTornLine(t *testing.T) {
	l := New(filepath.Join(t.TempDir(), "audit.log"))
	whole, err := line(sample())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Path(), append(whole, whole[:len(whole)/2]...), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Record(t.Context(), sample()); err != nil {
			t.Fatal(err)
		}
	}
	list := lines(t, l.Path())
	if len(list) != 4 || list[0] == nil || list[1] != nil || list[2] == nil || list[3] == nil {
		t.Errorf("got %v", list)
	}
}

// TestConcurrentWriters: goroutines of several processes, while the file is
// rotated all the time.
func TestConcurrentWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	const processes, goroutines = 2, 4
	for range processes {
		work.Go(func() {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), "AUDIT_TEST_WRITER="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	l := New(path)
	for g := range goroutines {
		work.Go(func() {
			for i := range many {
				a := sample()
				a.Login, a.PID = fmt.Sprint("goroutine ", g), int32(i)
				if err := l.Record(t.Context(), a); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	rotations := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if st, err := os.Stat(path); err == nil && (st.Size() > 2000 || !running) {
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, rotations)); err != nil {
				t.Fatal(err)
			}
			rotations++
		}
	}
	next := map[string]int32{}
	for i := range rotations {
		for _, r := range lines(t, fmt.Sprintf("%s.%d", path, i)) {
			if r == nil {
				t.Fatal("a line is no record")
			}
			if r.Who.PID != next[r.Who.Login] {
				t.Errorf("%s: record %d follows %d", r.Who.Login, r.Who.PID, next[r.Who.Login]-1)
			}
			next[r.Who.Login]++
		}
	}
	if len(next) != processes+goroutines || rotations < 2 {
		t.Errorf("%d writers in %d files", len(next), rotations)
	}
	for name, n := range next {
		if n != many {
			t.Errorf("%s: %d records of %d", name, n, many)
		}
	}
}

// broken is a file system that fails.
type broken struct {
	system
	write1 func(f *os.File, b []byte) (int, error)
	sync1  func() error
}

func (b broken) write(f *os.File, p []byte) (int, error) {
	if b.write1 != nil {
		return b.write1(f, p)
	}
	return b.system.write(f, p)
}

func (b broken) sync(f *os.File) error {
	if b.sync1 != nil {
		return b.sync1()
	}
	return b.system.sync(f)
}

func TestRefusesWhenItCannotWrite(t *testing.T) {
	eio := func() error { return syscall.EIO }
	for name, tc := range map[string]struct {
		fs   files
		want error
		text string
	}{
		"full": {broken{write1: func(f *os.File, b []byte) (int, error) {
			n, _ := f.Write(b[:10])
			return n, syscall.ENOSPC
		}}, syscall.ENOSPC, "make room, or set audit_log"},
		"quota":      {broken{write1: func(*os.File, []byte) (int, error) { return 0, syscall.EDQUOT }}, syscall.EDQUOT, "make room"},
		"sync fails": {broken{sync1: eio}, syscall.EIO, "audit.log cannot be written"},
	} {
		t.Run(name, func(t *testing.T) {
			l := New(filepath.Join(t.TempDir(), "audit.log"))
			l.fs = tc.fs
			err := l.Record(t.Context(), sample())
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
			// When it can be written again, what is there does not disturb.
			l.fs = system{}
			if err := l.Record(t.Context(), sample()); err != nil {
				t.Fatal(err)
			}
			list := lines(t, l.Path())
			if list[len(list)-1] == nil {
				t.Errorf("the new record cannot be read: %v", list)
			}
		})
	}
}

func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"link": ErrPlace, "fifo": ErrPlace, ".": ErrPlace, "file/audit.log": syscall.ENOTDIR} {
		l := New(filepath.Join(dir, name))
		if err := l.Record(t.Context(), sample()); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Check(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s, checked: %v", name, err)
		}
	}
	l := New(filepath.Join(dir, "new", "deep", "audit.log"))
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a check has made a directory")
	}
	if err := l.Record(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if list := lines(t, l.Path()); len(list) != 1 {
		t.Errorf("a check has written: %v", list)
	}
}

// TestHangingDisk: nobody waits longer than his context, and one goroutine at
// most waits for the disk.
func TestHangingDisk(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		l := New(filepath.Join(t.TempDir(), "audit.log"))
		release := make(chan struct{})
		started := make(chan struct{}, 10)
		l.fs = broken{write1: func(f *os.File, b []byte) (int, error) {
			started <- struct{}{}
			<-release
			return f.Write(b)
		}}
		first, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Record(first, sample()) }()
		<-started
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v", err)
		}
		second, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := l.Record(second, sample()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "earlier") {
			t.Errorf("the second: %v", err)
		}
		if len(started) != 0 {
			t.Error("a second write was begun")
		}
		close(release)
		if err := l.Record(t.Context(), sample()); err != nil {
			t.Error(err)
		}
		if list := lines(t, l.Path()); len(list) != 2 {
			t.Errorf("%d records", len(list))
		}
	})
}

func TestIncomplete(t *testing.T) {
	l := New(filepath.Join(t.TempDir(), "audit.log"))
	for name, change := range map[string]func(*Action){
		"action": func(a *Action) { a.Action = "" }, "reason": func(a *Action) { a.Reason = "" },
		"target": func(a *Action) { a.Target = "" }, "result": func(a *Action) { a.Result = "" },
	} {
		a := sample()
		change(&a)
		if err := l.Record(t.Context(), a); !errors.Is(err, ErrIncomplete) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	if _, err := os.Stat(l.Path()); err == nil {
		t.Error("something was written")
	}
}

// FuzzLine: whatever the texts are, a record is one line of bounded length that
// can be read, and short texts are in it as they were.
func FuzzLine(f *testing.F) {
	f.Add("release", "anna", "because\nof \"that\"", "/a", "done", int64(0))
	f.Add(strings.Repeat("\x00", 70), strings.Repeat("\xff", 300), strings.Repeat("\u2028", 3000), strings.Repeat("\x01", 5000), strings.Repeat("ü", 2049), int64(1<<40))
	f.Fuzz(func(t *testing.T, action, login, reason, target, result string, at int64) {
		a := Action{Time: time.Unix(at%(1<<33), 0), Action: action, Login: login, Reason: reason, Target: target, Result: result}
		b, err := line(a)
		if errors.Is(err, ErrIncomplete) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > MaxRecord || bytes.IndexByte(b, '\n') != len(b)-1 {
			t.Fatalf("%d bytes: %q", len(b), b)
		}
		var r record
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		if len(target) <= maxTarget {
			if d := cmp.Diff(strings.ToValidUTF8(target, "\uFFFD"), r.Target); d != "" {
				t.Error(d)
			}
		} else if !strings.HasSuffix(r.Target, " bytes]") {
			t.Errorf("a long target ends with %q", r.Target[len(r.Target)-20:])
		}
	})
}
