package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// shelf is a keeper in this process that outlives Backends.
type shelf struct {
	mu   sync.Mutex // guards all below
	kept []*item    // oldest first
	full error      // what Put returns
}

type item struct {
	key  string
	user int // the descriptor of the Backend, -1 once that has ended
	fd   int
}

func (s *shelf) Put(_ context.Context, key string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full != nil {
		return s.full
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.kept = append(s.kept, &item{key: key, user: fd, fd: dup})
	return nil
}

func (s *shelf) Drop(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range s.kept {
		if k.user == fd {
			unix.Close(k.fd)
			s.kept = append(s.kept[:i:i], s.kept[i+1:]...)
			return
		}
	}
}

func (s *shelf) Taken() iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range s.kept {
			dup, err := unix.FcntlInt(uintptr(k.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				panic(err)
			}
			k.user = dup
			if !yield(k.key, dup) {
				return
			}
		}
	}
}

// die closes what the Backend has open, as its death does.
func (s *shelf) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		unix.Close(k.user)
		k.user = -1
	}
}

func kept(k keeper) *Backend { return NewKept(k, slog.New(slog.DiscardHandler)) }

// free says whether another program could lock the file.
func free(t *testing.T, path string) bool {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := theirs()
	err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l)
	if err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return err == nil
}

func lockFile(t *testing.T, b *Backend, path string, mode locking.Mode) (locking.Handle, locking.Held) {
	t.Helper()
	ref := locking.Ref{Name: path}
	h := open(t, b, ref, false)
	if err := h.Lock(context.Background(), mode); err != nil {
		t.Fatal(err)
	}
	return h, locking.Held{ID: h.ID(), Ref: ref, Mode: mode}
}

func TestUnlockFreesAtOnceAlthoughTheKeeperHasIt(t *testing.T) {
	s := &shelf{}
	b := kept(s)
	path := disk(t)
	h, _ := lockFile(t, b, path, locking.Exclusive)
	dup, err := unix.Dup(s.kept[0].fd) // as a keeper that is slow to close
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	if free(t, path) {
		t.Fatal("it is not locked")
	}
	if err := h.Unlock(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !free(t, path) || len(s.kept) != 0 {
		t.Errorf("after Unlock: free %v, kept %d", free(t, path), len(s.kept))
	}
}

func TestNoLockWithoutKeeper(t *testing.T) {
	s := &shelf{full: errors.New("full")}
	path := disk(t)
	h := open(t, kept(s), locking.Ref{Name: path}, false)
	defer h.Close()
	if err := h.Lock(context.Background(), locking.Exclusive); !errors.Is(err, s.full) {
		t.Fatalf("lock: %v", err)
	}
	if !free(t, path) {
		t.Error("a lock that was refused is held")
	}
}

func TestRestore(t *testing.T) {
	ctx := context.Background()
	s := &shelf{}
	b := kept(s)
	var held []locking.Held
	var paths []string
	for range 5 {
		path := disk(t)
		_, l := lockFile(t, b, path, locking.Exclusive)
		paths, held = append(paths, path), append(held, l)
	}
	s.die()
	b = kept(s)
	// The name is gone, the lock is not.
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	results := b.Restore(ctx, held[:3])
	for i, r := range results {
		if r.Err != nil || r.Handle.ID() != held[i].ID {
			t.Fatalf("lock %d: %v, %v", i, r.Handle, r.Err)
		}
	}
	if again := b.Restore(ctx, held[:1]); !errors.Is(again[0].Err, locking.ErrNotHeld) || again[0].Handle != nil {
		t.Errorf("a second time: %+v", again)
	}
	if n, err := b.DropOthers(ctx); n != 2 || err != nil {
		t.Errorf("DropOthers: %d, %v", n, err)
	}
	if n, err := b.DropOthers(ctx); n != 0 || err != nil {
		t.Errorf("DropOthers again: %d, %v", n, err)
	}
	for i, path := range paths[1:] {
		if want := i >= 2; free(t, path) != want {
			t.Errorf("disk %d is free: %v", i+1, !want)
		}
	}
	for _, r := range results {
		if err := r.Handle.Unlock(ctx); err != nil {
			t.Error(err)
		}
	}
	if len(s.kept) != 0 || !free(t, paths[1]) {
		t.Errorf("%d kept after all was given up", len(s.kept))
	}
}

// The last process had unlocked the first of two descriptors of one file, and was
// killed before it could take it back from the keeper.
func TestRestoreFindsTheOneThatIsLocked(t *testing.T) {
	ctx := context.Background()
	s := &shelf{}
	b := kept(s)
	path := disk(t)
	first, _ := lockFile(t, b, path, locking.Exclusive)
	if err := b.sys.unlock(first.(*handle).fd); err != nil {
		t.Fatal(err)
	}
	_, held := lockFile(t, b, path, locking.Exclusive)
	s.die()
	b = kept(s)
	r := b.Restore(ctx, []locking.Held{held})
	if r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	if _, err := b.DropOthers(ctx); err != nil {
		t.Fatal(err)
	}
	if free(t, path) {
		t.Error("the lock is lost")
	}
	if err := r[0].Handle.Unlock(ctx); err != nil || !free(t, path) {
		t.Errorf("unlock: %v", err)
	}
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.kept) == 0
	})
}

