package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// line is what a test and the daemon it started tell each other.
type line struct {
	What string // "held" (to the daemon), "ready", "locked", "releasing", "go on" (to the daemon), "error"
	Held []locking.Held
	N    int
}

// beDaemon takes back what it is told, then locks and unlocks files for ever.
func beDaemon(dir string) {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	fail := func(err error) {
		_ = out.Encode(line{What: "error " + err.Error()})
		os.Exit(1)
	}
	ctx := context.Background()
	var told line
	if err := in.Decode(&told); err != nil {
		fail(err)
	}
	c, err := holder.Connect(ctx, holder.Options{Socket: filepath.Join(dir, "s")})
	if err != nil {
		fail(err)
	}
	b := NewKept(c, slog.New(slog.DiscardHandler))
	handles := map[int]locking.Handle{}
	for i, r := range b.Restore(ctx, told.Held) {
		if r.Err != nil {
			fail(fmt.Errorf("%v: %w", told.Held[i], r.Err))
		}
		var n int
		_, _ = fmt.Sscanf(filepath.Base(told.Held[i].Ref.Name), "disk%d", &n)
		handles[n] = r.Handle
	}
	n, err := b.DropOthers(ctx)
	if err != nil {
		fail(err)
	}
	if len(told.Held) == 0 && n > 0 {
		_ = out.Encode(line{What: "ready", N: n})
		return
	}
	_ = out.Encode(line{What: "ready", N: n})
	for {
		i := rand.N(disks)
		if h := handles[i]; h != nil {
			_ = out.Encode(line{What: "releasing", N: i})
			if err := in.Decode(&told); err != nil {
				return
			}
			if err := h.Unlock(ctx); err != nil {
				fail(err)
			}
			delete(handles, i)
			continue
		}
		ref := locking.Ref{Name: filepath.Join(dir, fmt.Sprintf("disk%d", i))}
		h, err := b.Open(ctx, ref, false)
		if err != nil {
			fail(err)
		}
		if err := h.Lock(ctx, locking.Exclusive); err != nil {
			fail(err)
		}
		handles[i] = h
		_ = out.Encode(line{What: "locked", N: i, Held: []locking.Held{{ID: h.ID(), Ref: ref}}})
	}
}

const disks = 12

// world is what the outside knows: which disks were granted and not given back.
type world struct {
	t   *testing.T
	dir string

	mu     sync.Mutex // guards held, and is kept during an attempt to lock
	held   map[int]locking.Held
	probed int
}

// intrude tries to lock, as another program would, whatever is held.
func (w *world) intrude(fds []int, stop <-chan struct{}) {
	for i := 0; ; i = (i + 1) % disks {
		select {
		case <-stop:
			return
		default:
		}
		w.mu.Lock()
		if _, ok := w.held[i]; ok {
			l := theirs()
			if err := unix.FcntlFlock(uintptr(fds[i]), unix.F_OFD_SETLK, &l); err != unix.EAGAIN {
				w.t.Errorf("disk %d is held, and another process tried to lock it: %v", i, err)
				delete(w.held, i)
			}
			w.probed++
		}
		w.mu.Unlock()
	}
}

// round runs a daemon and kills it after some lines, if lines >= 0.
func (w *world) round(lines int) {
	t := w.t
	cmd := exec.Command(os.Args[0], "daemon", w.dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	out := json.NewEncoder(stdin)
	first := line{What: "held"}
	w.mu.Lock()
	for _, h := range w.held {
		first.Held = append(first.Held, h)
	}
	w.mu.Unlock()
	if err := out.Encode(first); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(stdout); s.Scan(); lines-- {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		if lines == 0 {
			_ = cmd.Process.Kill() // and what it says until then counts
		}
		w.mu.Lock()
		switch l.What {
		case "ready":
		case "locked":
			w.held[l.N] = l.Held[0]
		case "releasing":
			delete(w.held, l.N)
		default:
			t.Errorf("the daemon says: %s", l.What)
		}
		w.mu.Unlock()
		if l.What == "releasing" {
			_ = out.Encode(line{What: "go on"})
		}
	}
	_, _ = io.Copy(io.Discard, stdout)
	_ = cmd.Wait()
}

// A daemon is killed again and again, at any instruction, while another process
// tries without end to lock what is held.
func TestKilledDaemonKeepsEveryLock(t *testing.T) {
	dir, err := os.MkdirTemp("", "local")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, held: map[int]locking.Held{}}
	var fds []int
	for i := range disks {
		path := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	stop := make(chan struct{})
	var intruder sync.WaitGroup
	intruder.Go(func() { w.intrude(fds, stop) })
	for range testenv.Rounds(t, "VMLOCKD_KILLS", 10) {
		w.round(rand.N(60))
		if t.Failed() {
			break
		}
	}
	close(stop)
	intruder.Wait()
	t.Logf("%d attempts, %d held at the end", w.probed, len(w.held))

	// What is left is given up, and then it can be locked by anybody.
	c, err := holder.Connect(context.Background(), holder.Options{Socket: filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	pid := c.Status().PID
	b := NewKept(c, slog.New(slog.DiscardHandler))
	if n, err := b.DropOthers(context.Background()); err != nil || n < len(w.held) {
		t.Errorf("DropOthers: %d, %v; %d were held", n, err, len(w.held))
	}
	for i, fd := range fds {
		l := theirs()
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != nil {
			t.Errorf("disk %d after all was given up: %v", i, err)
		}
	}
	endHolder(t, c, pid)
}

// endHolder waits for the end of a holder, which holds nothing any more.
func endHolder(t *testing.T, c *holder.Client, pid int) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	waitFor(t, func() bool { return c.Status().Held == 0 })
	c.Close()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 20_000); n != 1 && !errors.Is(err, unix.EINTR) {
		t.Errorf("the holder does not end: %v", err)
	}
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
}
