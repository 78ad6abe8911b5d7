package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	goleak.VerifyTestMain(m)
}

// socket is a place for a holder. At the end of the test the holder has to be
// gone, as nothing is held.
func socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holder") // t.TempDir() is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	t.Cleanup(func() {
		end(t, path)
		os.RemoveAll(dir)
	})
	return path
}

// dialled is a link to the holder, on which nothing was said, closed at the end.
func dialled(t testing.TB, path string) *link {
	t.Helper()
	fd, err := dial(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLink(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.file.Close() })
	return l
}

// end empties the holder and waits until it is gone.
func end(t testing.TB, path string) {
	t.Helper()
	fd, err := dial(path)
	if err != nil {
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
		return
	}
	l, err := newLink(fd)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := greet(limited(t), l, false)
	if err != nil {
		if !ended(err) {
			t.Errorf("the holder cannot be asked to end: %v", err)
		}
		return
	}
	process, err := unix.PidfdOpen(l.pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	var drops []uint64
	if err := list(l, false, func(e listed, _ int) { drops = append(drops, e.id) }); err != nil {
		t.Error(err)
	}
	for len(drops) > 0 {
		n := min(len(drops), maxDrops)
		request := changeRequest{base: hello.next, drops: drops[:n]}.append(header{op: opChange}.append(nil))
		if _, _, _, err := l.call(0, request, opChange); err != nil {
			t.Error(err)
		}
		drops = drops[n:]
	}
	l.file.Close()
	_ = unix.Kill(l.pid, unix.SIGTERM) // which it obeys, as it holds nothing
	waitProcess(t, process)
	reap(l.pid)
}

// stop stops a process until the end of the test, or until it is continued.
func stop(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) })
	isStopped(t, pid)
}

func isStopped(t testing.TB, pid int) {
	t.Helper()
	eventually(t, "the process stops", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(b), ") T ")
	})
}

// patience is how long anything may take that must happen.
const patience = time.Minute

// waitProcess waits for the end of a process, which for a holder is idleTime away.
func waitProcess(t testing.TB, pidfd int) {
	t.Helper()
	if !endsWithin(t, pidfd, patience) {
		t.Error("the holder does not end")
	}
}

// endsWithin waits for the end of a process.
func endsWithin(t testing.TB, pidfd int, d time.Duration) bool {
	t.Helper()
	for until := time.Now().Add(d); ; {
		left := max(0, time.Until(until))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		switch {
		case err != nil && err != unix.EINTR: // which any signal is, such as one for a child's end
			t.Fatalf("poll: %v", err)
		case n == 1:
			return true
		case left == 0:
			return false
		}
	}
}

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func start(t testing.TB, path string) *Client {
	t.Helper()
	c, err := Connect(limited(t), Options{Socket: path, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// temp is an open file, closed at the end.
func temp(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// count is how many descriptors a process has, without those that the Go runtime has
// opened for itself, at whatever time: its poller, and the CPU limits of its control group.
func count(t testing.TB, pid int) (n int) {
	t.Helper()
	for _, d := range descriptors(t, pid) {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, d.Name()))
		if !strings.HasPrefix(to, "/sys/fs/cgroup/") && to != "anon_inode:[eventpoll]" && to != "anon_inode:[eventfd]" {
			n++
		}
	}
	return n
}

func descriptors(t testing.TB, pid int) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// refers counts the descriptors of a process that lead to the file of fd.
func refers(t testing.TB, pid, fd int) (n int) {
	t.Helper()
	want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if got, _ := os.Readlink(dir + "/" + e.Name()); strings.TrimSuffix(got, " (deleted)") == strings.TrimSuffix(want, " (deleted)") {
			n++
		}
	}
	return n
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if cond() {
			return
		}
	}
	t.Fatalf("it did not come about in %v that %s", patience, what)
}