func TestRestoreWithoutDescriptors(t *testing.T) {
	ctx := context.Background()
	path, taken, replaced := disk(t), disk(t), disk(t)
	var held []locking.Held
	for _, p := range []string{path, taken, replaced} {
		h, l := lockFile(t, New(), p, locking.Exclusive)
		if err := h.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
	}
	other, _ := lockFile(t, New(), taken, locking.Shared)
	if err := os.Rename(disk(t), replaced); err != nil {
		t.Fatal(err)
	}
	s := &shelf{}
	b := kept(s)
	r := b.Restore(ctx, held)
	if r[0].Err != nil || free(t, path) || len(s.kept) != 1 {
		t.Fatalf("a file that nobody has: %v, %d kept", r[0].Err, len(s.kept))
	}
	for i, why := range map[int]error{1: locking.ErrBusy, 2: locking.ErrStale} {
		if err := r[i].Err; !errors.Is(err, locking.ErrNotHeld) || !errors.Is(err, why) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if err := errors.Join(other.Unlock(ctx), r[0].Handle.Unlock(ctx)); err != nil {
		t.Error(err)
	}
}

// A server that does not answer leaves doubt, and in doubt a lock stays.
func TestDoubtKeepsTheLock(t *testing.T) {
	s := &shelf{}
	path := disk(t)
	_, held := lockFile(t, kept(s), path, locking.Exclusive)
	s.die()
	k := &slowLock{entered: make(chan struct{}, 1), release: make(chan struct{})}
	b := kept(s)
	b.sys = k
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-k.entered
		cancel()
	}()
	if r := b.Restore(ctx, []locking.Held{held}); !errors.Is(r[0].Err, context.Canceled) {
		t.Fatalf("restore: %v", r[0].Err)
	}
	if n := b.Unsettled(); n != 1 {
		t.Errorf("%d calls are unsettled", n)
	}
	if n, err := b.DropOthers(context.Background()); n != 0 || err != nil {
		t.Errorf("DropOthers: %d, %v", n, err)
	}
	close(k.release)
	waitFor(t, func() bool { return b.Unsettled() == 0 })
	if free(t, path) {
		t.Error("the lock is lost")
	}
	r := b.Restore(context.Background(), []locking.Held{held})
	if r[0].Err != nil {
		t.Fatalf("restore once the server answers: %v", r[0].Err)
	}
	if err := r[0].Handle.Unlock(context.Background()); err != nil || !free(t, path) || len(s.kept) != 0 {
		t.Errorf("unlock: %v", err)
	}
}

// slowLock is a kernel in which locking waits.
type slowLock struct {
	kernel
	entered, release chan struct{}
}

func (k *slowLock) lock(fd int, shared bool) error {
	select {
	case k.entered <- struct{}{}:
	default:
	}
	<-k.release
	return k.kernel.lock(fd, shared)
}

