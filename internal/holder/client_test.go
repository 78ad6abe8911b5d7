package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func put(t testing.TB, c *Client, key string, fd int) {
	t.Helper()
	if err := c.Put(limited(t), key, fd); err != nil {
		t.Fatal(err)
	}
}

func TestHolderIsApart(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || dir != "/" {
		t.Errorf("its directory is %q, %v", dir, err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d, %v", sid, err)
	}
	if n := count(t, pid); n != 5 { // 0, 1, 2, the listener, this connection
		t.Errorf("it has %d descriptors", n)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(b) != "vmlockd-holder\n" {
		t.Errorf("its name is %q, %v", b, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || len(strings.Split(strings.TrimRight(string(env), "\x00"), "\x00")) != len(environment) {
		t.Errorf("its environment is %q, %v", env, err)
	}
}

func TestPutAndDrop(t *testing.T) {
	c := start(t, socket(t))
	pid := c.Status().PID
	before := count(t, pid)
	fd := temp(t)
	key := "any \x00 bytes \xff" + strings.Repeat("k", MaxKey-13)
	key = key[:MaxKey]
	put(t, c, key, fd)
	eventually(t, "the holder has the file once", func() bool { return refers(t, pid, fd) == 1 })
	if err := c.Put(limited(t), "again", fd); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same descriptor again: %v", err)
	}
	if err := c.Put(limited(t), key+"k", temp(t)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a key that is too long: %v", err)
	}
	if s := c.Status(); s.Held != 1 || s.Unkept != 0 {
		t.Errorf("status %+v", s)
	}
	c.Drop(fd)
	c.Drop(fd)
	eventually(t, "the holder closes what was dropped", func() bool { return count(t, pid) == before })
	put(t, c, "later", fd)
	c.Drop(fd)
}

func TestTwoOfOneKey(t *testing.T) {
	c := start(t, socket(t))
	a, b := temp(t), temp(t)
	put(t, c, "same", a)
	put(t, c, "same", b)
	pid := c.Status().PID
	eventually(t, "both are there", func() bool { return refers(t, pid, a) == 1 && refers(t, pid, b) == 1 })
	c.Drop(a)
	eventually(t, "the first is dropped", func() bool { return refers(t, pid, a) == 0 })
	if refers(t, pid, b) != 1 {
		t.Error("the second was dropped with the first")
	}
}

func TestManyAtOnce(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	before := count(t, pid)
	ours := count(t, os.Getpid())
	var g sync.WaitGroup
	for i := range 64 {
		g.Go(func() {
			for j := range 50 {
				fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Put(limited(t), fmt.Sprintf("%d/%d", i, j), fd); err != nil {
					t.Error(err)
				}
				c.Drop(fd)
				unix.Close(fd)
			}
		})
	}
	g.Wait()
	eventually(t, "all is dropped", func() bool { return count(t, pid) == before })
	if n := count(t, os.Getpid()); n != ours {
		t.Errorf("%d descriptors of this process before, %d after", ours, n)
	}
}

func TestOneBadDescriptorHurtsNobodyElse(t *testing.T) {
	c := start(t, socket(t))
	fds := []int{temp(t), 1 << 20, temp(t), temp(t)}
	errs := make([]error, len(fds))
	c.mu.Lock() // so that they come in one message
	c.inFlight, c.quiet = true, maxQuiet
	c.mu.Unlock()
	var g sync.WaitGroup
	for i, fd := range fds {
		g.Go(func() { errs[i] = c.Put(limited(t), "k", fd) })
	}
	eventually(t, "all wait", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.queue) == len(fds)
	})
	c.mu.Lock()
	c.inFlight, c.quiet = false, 0
	c.lockedPump()
	c.mu.Unlock()
	g.Wait()
	for i, err := range errs {
		if bad := i == 1; bad != errors.Is(err, unix.EBADF) {
			t.Errorf("put %d: %v", i, err)
		}
	}
}

func TestPutThatIsGivenUpLeavesNothing(t *testing.T) {
	c := start(t, socket(t))
	pid := c.Status().PID
	before := count(t, pid)
	stop(t, pid)
	c.mu.Lock()
	c.link.limit = 0 // how many it can hold is not known: all wait
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	for range 3 { // those that come in time are sent, the others wait
		fd := temp(t)
		g.Go(func() {
			if err := c.Put(ctx, "k", fd); !errors.Is(err, context.Canceled) {
				t.Errorf("a put to a holder that does not answer: %v", err)
			}
		})
	}
	eventually(t, "all wait", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.flying)+len(c.queue) == 3
	})
	cancel()
	g.Wait()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	put(t, c, "other", temp(t))
	eventually(t, "what was sent is dropped", func() bool { return count(t, pid) == before+1 })
}

func TestTakenByTheNext(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	const n = 600 // several messages
	want := map[string]int{}
	for i := range n {
		key := fmt.Sprintf("file %d", i)
		want[key] = temp(t)
		put(t, c, key, want[key])
	}
	pid := c.Status().PID
	if _, err := Connect(limited(t), Options{Socket: path}); !errors.Is(err, ErrConnected) {
		t.Fatalf("a second daemon: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	ours := count(t, os.Getpid())
	c = start(t, path)
	if got := c.Status(); got.PID != pid || got.Held != n {
		t.Fatalf("status %+v, the holder was %d", got, pid)
	}
	i := 0
	for key, fd := range c.Taken() {
		if key != fmt.Sprintf("file %d", i) {
			t.Fatalf("place %d: %q", i, key)
		}
		// The same open file description, not only the same file: it shares the offset.
		if _, err := unix.Seek(want[key], int64(1000+i), unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		if off, err := unix.Seek(fd, 0, unix.SEEK_CUR); err != nil || off != int64(1000+i) {
			t.Fatalf("%q is another file: offset %d, %v", key, off, err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Fatalf("%q is not close-on-exec: %x, %v", key, flags, err)
		}
		c.Drop(fd)
		unix.Close(fd)
		i++
	}
	if i != n {
		t.Fatalf("%d taken of %d", i, n)
	}
	if got := count(t, os.Getpid()); got != ours+1 {
		t.Errorf("%d descriptors before, %d after", ours, got)
	}
	eventually(t, "the holder has nothing", func() bool { return count(t, pid) == 5 })
}

func TestPutAfterClose(t *testing.T) {
	defer func(d time.Duration) { closeTimeout = d }(closeTimeout)
	closeTimeout = time.Hour // which this test has not
	c := start(t, socket(t))
	begin := time.Now()
	c.Close()
	if took := time.Since(begin); took > closeTimeout/2 {
		t.Errorf("Close took %v with nothing to send", took)
	}
	if err := c.Put(limited(t), "k", temp(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestCloseSendsWhatWasDropped(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	const n = 3000
	var g sync.WaitGroup
	for w := range 30 {
		fds := make([]int, n/30)
		for i := range fds {
			fds[i] = temp(t)
		}
		g.Go(func() {
			for _, fd := range fds {
				if err := c.Put(limited(t), fmt.Sprint(w), fd); err != nil {
					t.Error(err)
				}
			}
			for _, fd := range fds {
				c.Drop(fd)
			}
		})
	}
	g.Wait()
	c.Close()
	eventually(t, "the holder has nothing", func() bool { return count(t, pid) == 4 })
}
