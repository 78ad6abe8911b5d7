package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKilledHolderIsReplaced(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	const n = 300
	var fds []int
	for i := range n {
		fds = append(fds, temp(t))
		put(t, c, fmt.Sprint(i), fds[i])
	}
	old := c.Status().PID
	// Puts and drops go on all the time; none may fail or lie.
	stop := make(chan struct{})
	var g sync.WaitGroup
	for w := range 4 {
		fd := temp(t)
		g.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.Put(limited(t), fmt.Sprintf("worker %d", w), fd); err != nil {
					t.Error(err)
					return
				}
				c.Drop(fd)
			}
		})
	}
	pid := old
	for range 5 {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another holder has all", func() bool {
			s := c.Status()
			return s.PID != 0 && s.PID != pid && s.Held >= n && s.Unkept == 0
		})
		pid = c.Status().PID
	}
	close(stop)
	g.Wait()
	for _, fd := range fds {
		eventually(t, "the last holder has each file once", func() bool { return refers(t, pid, fd) == 1 })
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", old)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the first holder was not reaped: %v", err)
	}
}

func TestPutWithoutHolderEndsWithItsContext(t *testing.T) {
	path := socket(t)
	c, err := connect(limited(t), Options{Socket: path}, starter{socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pid := c.Status().PID
	c.mu.Lock() // which the goroutine that reads it takes when it wakes up from the kill
	c.starter.program = "/nonexistent"
	c.mu.Unlock()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end is noticed", func() bool { return c.Status().PID == 0 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err = c.Put(ctx, "k", temp(t))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v", err)
	}
	t.Log(err)
}

// A holder ends by itself, but not while it holds something, and SIGTERM does not
// change that.
func TestHolderEndsWhenNobodyNeedsIt(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	fd := temp(t)
	put(t, c, "k", fd)
	pid := c.Status().PID
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	c.Close()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT} {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	// Longer than the time after which it would end.
	if endsWithin(t, process, idleTime+time.Second) {
		t.Fatal("it ended while it held something")
	}
	c = start(t, path)
	for _, taken := range c.Taken() {
		c.Drop(taken)
		unix.Close(taken)
	}
	begin := time.Now()
	c.Close()
	waitProcess(t, process)
	if d := time.Since(begin); d < idleTime/2 {
		t.Errorf("it ended after %v", d)
	}
}

// Of daemons that start at the same time one is served, and one holder runs.
func TestManyStarters(t *testing.T) {
	path := socket(t)
	const n = 8
	clients, errs := make([]*Client, n), make([]error, n)
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() { clients[i], errs[i] = Connect(limited(t), Options{Socket: path}) })
	}
	g.Wait()
	served := 0
	for i, c := range clients {
		if c != nil {
			served++
			defer c.Close()
		} else if !errors.Is(errs[i], ErrConnected) {
			t.Error(errs[i])
		}
	}
	if served != 1 {
		t.Errorf("%d daemons are served at once", served)
	}
}

// The one who starts a holder is served by it, whoever connects as soon as that can be found: it says hello on the first
// connection of all, and relies on it.
func TestStarterIsFirst(t *testing.T) {
	for range 30 {
		path := socket(t)
		stop, first := make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					first <- nil
					return
				default:
				}
				fd, err := dial(path)
				if err != nil {
					continue // there is none yet
				}
				l, err := newLink(fd)
				if err == nil {
					_, err = greet(limited(t), l, false)
				}
				first <- err
				return
			}
		}()
		c, err := Connect(limited(t), Options{Socket: path})
		if err != nil {
			t.Fatal(err)
		}
		put(t, c, "k", temp(t))
		close(stop)
		if err := <-first; err != nil && !errors.Is(err, ErrConnected) {
			t.Fatalf("another daemon: %v", err)
		}
		if s := c.Status(); s.Held != 1 {
			t.Fatalf("status %+v", s)
		}
		c.Close()
	}
}

// What a killed daemon had sent counts, although the holder sees it only when the
// next daemon is there already.
func TestMessagesOfTheDeadCount(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	stop(t, pid)
	fd := temp(t)
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	g.Go(func() { _ = c.Put(ctx, "k", fd) })
	eventually(t, "it is sent", func() bool { return c.Status().Held == 1 })
	// As SIGKILL would: the connection ends, and nothing is taken back.
	c.mu.Lock()
	c.closed = true
	c.lockedCut(ErrClosed)
	c.mu.Unlock()
	cancel()
	g.Wait()
	c.cancel()
	c.running.Wait()
	g.Go(func() {
		eventually(t, "the next daemon waits", func() bool { return count(t, pid) >= 5 })
		_ = unix.Kill(pid, unix.SIGCONT)
	})
	next := start(t, path)
	g.Wait()
	n := 0
	for key, taken := range next.Taken() {
		n++
		if key != "k" {
			t.Errorf("key %q", key)
		}
		next.Drop(taken)
		unix.Close(taken)
	}
	if n != 1 {
		t.Errorf("%d descriptors were taken", n)
	}
}

// The kernel reports a daemon that died before it had read a reply as an error that comes before what that daemon
// had sent (unix_release_sock in net/unix/af_unix.c, __skb_try_recv_datagram): all of it counts nevertheless.
func TestMessagesOfTheDeadCountBehindAReplyThatItDidNotRead(t *testing.T) {
	path := socket(t)
	first := start(t, path)
	pid := first.Status().PID
	first.Close()
	l := dialled(t, path)
	hello, err := greet(limited(t), l, false)
	if err != nil {
		t.Fatal(err)
	}
	change := func(seq uint32, quiet bool, key string) {
		t.Helper()
		request := changeRequest{base: hello.next + uint64(seq), puts: []string{key}}
		message := request.append(header{op: opChange, quiet: quiet, seq: seq}.append(nil))
		if err := send(l.fd, message, appendRights(nil, []int{temp(t)})); err != nil {
			t.Fatal(err)
		}
	}
	change(0, false, "answered")
	eventually(t, "the reply is there", func() bool {
		p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n == 1
	})
	stop(t, pid)
	change(1, true, "quiet")
	l.file.Close() // as SIGKILL would
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	next := start(t, path)
	var keys []string
	for key, taken := range next.Taken() {
		keys = append(keys, key)
		next.Drop(taken)
		unix.Close(taken)
	}
	if fmt.Sprint(keys) != "[answered quiet]" || next.Status().PID != pid {
		t.Errorf("process %d, which was %d, has %q", next.Status().PID, pid, keys)
	}
}
