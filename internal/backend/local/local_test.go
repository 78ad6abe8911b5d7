package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestMain(m *testing.M) {
	holder.Main()
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		beDaemon(os.Args[2])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func disk(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, b *Backend, ref locking.Ref, autocreate bool) locking.Handle {
	t.Helper()
	h, err := b.Open(context.Background(), ref, autocreate)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// pair opens, locks and gives up a file.
func pair(t testing.TB, b *Backend, path string) {
	t.Helper()
	ctx := t.Context()
	h, err := b.Open(ctx, locking.Ref{Name: path}, false)
	if err == nil {
		err = h.Lock(ctx, locking.Exclusive)
	}
	if err == nil {
		err = h.Unlock(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestExclusiveKeepsOthersOut(t *testing.T) {
	ctx := context.Background()
	path := disk(t)
	b, other := New(), New()
	h := open(t, b, locking.Ref{Name: path}, false)
	if err := h.Lock(ctx, locking.Exclusive); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		o := open(t, other, locking.Ref{Name: path}, false)
		if err := o.Lock(ctx, mode); !errors.Is(err, locking.ErrBusy) {
			t.Fatalf("%v lock beside an exclusive one: %v", mode, err)
		}
		o.Close()
	}
	if err := h.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	o := open(t, other, locking.Ref{Name: path}, false)
	if err := o.Lock(ctx, locking.Exclusive); err != nil {
		t.Fatalf("after release: %v", err)
	}
	if err := o.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "data" {
		t.Fatalf("the disk was touched: %q, %v", got, err)
	}
}

// theirs is the lock that virtlockd takes on a disk (virFileLock with start 0 and
// length 1 in src/locking/lock_daemon.c and src/util/virlockspace.c of libvirt). It
// is spelt out here, so that the Backend cannot change with what it is compared to.
func theirs() unix.Flock_t {
	return unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: 0, Len: 1}
}

// A record lock of the process is what virtlockd takes. It conflicts with the
// Backend's, which belong to open files, although both are made in this process.
func TestRecordLocksConflict(t *testing.T) {
	ctx := context.Background()
	path := disk(t)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := theirs()
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &l); err != nil {
		t.Fatal(err)
	}
	h := open(t, New(), locking.Ref{Name: path}, false)
	defer h.Close()
	err = h.Lock(ctx, locking.Exclusive)
	if !errors.Is(err, locking.ErrBusy) {
		t.Fatalf("lock beside a record lock: %v", err)
	}
	t.Log(err)
}

// TestOnlyByteZero: the lock covers what virtlockd's does, and nothing that it
// leaves free for others, such as QEMU's own locks on images (bytes 100 to 203).
func TestOnlyByteZero(t *testing.T) {
	path := disk(t)
	h := open(t, New(), locking.Ref{Name: path}, false)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, mode := range []locking.Mode{locking.Exclusive, locking.Shared} {
		if err := h.Lock(context.Background(), mode); err != nil {
			t.Fatal(err)
		}
		l := theirs()
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != unix.EAGAIN {
			t.Errorf("%v: another's exclusive lock: %v", mode, err)
		}
		l.Type = unix.F_RDLCK
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); (err == nil) != (mode == locking.Shared) {
			t.Errorf("%v: another's shared lock: %v", mode, err)
		}
		l = unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: 1, Len: 0} // from byte 1 to the end
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != nil {
			t.Errorf("%v: a lock of the other bytes: %v", mode, err)
		}
		l = unix.Flock_t{Type: unix.F_UNLCK, Whence: 0, Start: 0, Len: 0}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != nil {
			t.Fatal(err)
		}
		if err := h.Unlock(context.Background()); err != nil {
			t.Fatal(err)
		}
		h = open(t, New(), locking.Ref{Name: path}, false)
	}
	h.Close()
}

func TestOneFileHasOneID(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(dir, "soft")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := New()
	id := func(ref locking.Ref) string {
		h := open(t, b, ref, false)
		defer h.Close()
		return h.ID()
	}
	want := id(locking.Ref{Name: path})
	for _, ref := range []locking.Ref{
		{Name: dir + "//a"}, {Name: dir + "/hard"}, {Name: dir + "/soft"}, {Name: dir + "/../" + filepath.Base(dir) + "/a"},
		{Lockspace: dir, Name: "a"}, {Lockspace: dir + "/", Name: "hard"},
	} {
		if got := id(ref); got != want {
			t.Errorf("%v is %q, want %q", ref, got, want)
		}
	}
	if got := id(locking.Ref{Name: dir + "/b"}); got == want {
		t.Error("two files have one ID")
	}
	if os.Getuid() == 0 {
		for i, node := range []string{"n1", "n2"} {
			if err := unix.Mknod(filepath.Join(dir, node), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
				t.Skipf("mknod: %v", err)
			}
			if i == 1 && id(locking.Ref{Name: dir + "/n1"}) != id(locking.Ref{Name: dir + "/n2"}) {
				t.Error("one device has two IDs")
			}
		}
	}
}

