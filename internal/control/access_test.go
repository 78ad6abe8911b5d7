package control

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// TestStrangersAreTurnedAway: who may not use the socket gets no answer, however
// often he comes, and takes nobody's place.
func TestStrangersAreTurnedAway(t *testing.T) {
	w := newWorld(t, nil)
	var allowed atomic.Bool
	w.s.allow = func(p rpc.Peer) bool {
		if p.PID != int32(os.Getpid()) || p.UID != uint32(os.Getuid()) {
			t.Errorf("asked about %+v", p)
		}
		return allowed.Load()
	}
	path, c := w.serve()
	for range 2 * maxClients {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n") // it may have hung up already
		if text, err := io.ReadAll(conn); len(text) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("a stranger got %q, %v", text, err)
		}
		conn.Close()
	}
	var e *Error
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || e.Code != CodeUnavailable {
		t.Errorf("a stranger's client got %v", err)
	}
	allowed.Store(true)
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after strangers: %v", err)
	}
}

// TestAnotherUser: with the check as it is, a user who is neither root nor the
// daemon's gets nothing, even if the socket's mode would let him in.
func TestAnotherUser(t *testing.T) {
	if os.Getuid() != 0 { // CI is root
		t.Skip("only root can be another user")
	}
	w := newWorld(t, nil)
	path, c := w.serve()
	if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(filepath.Dir(path), 0o755)); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	for _, user := range []int{nobody, 0} {
		text, err := statusAs(user, path)
		if (err == nil && len(text) > 0) != (user == 0) {
			t.Errorf("user %d got %q, %v", user, text, err)
		}
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// statusAs asks for the status on a thread that has become another user, and ends
// with that.
func statusAs(user int, path string) (text []byte, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: nobody else gets this thread
		if _, _, no := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(user), ^uintptr(0)); no != 0 {
			err = no
			return
		}
		fd, e := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if e != nil {
			err = e
			return
		}
		defer syscall.Close(fd)
		if err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
			return
		}
		const ask = "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
		_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 60})
		_ = syscall.Sendto(fd, []byte(ask), syscall.MSG_NOSIGNAL, nil) // it may have hung up already
		text = make([]byte, 4096)
		n, e := syscall.Read(fd, text)
		text, err = text[:max(n, 0)], e
	}()
	<-done
	return text, err
}
