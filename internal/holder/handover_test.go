package holder

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// replaced hands c over, through bytes as a real program gets them.
func replaced(t testing.TB, c *Client, path string) *Client {
	t.Helper()
	h, err := c.Handover()
	if err != nil {
		t.Fatal(err)
	}
	b, err := h.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	h = &Handover{}
	if err := h.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	next, err := Resume(Options{Socket: path}, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	return next
}

func TestHandover(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	empty := count(t, pid)
	const n = 300
	var fds []int
	for i := range n {
		fds = append(fds, temp(t))
		put(t, c, fmt.Sprintf("file %d", i), fds[i])
	}
	c.Drop(fds[0])
	for range 2 {
		c = replaced(t, c, path)
		if s := c.Status(); s.PID != pid || s.Held != n-1 || s.Unkept != 0 {
			t.Fatalf("status %+v", s)
		}
		i := 1
		for key, fd := range c.Taken() {
			if key != fmt.Sprintf("file %d", i) || fd != fds[i] {
				t.Fatalf("place %d: %q is descriptor %d, not %d", i, key, fd, fds[i])
			}
			i++
		}
		if i != n {
			t.Fatalf("%d descriptors", i-1)
		}
		// No descriptor was duplicated, there or here, and the connection is the same.
		eventually(t, "the holder has what was not dropped", func() bool { return count(t, pid) == empty+n-1 })
	}
	if _, err := Connect(limited(t), Options{Socket: path}); !errors.Is(err, ErrConnected) {
		t.Errorf("another daemon: %v", err)
	}
	put(t, c, "new", fds[0])
	for _, fd := range fds {
		c.Drop(fd)
	}
	eventually(t, "the holder has nothing", func() bool { return count(t, pid) == empty })
}

// The holder may end before the next program has come that far.
func TestHandoverWithoutHolder(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	fd := temp(t)
	put(t, c, "k", fd)
	pid := c.Status().PID
	h, err := c.Handover()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c, err = Resume(Options{Socket: path}, h)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	put(t, c, "other", temp(t))
	eventually(t, "a new holder has both", func() bool {
		s := c.Status()
		return s.PID != pid && s.PID != 0 && s.Held == 2 && refers(t, s.PID, fd) == 1
	})
}

// While the holder does not answer, or is gone, nothing is handed over; it has
// everything for the next one that connects.
func TestHandoverOfWhatIsNotCertain(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	kept, late := temp(t), temp(t)
	put(t, c, "kept", kept)
	pid := c.Status().PID
	stop(t, pid)
	asked := make(chan error)
	go func() { asked <- c.Put(limited(t), "late", late) }()
	eventually(t, "it is sent", func() bool { return c.Status().Held == 2 })
	if h, err := c.Handover(); err == nil {
		t.Fatalf("a put under way was handed over: %+v", h)
	}
	if err := <-asked; err != nil {
		t.Errorf("the put, which is in the holder's socket: %v", err)
	}
	if _, err := c.Handover(); !errors.Is(err, ErrClosed) {
		t.Errorf("a second one: %v", err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c = start(t, path)
	keys := map[string]bool{}
	for key, fd := range c.Taken() {
		keys[key] = true
		c.Drop(fd)
		unix.Close(fd)
	}
	if !keys["kept"] || !keys["late"] {
		t.Errorf("the holder has %v", keys)
	}
}

// A descriptor that is not the connection is refused, and all are closed, so that
// nothing keeps a lock but the holder and what comes of Connect.
func TestResumeRefused(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	fd, err := unix.FcntlInt(uintptr(temp(t)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, "k", fd)
	h, err := c.Handover()
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(h.fd)
	h.fd = temp(t)
	if h.fd, err = unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Resume(Options{Socket: path}, h); err == nil {
		t.Fatal("a file was taken for the connection")
	}
	for _, fd := range h.FDs() {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("descriptor %d is open: %v", fd, err)
		}
	}
	c = start(t, path)
	n := 0
	for _, fd := range c.Taken() {
		c.Drop(fd)
		unix.Close(fd)
		n++
	}
	if n != 1 {
		t.Errorf("%d were held", n)
	}
}

func FuzzHandover(f *testing.F) {
	f.Add([]byte{})
	good := &Handover{fd: 7, pid: 1, next: 4, seq: 9, quiet: 2, entries: []handed{{3, 1, "a"}, {4, 3, ""}}}
	b, _ := good.MarshalBinary()
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, data []byte) {
		var h Handover
		var err error
		testenv.Bounded(t, 100, len(data), func() { err = h.UnmarshalBinary(data) })
		if err != nil {
			return
		}
		seen := map[int]bool{}
		for _, fd := range h.FDs() {
			if fd < 0 || seen[fd] {
				t.Fatalf("descriptor %d", fd)
			}
			seen[fd] = true
		}
		if len(h.entries)*handedMin > len(data) {
			t.Fatalf("%d entries of %d bytes", len(h.entries), len(data))
		}
		if back, _ := h.MarshalBinary(); !bytes.Equal(back, data) {
			t.Errorf("%x becomes %x", data, back)
		}
	})
}

// Without a holder that has everything no other program may be executed, but this one
// goes on, and the next holder gets what is missing.
func TestHandoverOfIncomplete(t *testing.T) {
	path := socket(t)
	c, err := connect(limited(t), Options{Socket: path}, starter{socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd := temp(t)
	put(t, c, "k", fd)
	if err := c.Complete(); err != nil {
		t.Fatalf("with everything held: %v", err)
	}
	c.starter.program = "/nonexistent"
	if err := unix.Kill(c.Status().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the holder is noticed", func() bool { return errors.Is(c.Complete(), ErrIncomplete) })
	h, err := c.Handover()
	if !errors.Is(err, ErrIncomplete) || h == nil {
		t.Fatalf("handed over: %+v, %v", h, err)
	}
	if b, err := h.MarshalBinary(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("bytes for another program: %x, %v", b, err)
	}
	next, err := Resume(Options{Socket: path}, h)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for key, at := range next.Taken() {
		if key != "k" || at != fd {
			t.Errorf("%q is descriptor %d, not %d", key, at, fd)
		}
	}
	eventually(t, "the next holder has it", func() bool { return next.Complete() == nil })
	s := next.Status()
	if s.Held != 1 {
		t.Errorf("%+v", s)
	}
	eventually(t, "the next holder has the file", func() bool { return refers(t, s.PID, fd) == 1 })
}

// A holder of an earlier version gives up a connection that has ended when it cannot answer, with all that is
// behind: nothing counts as held as long as it owes the reply to the hello of a client that resumed.
func TestPutWaitsForTheHelloOfResume(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	put(t, c, "before", temp(t))
	h, err := c.Handover()
	if err != nil {
		t.Fatal(err)
	}
	stop(t, h.pid)
	c, err = Resume(Options{Socket: path}, h)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	done := make(chan error, 1)
	last := temp(t)
	go func() { done <- c.Put(limited(t), "k", last) }()
	eventually(t, "it is sent", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.inFlight
	})
	c.mu.Lock()
	waits := len(c.waiting)
	c.mu.Unlock()
	if s := c.Status(); waits != 1 || s.Held != 1 {
		t.Errorf("%d wait; status %+v before the holder has answered", waits, s)
	}
	if err := unix.Kill(h.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
