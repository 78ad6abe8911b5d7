package holder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Put does not wait for the holder to run: what is in its socket outlives the daemon. So much is sent
// without a reply, and more waits.
func TestPutDoesNotWait(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	stop(t, pid)
	const most = maxQuiet + 1 + maxQuiet
	sent := map[string]int{}
	for i := range most {
		key := fmt.Sprint(i)
		sent[key] = temp(t)
		put(t, c, key, sent[key])
	}
	if s := c.Status(); s != (Status{PID: pid, Held: most}) {
		t.Errorf("status %+v", s)
	}
	if err := c.Complete(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	last := temp(t)
	go func() { done <- c.Put(ctx, "waits", last) }()
	eventually(t, "the last one waits", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.queue) == 1 && !c.gathering
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the last one: %v", err)
	}
	c.end() // as if killed
	// What is for everything called vmlockd may come first.
	if err := errors.Join(unix.Kill(pid, unix.SIGTERM), unix.Kill(pid, unix.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	c = start(t, path)
	for key, got := range c.Taken() {
		if _, there := sent[key]; !there || c.Status().PID != pid {
			t.Errorf("%q is with %d, which was %d", key, c.Status().PID, pid)
		}
		delete(sent, key)
		c.Drop(got)
		unix.Close(got)
	}
	if len(sent) != 0 {
		t.Errorf("what was in the socket of the holder is gone: %v", sent)
	}
}

// All that is sent while the holder is kept from running fits into its socket, also the
// longest messages behind the most short ones: else the connection would be given up. And not too many
// descriptors are in flight.
func TestSocketHasRoom(t *testing.T) {
	for _, long := range []string{"", strings.Repeat("k", MaxKey-4)} {
		t.Run(fmt.Sprint(len(long)), func(t *testing.T) {
			c := start(t, socket(t))
			pid := c.Status().PID
			before := count(t, pid)
			stop(t, pid)
			const n = 2000
			for range maxQuiet - 1 {
				put(t, c, "short", temp(t))
			}
			fds := make([]int, n)
			for i := range fds {
				fds[i] = temp(t)
			}
			var g sync.WaitGroup
			returned := atomic.Int64{}
			for i, fd := range fds {
				g.Go(func() {
					if err := c.Put(limited(t), fmt.Sprint(long, i), fd); err != nil {
						t.Error(err)
					}
					returned.Add(1)
				})
			}
			eventually(t, "all are sent or wait", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return !c.gathering && len(c.queue) > 0 && int(returned.Load())+len(c.queue) == n
			})
			if s := c.Status(); s.PID != pid || s.Held > 5*maxFDs {
				t.Errorf("the connection was given up, or %d are in flight: %+v", s.Held, s)
			}
			if err := unix.Kill(pid, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			g.Wait()
			eventually(t, "the holder has each", func() bool { return count(t, pid) == before+n+maxQuiet-1 })
			if s := c.Status(); s != (Status{PID: pid, Held: n + maxQuiet - 1}) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// Nor is the socket full of what only drops, however much that is.
func TestSocketHasRoomForDrops(t *testing.T) {
	c := start(t, socket(t))
	pid := c.Status().PID
	stop(t, pid)
	c.mu.Lock()
	for i := range 2 * maxQuiet * maxDrops {
		c.drops = append(c.drops, 1<<40+uint64(i)) // which the holder does not have
	}
	c.lockedPump()
	if c.link == nil || len(c.drops) == 0 || !c.inFlight {
		t.Errorf("the connection was given up, or nothing waits: %v, %d", c.why, len(c.drops))
	}
	c.mu.Unlock()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is sent", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.drops) == 0 && !c.inFlight
	})
	if s := c.Status(); s.PID != pid {
		t.Errorf("status %+v", s)
	}
}

// What the holder could not keep is known also if the message after it could not be sent.
func TestNotKeptBeforeWhatCannotBeSent(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(ends[:]) })
	c := &Client{
		log: slog.New(slog.DiscardHandler), waiting: map[*entry]chan error{}, next: 1,
		link: &link{fd: ends[0], limit: 100, version: version},
	}
	a, b := temp(t), temp(t)
	put(t, c, "a", a)
	if err := c.Put(limited(t), "bad", 1<<20); !errors.Is(err, unix.EBADF) {
		t.Errorf("a bad descriptor: %v", err)
	}
	put(t, c, "b", b)
	c.closed = true // nothing is put again
	refusal := changeReply{kept: 0}.append(header{op: opChange, errno: unix.EMFILE, seq: 1}.append(nil))
	if err := c.acknowledged(packet{data: refusal}); err != nil {
		t.Error(err)
	}
	if s := c.Status(); s.Held != 1 || s.Unkept != 1 || c.entries.get(a).state != refused {
		t.Errorf("status %+v", s)
	}
}

// A holder that was only just started has not said anything yet: what it gets is
// in its socket, and nobody is told that it is held.
func TestHolderThatIsJustStarted(t *testing.T) {
	path := socket(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stopped := filepath.Join(t.TempDir(), "holder")
	script := fmt.Sprintf("#!/bin/sh\nkill -STOP $$\nexec %s %s\n", program, argument)
	if err := os.WriteFile(stopped, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := connect(limited(t), Options{Socket: path}, starter{socket: path, program: stopped})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pid := c.Status().PID
	fd := temp(t)
	done := make(chan error)
	go func() { done <- c.Put(limited(t), "k", fd) }()
	eventually(t, "it is sent", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.inFlight
	})
	if s := c.Status(); s.Held != 0 {
		t.Errorf("status %+v before the holder ran", s)
	}
	select {
	case err := <-done:
		t.Fatalf("the put ended with %v before the holder ran", err)
	default:
	}
	other := make(chan error)
	go func() {
		_, err := Connect(limited(t), Options{Socket: path})
		other <- err
	}()
	isStopped(t, pid)
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := <-other; !errors.Is(err, ErrConnected) {
		t.Errorf("another daemon, which came later: %v", err)
	}
	if s := c.Status(); s != (Status{PID: pid, Held: 1}) {
		t.Errorf("status %+v", s)
	}
}
