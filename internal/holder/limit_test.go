package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func limitOf(t testing.TB, pid int) unix.Rlimit {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// The kernel cannot install what is above the holder's limit, which somebody has lowered: what comes to light
// after the Put is counted, and later there is place again.
func TestHolderAtItsLimit(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	pid := c.Status().PID
	l := limitOf(t, pid)
	if l.Cur != l.Max {
		t.Errorf("the holder did not raise its limit: %+v", l)
	}
	const room = 40
	l.Cur = uint64(len(descriptors(t, pid)) + room)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &l, nil); err != nil {
		t.Fatal(err)
	}
	const n = 100
	fds, errs := make([]int, n), make([]error, n)
	var g sync.WaitGroup
	for i := range n {
		fds[i] = temp(t)
		g.Go(func() { errs[i] = c.Put(limited(t), fmt.Sprint(i), fds[i]) })
	}
	g.Wait()
	held, lacks := 0, 0
	eventually(t, "what is not held is known", func() bool { return c.Status().Held <= room })
	for i, err := range errs {
		switch {
		case err == nil && refers(t, pid, fds[i]) == 1:
			held++
		case err == nil:
			lacks++
		case !errors.Is(err, ErrFull):
			t.Errorf("put %d: %v", i, err)
		case refers(t, pid, fds[i]) != 0:
			t.Errorf("%d was refused and is held", i)
		}
	}
	if want := (Status{PID: pid, Held: held, Unkept: lacks}); held != room || c.Status() != want {
		t.Errorf("status %+v, and should be %+v", c.Status(), want)
	}
	for i, err := range errs {
		if err == nil {
			c.Drop(fds[i])
		}
	}
	eventually(t, "there is place again", func() bool { return c.Put(limited(t), "later", fds[0]) == nil })
}

// A server with a limit of its own, and a new holder with less place than the one
// before: the client says what is not held, and puts it as soon as it can.
func TestNextHolderHasLessPlace(t *testing.T) {
	path := socket(t)
	first := serveHere(t, path, func(s *server) { s.limit = 10 })
	c := start(t, path)
	var fds []int
	for range 10 {
		fds = append(fds, temp(t))
		put(t, c, "k", fds[len(fds)-1])
	}
	if err := c.Put(limited(t), "k", temp(t)); !errors.Is(err, ErrFull) {
		t.Errorf("the 11th: %v", err)
	}
	// Meanwhile the client must not start one itself.
	unlock, err := lockFile(limited(t), path+".lock")
	if err != nil {
		t.Fatal(err)
	}
	first()
	second := serveHere(t, path, func(s *server) { s.limit = 6 })
	unlock()
	defer second()
	eventually(t, "six are held", func() bool { return c.Status() == Status{PID: os.Getpid(), Held: 6, Unkept: 4} })
	for _, fd := range fds[:5] {
		c.Drop(fd)
	}
	eventually(t, "the others are held later", func() bool { return c.Status() == Status{PID: os.Getpid(), Held: 5} })
	c.Close()
}

// A daemon without place for what the holder has does not start half.
func TestDaemonAtItsLimit(t *testing.T) {
	path := socket(t)
	c := start(t, path)
	for range 50 {
		put(t, c, "k", temp(t))
	}
	c.Close()
	before := count(t, os.Getpid())
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	low := l
	low.Cur = uint64(before + 20)
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	_, err := Connect(limited(t), Options{Socket: path})
	if err2 := unix.Prlimit(0, unix.RLIMIT_NOFILE, &l, nil); err2 != nil {
		t.Fatal(err2)
	}
	if !errors.Is(err, ErrTake) {
		t.Errorf("connect: %v", err)
	}
	if n := count(t, os.Getpid()); n != before {
		t.Errorf("%d descriptors before, %d after", before, n)
	}
	c = start(t, path)
	if n := c.Status().Held; n != 50 {
		t.Errorf("%d are held", n)
	}
	for _, fd := range c.Taken() {
		unix.Close(fd)
	}
}

