package rpc

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, err = Listen(path)
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != int32(os.Getpid()) || inUse.Path != path {
		t.Errorf("a second Listen: %+v", err)
	}
	if err == nil || !strings.Contains(err.Error(), "rpc.test") || !strings.Contains(err.Error(), path) {
		t.Errorf("the error does not say who listens: %v", err)
	}
	// What a daemon leaves when it is killed.
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l, err = Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestBacklog: many connect at once, as libvirt does after its start, while the
// daemon is busy. Go's connect, which does not block, fails when the backlog is full.
func TestBacklog(t *testing.T) {
	const clients = 1024
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	if most, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || most < clients { // the kernel's default has been 4096 since Linux 5.4
		t.Skipf("this system allows a backlog of %s only (net.core.somaxconn)", strings.TrimSpace(string(text)))
	}
	l, err := Listen(filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range clients {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatalf("connection %d, when none was accepted: %v", i+1, err)
		}
		defer c.Close()
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		file, dir, filepath.Join(dir, "none", "sock"), filepath.Join(file, "sock"),
		filepath.Join(dir, strings.Repeat("x", 200)),
	} {
		if l, err := Listen(path); err == nil {
			t.Errorf("%s: no error", path)
			l.Close()
		} else if !strings.Contains(err.Error(), filepath.Dir(path)) {
			t.Errorf("%s: the error does not say where: %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestListenOnlyOneWins: of many that find the same stale socket, one gets it.
func TestListenOnlyOneWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	var mu sync.Mutex
	var won []*net.UnixListener
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			l, err := Listen(path)
			var inUse *InUseError
			if err != nil && !errors.As(err, &inUse) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				won = append(won, l)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d of them listen", len(won))
	}
	for _, l := range won {
		l.Close()
	}
}

func TestListenerFromFile(t *testing.T) {
	s := startServer(t, Options{})
	f, err := s.l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.l.SetUnlinkOnClose(false)
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	l, err := ListenerFromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	next := NewServer(Options{Programs: []Program{s.prog}})
	done := make(chan error, 1)
	go func() { done <- next.Serve(context.Background(), l) }()
	if err := echo(s.dial(), "x"); err != nil {
		t.Error(err)
	}
	if err := next.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrServerClosed) {
		t.Error(err)
	}
	if _, err := os.Lstat(s.path); err != nil {
		t.Errorf("the socket of somebody else was removed: %v", err)
	}

	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tf, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tf.Close()
	if _, err := ListenerFromFile(tf); err == nil {
		t.Error("a TCP socket was taken")
	}
	if _, err := ListenerFromFile(mustOpen(t, os.DevNull)); err == nil {
		t.Error("a file was taken")
	}
}

func mustOpen(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
