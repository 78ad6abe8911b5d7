// Package hostile_test writes anything to the sockets that vmlockd serves, and has others be served meanwhile. The
// servers are the real ones, on parts in memory: no input may reach a file or a process of this host.
package hostile_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must come.
const patience = time.Minute

// perByte is what an input may cost in memory, for each of its bytes: an answer to a message of 28 bytes has a few
// hundred, and is made of parts.
const perByte = 200

// attack writes in to a socket, and all at once or with a pause after cut bytes. others are served while the connection
// is open, before anything came, in the middle of it and at its end. It returns when the server has closed it.
func attack(t *testing.T, socket string, in []byte, cut int, others func()) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(patience)))
	// Answers are read all the time: a client that does not read is another matter, with tests of its own.
	var reading sync.WaitGroup
	reading.Go(func() {
		if _, err := io.Copy(io.Discard, c); err != nil && !closed(err) {
			t.Errorf("the connection is not closed: %v", err)
		}
	})
	for _, part := range [][]byte{nil, in[:cut], in[cut:]} {
		if _, err := c.Write(part); err != nil && !closed(err) {
			t.Errorf("write: %v", err)
		}
		others()
	}
	if err := c.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		t.Error(err)
	}
	reading.Wait()
}

// closed says that the server has closed the connection, as it may.
func closed(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF)
}

// bounded is attack, and what it may allocate. The others' calls are few and small.
func bounded(t *testing.T, socket string, in []byte, cut uint16, others func()) {
	t.Helper()
	testenv.Bounded(t, perByte, len(in), func() { attack(t, socket, in, min(int(cut), len(in)), others) })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newLocks are rules on a backend and processes in memory. This process, which is the client, and one more can own locks.
func newLocks(t *testing.T) *locking.Manager {
	ps := locktest.NewProcesses(t)
	ps.Start(int32(os.Getpid()))
	ps.Start(7)
	m := locking.New(locking.Options{Backend: locktest.NewBackend(t), Processes: ps, RequestTimeout: patience})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

// listen makes a socket in a place with a short name.
func listen(t *testing.T) (l *net.UnixListener, path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hostile")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	l, err = rpc.Listen(path)
	must(t, err)
	return l, path
}

// serve runs s until the end of the test.
func serve(t *testing.T, s *rpc.Server) (socket string) {
	t.Helper()
	l, path := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, rpc.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}
