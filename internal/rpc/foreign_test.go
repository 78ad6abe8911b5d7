package rpc

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestForeignUser: another user who gets as far as the socket, whose mode should
// keep him from it, is turned away all the same, by what the kernel says of him.
func TestForeignUser(t *testing.T) {
	if os.Geteuid() != 0 { // CI is root
		t.Skip("it takes root to be another user")
	}
	const nobody = 65534
	s := startServer(t, Options{})
	if c, err := dialAs(s.path, nobody); err == nil {
		c.Close()
		t.Error("another user can connect to the socket as it was made")
	}
	for dir := filepath.Dir(s.path); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.path, 0o666); err != nil {
		t.Fatal(err)
	}
	c, err := dialAs(s.path, nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, c)
	// Connections are accepted one by one: when this one is, the other is logged.
	if err := echo(s.dial(), "x"); err != nil {
		t.Errorf("root is not served: %v", err)
	}
	if st := s.Stats(); st.Refused != 1 {
		t.Errorf("%+v", st)
	}
	if log := s.log.String(); !strings.Contains(log, "uid=65534") {
		t.Errorf("the log does not say who was refused:\n%s", log)
	}
}

// dialAs connects as another user. The kernel knows users by thread, so there
// is a thread that becomes this user, connects, and ends.
func dialAs(path string, uid uintptr) (*net.UnixConn, error) {
	type result struct {
		c   *net.UnixConn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: so the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			done <- result{nil, errno}
			return
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}
