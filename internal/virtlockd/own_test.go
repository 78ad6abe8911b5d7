package virtlockd

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// take is Share and Own.
func take(fd int, exclusive bool) error {
	if err := Share(fd, exclusive); err != nil {
		return err
	}
	return Own(fd, exclusive)
}

// TestOwn: what was the process's is the open file's: it is not lost when the process closes
// another descriptor of the file, and keeps others out as before.
func TestOwn(t *testing.T) {
	for _, c := range []struct {
		exclusive bool
		kind      int16
	}{{true, unix.F_WRLCK}, {false, unix.F_RDLCK}} {
		path := filepath.Join(t.TempDir(), "disk")
		fd := locked(t, path, c.kind)
		if err := take(fd, c.exclusive); err != nil {
			t.Fatal(err)
		}
		other, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		other.Close() // which would end locks of the process
		again, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if err := setLock(int(again.Fd()), unix.F_OFD_SETLK, unix.F_WRLCK); err != unix.EAGAIN {
			t.Errorf("%+v: another one locks it exclusively: %v", c, err)
		}
		if err := setLock(int(again.Fd()), unix.F_OFD_SETLK, unix.F_RDLCK); (err == unix.EAGAIN) != c.exclusive {
			t.Errorf("%+v: another one shares it: %v", c, err)
		}
	}
}

// TestOvertaken: another one shares the file when the lock is shared for a moment. When it has left, the lock can be had.
func TestOvertaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	fd := locked(t, path, unix.F_RDLCK) // as it is in that moment
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := setLock(int(other.Fd()), unix.F_OFD_SETLK, unix.F_RDLCK); err != nil {
		t.Fatal(err)
	}
	if err := take(fd, true); !errors.Is(err, ErrOvertaken) {
		t.Errorf("got %v", err)
	}
	other.Close()
	if err := Own(fd, true); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestUnshare: what was shared is the process's again, in the mode that it had.
func TestUnshare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	fd := locked(t, path, unix.F_WRLCK)
	if err := errors.Join(Share(fd, true), Unshare(fd, true), take(fd, true), GiveBack(fd, true)); err != nil {
		t.Fatal(err)
	}
	again, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := setLock(int(again.Fd()), unix.F_OFD_SETLK, unix.F_RDLCK); err != unix.EAGAIN {
		t.Errorf("another one shares it: %v", err)
	}
	again.Close() // which ends locks of the process
	if again, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := setLock(int(again.Fd()), unix.F_OFD_SETLK, unix.F_WRLCK); err != nil {
		t.Errorf("it is not the process's: %v", err)
	}
}

// TestKeepsOthersOut: a program that tries to lock the file exclusively all the time never can.
func TestKeepsOthersOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	fd := locked(t, path, unix.F_WRLCK)
	tries, got := tryAll(t, path)
	if err := take(fd, true); err != nil {
		t.Fatal(err)
	}
	for from := tries(); tries() < from+10; {
	}
	if got() {
		t.Error("another one had it")
	}
}

func locked(t *testing.T, path string, kind int16) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := setLock(int(f.Fd()), unix.F_SETLK, kind); err != nil {
		t.Fatal(err)
	}
	return int(f.Fd())
}

// tryAll locks the file exclusively, by another open file, as often as it can until the test ends.
func tryAll(t *testing.T, path string) (tries func() int64, got func() bool) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	var had, stop atomic.Bool
	var running sync.WaitGroup
	running.Go(func() {
		for !stop.Load() {
			if setLock(int(f.Fd()), unix.F_OFD_SETLK, unix.F_WRLCK) == nil {
				had.Store(true)
			}
			n.Add(1)
		}
	})
	t.Cleanup(func() {
		stop.Store(true)
		running.Wait()
		f.Close()
	})
	return n.Load, had.Load
}
