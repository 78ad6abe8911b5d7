package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// usualLocks is more than a host has disks, and than max_clients and a usual limit of
// descriptors, 4096 both. VMLOCKD_LOCKS says another number; 'make unit-long' has 15,000.
const usualLocks = 5000

// manager is what systemd has of the daemon: the socket that it notifies.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return &manager{t, conn}
}

// next is the next notification but those of what the daemon does, and that it does it.
func (m *manager) next() string {
	m.t.Helper()
	for {
		if state := m.any(); !strings.HasPrefix(state, "STATUS=") && state != "WATCHDOG=1" {
			return state
		}
	}
}

// any is the next notification.
func (m *manager) any() string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(3 * logstest.Patience)); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := m.conn.Read(b)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b[:n])
}

// all are the notifications that are there already.
func (m *manager) all() (list []string) {
	m.t.Helper()
	raw, err := m.conn.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 4096)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Read(int(fd), b)
			if err != nil {
				return true
			}
			list = append(list, string(b[:n]))
		}
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return list
}

// gate passes on what a client sends, but of one message, when it is told to, only the
// beginning until it is told to go on.
type gate struct {
	path  string
	mu    sync.Mutex // guards half
	half  chan struct{}
	begun chan struct{}
}

// maxHalf is how much of a message is passed on: it has a head of 28 bytes.
const maxHalf = 30

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	g := &gate{path: filepath.Join(t.TempDir(), "gate"), begun: make(chan struct{})}
	l, err := net.Listen("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		c, err := l.Accept()
		l.Close()
		if err != nil {
			return
		}
		defer c.Close()
		d, err := net.Dial("unix", to)
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		work.Go(func() { _, _ = io.Copy(c, d); c.Close() })
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			g.mu.Lock()
			half := g.half
			g.half = nil
			g.mu.Unlock()
			rest := b[:n]
			if half != nil {
				_, _ = d.Write(rest[:min(n, maxHalf)])
				rest = rest[min(n, maxHalf):]
				close(g.begun)
				<-half
			}
			if _, err := d.Write(rest); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		work.Wait()
	})
	return g
}

// stopAfterHalf makes the next message stop in its middle until the returned function
// is called.
func (g *gate) stopAfterHalf() (goOn func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	half := make(chan struct{})
	g.half = half
	return sync.OnceFunc(func() { close(half) })
}

// TestReload: 'systemctl reload' of a daemon with more locks than any host has, a
// connection that has not registered and one in the middle of a message. The service
// manager is told when it begins and when it is over.
func TestReload(t *testing.T) {
	manyLocks := testenv.Rounds(t, "VMLOCKD_LOCKS", usualLocks)
	need := uint64(manyLocks) + 500
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < need && os.Geteuid() == 0 {
		limit.Max = need // root may raise it, so CI never skips
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit.Cur, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
	}
	if limit.Max < need {
		t.Skipf("a process of this user may have %d descriptors, and this needs %d", limit.Max, need)
	}
	s := build(t)
	s.configure("log.level", "error") // nobody reads that many lines here
	m := newManager(t)
	s.launch()
	if got := m.next(); got != "READY=1" {
		t.Fatalf("at the start: %q", got)
	}
	web := vm(t)
	owner := locking.Owner{PID: int32(web.Process.Pid), ID: 1, Name: "web"}
	ctx, cancel := context.WithTimeout(t.Context(), 6*logstest.Patience)
	defer cancel()
	connect := func(path string) *lockprogram.Client {
		t.Helper()
		c, err := lockprogram.Dial(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	disk := func(i int) string { return filepath.Join(s.dir, fmt.Sprintf("disk%05d", i)) }
	const clients = 50
	done := make(chan error, clients)
	for k := range clients {
		c := connect(s.socket)
		take := func() error {
			if err := c.Register(ctx, owner); err != nil {
				return err
			}
			for i := k; i < manyLocks; i += clients {
				if err := os.WriteFile(disk(i), nil, 0o600); err != nil {
					return err
				}
				if err := c.Acquire(ctx, locking.Ref{Name: disk(i)}, 0); err != nil {
					return err
				}
			}
			return nil
		}
		go func() { done <- take() }()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	held := []string{`vmlockd_locks_held{mode="exclusive"}`, strconv.Itoa(manyLocks), `vmlockd_holder_files`, strconv.Itoa(manyLocks)}
	s.shows(held...)
	unregistered := connect(s.socket)
	g := newGate(t, s.socket)
	halfway := connect(g.path)
	if err := halfway.Register(ctx, owner); err != nil {
		t.Fatal(err)
	}
	for i := manyLocks; i < manyLocks+2; i++ {
		if err := os.WriteFile(disk(i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	goOn := g.stopAfterHalf()
	defer goOn()
	asked := make(chan error, 1)
	go func() { asked <- halfway.Acquire(ctx, locking.Ref{Name: disk(manyLocks)}, 0) }()
	<-g.begun

	for _, path := range []string{disk(0), disk(manyLocks - 1)} {
		defer watchHeld(t, path)()
	}
	before := monotonic()
	s.signal(syscall.SIGHUP)
	reloading := m.next()
	text, since, _ := strings.Cut(reloading, "\nMONOTONIC_USEC=")
	if usec, err := strconv.ParseInt(since, 10, 64); text != "RELOADING=1" || err != nil ||
		time.Duration(usec)*time.Microsecond < before.Truncate(time.Microsecond) || time.Duration(usec)*time.Microsecond > monotonic() {
		t.Fatalf("the beginning of the reload: %q", reloading)
	}
	if got := m.next(); got != "READY=1" {
		t.Fatalf("the end of the reload: %q", got)
	}
	if err := unregistered.Register(ctx, owner); err != nil {
		t.Errorf("a connection that had not registered: %v", err)
	}
	if err := unregistered.Acquire(ctx, locking.Ref{Name: disk(manyLocks + 1)}, 0); err != nil {
		t.Error(err)
	}
	goOn()
	if err := <-asked; err != nil {
		t.Errorf("a call that was received in two parts, by two programs: %v", err)
	}
	s.shows(`vmlockd_locks_held{mode="exclusive"}`, strconv.Itoa(manyLocks+2), `vmlockd_starts_total{how="in_place"}`, "1", `vmlockd_holder_up`, "1")
	stranger := vm(t)
	for _, i := range []int{1, manyLocks / 2, manyLocks} {
		if err := s.try(stranger.Process.Pid, "mail", disk(i)); err == nil {
			t.Errorf("disk %d is granted twice", i)
		}
	}
	s.signal(syscall.SIGTERM)
	if got := m.next(); got != "STOPPING=1" {
		t.Errorf("at the end: %q", got)
	}
}
