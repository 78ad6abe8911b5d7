package lockprogram

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlockd/vmlockd/internal/backend/local"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// limited runs a server for a few clients, with real locks on files.
func limited(t *testing.T, clients int) (socket string) {
	t.Helper()
	m := locking.New(locking.Options{Backend: local.New(), Processes: owner.Processes{}})
	socket = filepath.Join(t.TempDir(), "sock")
	l, err := rpc.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.Options{Programs: []rpc.Program{New(m)}, MaxClients: clients, Reserve: 4})
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-served
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// vm is an owner with a process of its own. This process, whose connections come and
// go, would be ended as an owner whose own connection has ended.
func vm(t *testing.T) locking.Owner {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return locking.Owner{PID: int32(cmd.Process.Pid), ID: 1, Name: "vm"}
}

func file(t *testing.T) locking.Ref {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return locking.Ref{Name: path}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// wantLimited wants an acquire to be refused because of a limit.
func wantLimited(t *testing.T, err error, words string) {
	t.Helper()
	var e *rpc.Error
	if !errors.As(err, &e) || !strings.Contains(e.Message, words) {
		t.Fatalf("an acquire beyond the limit: %v", err)
	}
}

func TestReleaseBeyondTheLimitOfClients(t *testing.T) {
	ctx := context.Background()
	socket := limited(t, 2)
	first, second := dial(t, socket), dial(t, socket)
	ref, other, me := file(t), file(t), vm(t)
	must(t, first.Register(ctx, me), first.Acquire(ctx, ref, 0), second.Register(ctx, me))

	third := dial(t, socket)
	must(t, third.Register(ctx, me))
	wantLimited(t, third.Acquire(ctx, other, 0), "max_clients")
	must(t, third.Release(ctx, ref))
	must(t, first.Acquire(ctx, ref, 0), first.Release(ctx, ref))

	// With room again, a new connection can do everything.
	must(t, second.Close(), third.Close())
	for {
		fourth := dial(t, socket)
		must(t, fourth.Register(ctx, me))
		err := fourth.Acquire(ctx, other, 0)
		if err == nil {
			must(t, fourth.Release(ctx, other))
			break
		}
		wantLimited(t, err, "max_clients") // the server has not seen the others go
		must(t, fourth.Close())
	}
}

// rawConn is a connection that needs no descriptor beyond the one it was made with.
type rawConn struct {
	net.Conn
	f *os.File
}

func (c rawConn) Read(b []byte) (int, error)  { return c.f.Read(b) }
func (c rawConn) Write(b []byte) (int, error) { return c.f.Write(b) }
func (c rawConn) Close() error                { return c.f.Close() }

func TestReleaseWithoutDescriptors(t *testing.T) {
	ctx := context.Background()
	socket := limited(t, 100)
	first := dial(t, socket)
	ref, other, me := file(t), file(t), vm(t)
	must(t, first.Register(ctx, me), first.Acquire(ctx, ref, 0))

	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	late, pipe := os.NewFile(uintptr(fd), "late"), net.Conn(nil)
	defer late.Close()

	var old, low syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old))
	low = syscall.Rlimit{Cur: uint64(fd) + 20, Max: old.Max}
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low))
	var filler []int
	defer func() {
		for _, fd := range filler {
			syscall.Close(fd)
		}
		must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old))
	}()
	for {
		fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		filler = append(filler, fd)
	}

	must(t, syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}))
	c := &Client{Client: rpc.NewClient(rawConn{pipe, late})}
	must(t, c.Register(ctx, me))
	wantLimited(t, c.Acquire(ctx, other, 0), "no descriptors")
	must(t, c.Release(ctx, ref))
}