func TestAutocreateRemovesWhatIsEmpty(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	b := New()
	ref := locking.Ref{Lockspace: dir, Name: "lock"}
	if _, err := b.Open(ctx, ref, false); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("open of a missing file without autocreate: %v", err)
	}
	h := open(t, b, ref, true)
	if err := h.Lock(ctx, locking.Exclusive); err != nil {
		t.Fatal(err)
	}
	if err := h.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/lock"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file of an auto-created lock is still there: %v", err)
	}

	path := disk(t)
	h = open(t, b, locking.Ref{Name: path}, true)
	if err := h.Lock(ctx, locking.Exclusive); err != nil {
		t.Fatal(err)
	}
	if err := h.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("a file with content was removed: %v", err)
	}
}

// Two hosts share a lock on a file that was made for it. The first one to release
// must not remove the file: a third one would make a new one, and have it alone.
func TestSharedAutocreateStaysForTheOthers(t *testing.T) {
	ctx := context.Background()
	ref := locking.Ref{Lockspace: t.TempDir(), Name: "lock"}
	one, two := open(t, New(), ref, true), open(t, New(), ref, true)
	for _, h := range []locking.Handle{one, two} {
		if err := h.Lock(ctx, locking.Shared); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	three := open(t, New(), ref, true)
	if err := three.Lock(ctx, locking.Exclusive); !errors.Is(err, locking.ErrBusy) {
		t.Errorf("exclusive lock beside a shared one: %v", err)
	}
	three.Close()
	if err := two.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ref.Lockspace + "/lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last one left the file: %v", err)
	}
}

func TestReplacedFileIsStale(t *testing.T) {
	ctx := context.Background()
	path := disk(t)
	b := New()
	h := open(t, b, locking.Ref{Name: path}, false)
	defer h.Close()
	if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := h.Lock(ctx, locking.Exclusive); !errors.Is(err, locking.ErrStale) {
		t.Fatalf("lock on a file that lost its name: %v", err)
	}
}

func TestNameStaysInItsLockspace(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"..", "../x", "a/../../x"} {
		_, err := New().Open(context.Background(), locking.Ref{Lockspace: dir, Name: name}, true)
		var e *locking.Error
		if !errors.As(err, &e) || e.Kind != locking.KindInvalid {
			t.Errorf("open of %q: %v", name, err)
		}
	}
}

func TestLockspaceMustBeADirectory(t *testing.T) {
	ctx := context.Background()
	b := New()
	path := disk(t)
	var e *locking.Error
	if err := b.CreateLockspace(ctx, path); !errors.As(err, &e) || e.Kind != locking.KindInvalid {
		t.Fatalf("a lockspace on a file: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "deep", "ls")
	for range 2 {
		if err := b.CreateLockspace(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
		t.Fatalf("the directory: %v, %v", st, err)
	}
}

// hung is a kernel in which one path's file system does not answer until let.
type hung struct {
	kernel
	path    string
	entered chan struct{}
	release chan struct{}

	mu     sync.Mutex // guards opened
	opened map[int]bool
}

func (k *hung) wait(path string) {
	if path == k.path {
		k.entered <- struct{}{}
		<-k.release
	}
}

func (k *hung) open(path string, create bool) (int, error) {
	k.wait(path)
	fd, err := k.kernel.open(path, create)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.opened[fd] = true
	return fd, err
}

func (k *hung) close(fd int) {
	k.kernel.close(fd)
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.opened, fd)
}

func TestHungFileDelaysOnlyItself(t *testing.T) {
	slow, fast := disk(t), disk(t)
	k := &hung{path: slow, entered: make(chan struct{}, 8), release: make(chan struct{}), opened: map[int]bool{}}
	b := New()
	b.sys = k
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := b.Open(ctx, locking.Ref{Name: slow}, false)
		failed <- err
	}()
	<-k.entered
	h := open(t, b, locking.Ref{Name: fast}, false)
	if err := h.Lock(context.Background(), locking.Exclusive); err != nil {
		t.Fatal(err)
	}
	if err := h.Unlock(context.Background()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("open that was given up: %v", err)
	}
	if f := b.Figures(); f.InFlight != 1 || f.Unsettled != 1 || f.Oldest <= 0 {
		t.Errorf("while it hangs: %+v", f)
	}
	// The next one does not take a second thread.
	if _, err := b.Open(context.Background(), locking.Ref{Name: slow}, false); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("open of what hangs: %v", err)
	}
	close(k.release)
	waitFor(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.hanging) == 0
	})
	waitFor(t, func() bool { return b.Figures() == Figures{} })
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.opened) != 0 {
		t.Fatalf("descriptors %v of a late open stay open", k.opened)
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10000 {
		if cond() {
			return
		}
		<-tick.C
	}
	t.Fatal("the condition did not come true in 10 s")
}
