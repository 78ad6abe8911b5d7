package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/config"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

func TestIdler(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		var now, refuse atomic.Bool
		var uses, asked atomic.Uint64
		now.Store(true)
		d := newIdler(10*time.Second, func() (bool, uint64) { return now.Load(), uses.Load() }, func(context.Context) bool {
			asked.Add(1)
			return !refuse.Load()
		})
		after := func(wait time.Duration, want uint64, what string) {
			t.Helper()
			time.Sleep(wait) // by the bubble's clock
			fakeclock.Wait()
			if got := asked.Load(); got != want {
				t.Fatalf("%s: asked %d times, want %d", what, got, want)
			}
		}
		after(time.Hour, 0, "in use")
		now.Store(false)
		after(9*time.Second, 0, "not yet")
		uses.Add(1) // somebody who came and went between two looks
		after(9*time.Second, 0, "after a short use")
		refuse.Store(true)
		after(2*time.Second, 1, "idle")
		after(9*time.Second, 1, "after a no")
		after(2*time.Second, 2, "idle again")
		d.set(0)
		after(24*time.Hour, 2, "never")
		d.set(time.Minute)
		after(59*time.Second, 2, "a time that was set anew")
		refuse.Store(false)
		after(2*time.Second, 3, "over")
		<-d.retired
		if !d.end() {
			t.Error("it does not know that it has retired")
		}
	})
	fakeclock.Test(t, func(t *testing.T) {
		d := newIdler(time.Second, func() (bool, uint64) { return false, 0 }, func(context.Context) bool { return false })
		if d.end() {
			t.Error("it has retired without being asked")
		}
	})
}

// inProcess is a configuration for instances in this process.
func inProcess(t *testing.T) config.Config {
	t.Helper()
	dir := t.TempDir()
	c := config.Default()
	c.Socket, c.RunDir, c.AuditLog = filepath.Join(dir, "sock"), filepath.Join(dir, "run"), filepath.Join(dir, "audit.log")
	c.ControlSocket = filepath.Join(c.RunDir, "control.sock")
	return c
}

// TestRetireBesideClients: who could connect is served, however close to the end of the
// daemon; after it there is no socket, and nobody's file is taken away.
func TestRetireBesideClients(t *testing.T) {
	c := inProcess(t)
	for range 20 {
		var now atomic.Pointer[instance]
		serve := func(g *given) *instance {
			i, err := start(c, "test", quiet(), nil, g)
			if err != nil {
				t.Fatal(err)
			}
			now.Store(i)
			return i
		}
		i := serve(&given{})
		ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
		var clients sync.WaitGroup
		var served atomic.Int64
		for range 2 {
			clients.Go(func() {
				for served.Load() < 50 {
					conn, err := lockprogram.Dial(ctx, c.Socket)
					if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
						i := now.Load()
						if _, err := os.Stat(c.Socket); errors.Is(err, fs.ErrNotExist) && i.server.Stats().Clients == 0 && !i.server.Answers(ctx) && now.Load() == i {
							return // it has ended
						}
						continue // it was looking whether somebody waits
					}
					if err != nil {
						t.Errorf("connect: %v", err)
						return
					}
					if err := conn.CreateLockspace(ctx, ""); errors.Is(err, rpc.ErrBroken) {
						t.Errorf("a client was left alone: %v", err)
					}
					conn.Close()
					served.Add(1)
				}
			})
		}
		for {
			for !i.retire(ctx) {
				if ctx.Err() != nil {
					t.Fatal("it does not retire")
				}
			}
			close(i.idle.retired)
			i.stop()
			if len(i.late) == 0 {
				break
			}
			i = serve(&given{late: i.late})
		}
		clients.Wait()
		cancel()
		if list, _ := filepath.Glob(c.Socket + "*"); len(list) > 0 {
			t.Fatalf("left behind: %q", list)
		}
	}
}

// TestLateComer: who has found the socket's file before it was taken away may come when nobody looks for
// him any more. Another name of the file stands for the time in between.
func TestLateComer(t *testing.T) {
	c := inProcess(t)
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	i, err := start(c, "test", quiet(), nil, &given{})
	if err != nil {
		t.Fatal(err)
	}
	found := c.Socket + ".found"
	if err := os.Link(c.Socket, found); err != nil {
		t.Fatal(err)
	}
	for !i.retire(ctx) {
		if ctx.Err() != nil {
			t.Fatal("it does not retire")
		}
	}
	close(i.idle.retired)
	var calls sync.WaitGroup
	for range 3 {
		conn, err := lockprogram.Dial(ctx, found)
		if err != nil {
			t.Fatal(err)
		}
		calls.Go(func() {
			defer conn.Close()
			if err := conn.CreateLockspace(ctx, ""); err != nil {
				t.Errorf("who came late: %v", err)
			}
		})
	}
	i.stop()
	if conn, err := lockprogram.Dial(ctx, found); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("who comes after that is not refused: %v, %v", conn, err)
	}
	i, err = start(c, "test", quiet(), nil, &given{late: i.late})
	if err != nil {
		t.Fatal(err)
	}
	calls.Wait()
	i.stop()
}

// onRecord calls f with the message of each record.
type onRecord struct {
	slog.Handler
	f func(message string)
}