// A lock that is granted after its caller went away is undone, in the keeper too.
func TestLateGrantIsUndone(t *testing.T) {
	s := &shelf{}
	path := disk(t)
	b := kept(s)
	k := &slowLock{entered: make(chan struct{}, 1), release: make(chan struct{})}
	b.sys = k
	h := open(t, b, locking.Ref{Name: path}, false)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-k.entered
		cancel()
	}()
	if err := h.Lock(ctx, locking.Exclusive); !errors.Is(err, context.Canceled) {
		t.Fatalf("lock: %v", err)
	}
	h.Close()
	close(k.release)
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.kept) == 0 && b.Unsettled() == 0
	})
	if !free(t, path) {
		t.Error("it is still locked")
	}
}

// The file of an auto-created lock stays as long as somebody shares it: another
// one would be locked by whoever comes next.
func TestSharedFileIsNotRemoved(t *testing.T) {
	ctx := context.Background()
	ref := locking.Ref{Lockspace: t.TempDir(), Name: "lock"}
	var handles []locking.Handle
	for range 2 {
		h := open(t, New(), ref, true)
		if err := h.Lock(ctx, locking.Shared); err != nil {
			t.Fatal(err)
		}
		handles = append(handles, h)
	}
	for i, h := range handles {
		if err := h.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(filepath.Join(ref.Lockspace, ref.Name))
		if gone := errors.Is(err, os.ErrNotExist); gone != (i == 1) {
			t.Errorf("after %d of 2 were unlocked: %v", i+1, err)
		}
	}
}

// BenchmarkRestart is what the restart of a daemon with 10,000 locks takes here:
// connecting to the holder, receiving all descriptors, locking each once more.
func BenchmarkRestart(b *testing.B) {
	const n = 9_000 // of RLIMIT_NOFILE, often 20,000, this process needs two each
	dir, err := os.MkdirTemp("", "local")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	connect := func() (*holder.Client, *Backend) {
		c, err := holder.Connect(ctx, holder.Options{Socket: filepath.Join(dir, "s")})
		if err != nil {
			b.Fatal(err)
		}
		return c, kept(c)
	}
	c, backend := connect()
	held := make([]locking.Held, n)
	handles := make([]locking.Handle, n)
	for i := range n {
		ref := locking.Ref{Name: filepath.Join(dir, fmt.Sprint("disk", i))}
		h, err := backend.Open(ctx, ref, true)
		if err == nil {
			err = h.Lock(ctx, locking.Exclusive)
		}
		if err != nil {
			b.Fatal(err)
		}
		handles[i], held[i] = h, locking.Held{ID: h.ID(), Ref: ref}
	}
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		c.Close()
		for _, h := range handles {
			unix.Close(h.(*handle).fd)
		}
		b.StartTimer()
		begin := time.Now()
		c, backend = connect()
		connected := time.Since(begin)
		for i, r := range backend.Restore(ctx, held) {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
			handles[i] = r.Handle
		}
		b.ReportMetric(float64(connected)/1e6, "connect-ms")
	}
	b.StopTimer()
	for _, h := range handles {
		if err := h.Unlock(ctx); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}

// TestTakenAnewIsReported: a lock that a client counts on and that the keeper did not
// have may have been somebody else's meanwhile, and an operator has to know.
func TestTakenAnewIsReported(t *testing.T) {
	for _, told := range []bool{true, false} {
		s := &shelf{}
		b := kept(s)
		_, other := lockFile(t, b, disk(t), locking.Exclusive) // so that the keeper has something
		path := disk(t)
		h := open(t, New(), locking.Ref{Name: path}, false)
		held := locking.Held{ID: h.ID(), Ref: locking.Ref{Name: path}, Mode: locking.Exclusive, Told: told}
		h.Close()
		s.die()
		var text bytes.Buffer
		b = NewKept(s, slog.New(slog.NewTextHandler(&text, nil)))
		for _, r := range b.Restore(t.Context(), []locking.Held{other, held}) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		if free(t, path) {
			t.Error("it was not taken anew")
		}
		if got := strings.Contains(text.String(), "event=lock-taken-anew") && strings.Contains(text.String(), path); got != told || strings.Count(text.String(), "\n") > 1 {
			t.Errorf("told %v, and the log says %q", told, text.String())
		}
	}
}