// 100,000 descriptors, or as many as this machine lets two processes have.
func TestVeryMany(t *testing.T) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	n := 100_000
	if most := int(min(l.Max, 1<<30)) * 4 / 5; most < n {
		t.Logf("RLIMIT_NOFILE is %d: trying %d", l.Max, most)
		n = most
	}
	b, err := os.ReadFile("/proc/sys/fs/file-max")
	if err != nil {
		t.Fatal(err)
	}
	if most, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil || most < 2*uint64(n) {
		t.Skipf("fs.file-max is %d, %v", most, err)
	}
	path := socket(t)
	c := start(t, path)
	fds := make([]int, n)
	for i := range fds {
		if fds[i], err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	var g sync.WaitGroup
	for w := range 64 {
		g.Go(func() {
			for i := w; i < n; i += 64 {
				if err := c.Put(context.Background(), fmt.Sprintf("file 64769 %d", i), fds[i]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	if s := c.Status(); s.Held != n {
		t.Errorf("status %+v", s)
	}
	c.Close()
	closeAll(fds)
	c = start(t, path)
	if s := c.Status(); s.Held != n {
		t.Errorf("status of the next daemon %+v", s)
	}
	for _, fd := range c.Taken() {
		c.Drop(fd)
		unix.Close(fd)
	}
}

// What is dropped makes room at once, also for what comes in the same turn.
func TestDroppedMakesRoom(t *testing.T) {
	path := socket(t)
	const limit, callers = 64, 16
	defer serveHere(t, path, func(s *server) { s.limit = limit })()
	c := start(t, path)
	refusals := 0
	var mu sync.Mutex
	var g sync.WaitGroup
	for range callers {
		fd := temp(t)
		g.Go(func() {
			for range 5000 {
				if err := c.Put(limited(t), "k", fd); err != nil {
					t.Error(err)
					return
				}
				if s := c.Status(); s.Unkept > 0 {
					mu.Lock()
					refusals++
					mu.Unlock()
				}
				c.Drop(fd)
			}
		})
	}
	g.Wait()
	if refusals > 0 {
		t.Errorf("%d times something was not held, although never more than %d of %d were there", refusals, callers, limit)
	}
}

// A file system that does not close what was dropped takes its room, and is waited for once.
func TestStuckTakesRoom(t *testing.T) {
	s := newServer(-1, 5)
	s.closing.Store(3)
	for range 2 {
		if n := s.roomFor(3); n != 2 || s.stuck != 3 {
			t.Errorf("room for %d of 3, with %d stuck", n, s.stuck)
		}
	}
	s.closing.Store(0)
	if n := s.roomFor(3); n != 3 || s.stuck != 0 {
		t.Errorf("room for %d of 3 later, with %d stuck", n, s.stuck)
	}
}

// A holder that has refused something is no longer believed to have room: what is put again, and what is put after
// that, counts when it has answered. The daemon's end would lose it otherwise.
func TestWhatWasRefusedDoesNotCountUnanswered(t *testing.T) {
	c := start(t, socket(t))
	pid := c.Status().PID
	l := limitOf(t, pid)
	full := l
	full.Cur = uint64(len(descriptors(t, pid)))
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &full, nil); err != nil {
		t.Fatal(err)
	}
	fd := temp(t)
	put(t, c, "refused", fd)
	eventually(t, "that it is not held is known", func() bool { return c.Status().Unkept == 1 })
	if err := c.Put(limited(t), "refused at once", temp(t)); !errors.Is(err, ErrFull) {
		t.Errorf("a put while the holder is full: %v", err)
	}
	stop(t, pid)
	sent := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.entries.get(fd).state != refused
	}
	eventually(t, "it is put again", sent)
	if err := c.Complete(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("complete before the holder has answered: %v, %+v", err, c.Status())
	}
	if err := errors.Join(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &l, nil), unix.Kill(pid, unix.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is held", func() bool { return c.Complete() == nil && refers(t, pid, fd) == 1 })
	c.mu.Lock()
	if !c.lockedRoomy() {
		t.Error("the holder is not believed although it kept all")
	}
	c.mu.Unlock()
}

// A holder that has kept one thing is not believed as long as it lacks another, which it refused.
func TestFullUntilNothingIsRefused(t *testing.T) {
	c := &Client{waiting: map[*entry]chan error{}, closed: true, unkept: 1, link: &link{limit: 100, version: version, full: true}}
	kept := func() {
		t.Helper()
		c.seq++
		c.inFlight, c.asked, c.flying = true, c.seq, []*entry{{fd: 3, id: 1, state: flying}}
		if err := c.acknowledged(packet{data: changeReply{kept: 1}.append(header{op: opChange, seq: c.seq}.append(nil))}); err != nil {
			t.Error(err)
		}
	}
	if kept(); c.lockedRoomy() {
		t.Error("it is believed while it lacks one")
	}
	c.unkept = 0
	if kept(); !c.lockedRoomy() {
		t.Error("it is not believed although it lacks nothing")
	}
}