func (h onRecord) Handle(ctx context.Context, r slog.Record) error {
	h.f(r.Message)
	return h.Handler.Handle(ctx, r)
}

func (h onRecord) Enabled(context.Context, slog.Level) bool { return true }
func (h onRecord) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h onRecord) WithGroup(string) slog.Handler            { return h }

// TestRunGoesOnForLateComers: the whole daemon, which ends when it is idle again.
func TestRunGoesOnForLateComers(t *testing.T) {
	c := inProcess(t)
	c.IdleTimeout = config.Duration(500 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	found := c.Socket + ".found"
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", systemd.LocalAddr().String())
	var calls sync.WaitGroup
	starts, ends := 0, 0
	log := slog.New(onRecord{slog.DiscardHandler, func(message string) {
		switch {
		case message == "vmlockd is ready":
			if starts++; starts == 1 {
				if err := os.Link(c.Socket, found); err != nil {
					t.Error(err)
				}
			}
		case strings.HasPrefix(message, "nobody has used vmlockd"):
			if ends++; ends > 1 {
				return
			}
			conn, err := lockprogram.Dial(ctx, found)
			if err != nil {
				t.Errorf("connect while it ends: %v", err)
				return
			}
			calls.Go(func() {
				defer conn.Close()
				if err := conn.CreateLockspace(ctx, ""); err != nil {
					t.Errorf("who came while it ended: %v", err)
				}
			})
		}
	}})
	if err := Run(ctx, Program{Version: "test"}, c, log); err != nil {
		t.Error(err)
	}
	calls.Wait()
	if starts != 2 || ends != 2 || ctx.Err() != nil {
		t.Errorf("%d starts, %d ends, %v", starts, ends, ctx.Err())
	}
	// Told that the daemon stops, systemd would end it.
	var told []string
	for len(told) < 3 {
		b := make([]byte, 100)
		_ = systemd.SetReadDeadline(time.Now().Add(logstest.Patience))
		n, err := systemd.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(b[:n]); !strings.HasPrefix(text, "STATUS=") {
			told = append(told, text)
		}
	}
	if got := strings.Join(told, " "); got != "READY=1 READY=1 STOPPING=1" {
		t.Errorf("systemd was told %s", got)
	}
}

// tick waits for longer than n seconds, by a daemon of its own that is idle for that long.
func (s *served) tick(n string) {
	s.t.Helper()
	dir := s.t.TempDir()
	path := filepath.Join(dir, "vmlockd.toml")
	text := "socket = \"" + dir + "/s\"\nrun_dir = \"" + dir + "/run\"\naudit_log = \"" + dir + "/a\"\nlog.format = \"text\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if out, err := exec.Command(s.program, "-f", path, "-t", n).CombinedOutput(); err != nil || !strings.Contains(string(out), "it ends") {
		s.t.Fatalf("%v: %s", err, out)
	}
}

func (s *served) alive() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.Signal(0)); err != nil {
		s.t.Fatal("the daemon has ended")
	}
}

// TestTimeout: the built daemon ends when it was idle, and not while a lock is held or a
// client connected, also after a restart in place.
func TestTimeout(t *testing.T) {
	s := build(t)
	disk := filepath.Join(s.dir, "web.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.launch("--timeout=1")
	s.event("daemon-ready")
	web := vm(t)
	if err := s.try(web.Process.Pid, "web", disk); err != nil {
		t.Fatal(err)
	}
	s.tick("2")
	s.alive()
	s.signal(syscall.SIGUSR1)
	s.event("daemon-ready")
	s.tick("2")
	s.alive()
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, "1")

	ctx, cancel := context.WithTimeout(t.Context(), logstest.Patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, s.socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = web.Process.Kill()
	s.event("lock-released-gone")
	s.tick("2")
	s.alive()
	c.Close()
	s.event("daemon-stopped")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	for _, path := range []string{s.socket, s.socket + ".idle", filepath.Join(s.dir, "run", "vmlockd.pid")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}

	s.configure("idle_timeout", "1s")
	s.start()
	s.event("daemon-stopped")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("with the time in the file it ends with %v", err)
	}
}

// TestRetireInDoubt: where a damaged journal may have told of a lock, nobody is idle.
func TestRetireInDoubt(t *testing.T) {
	c := inProcess(t)
	i, err := start(c, "test", quiet(), nil, &given{})
	if err != nil {
		t.Fatal(err)
	}
	defer i.stop()
	until(t, "it serves", func() bool { return i.server.Answers(t.Context()) })
	i.doubt.suspect("a record is damaged")
	if now, _ := i.inUse(); !now {
		t.Error("in doubt, and not in use")
	}
	if i.retire(t.Context()) {
		t.Fatal("it has retired in doubt")
	}
	conn, err := lockprogram.Dial(t.Context(), c.Socket)
	if err != nil {
		t.Fatalf("it does not go on: %v", err)
	}
	conn.Close()
}

// TestRetireSeesWhoWaits: somebody who has connected and was not accepted yet keeps the
// daemon, and its socket is where it was.
func TestRetireSeesWhoWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if waits(l) {
		t.Error("nobody waits")
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !waits(l) {
		t.Error("somebody waits, and is not seen")
	}
}
