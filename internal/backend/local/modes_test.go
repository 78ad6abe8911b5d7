package local

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// secretive is a kernel that does not say how a file is locked, as with FUSE, and on
// which nothing that another has may be given back, not even for a moment.
type secretive struct {
	kernel
	t     *testing.T
	knows bool
	may   bool // unlock
}

func (k *secretive) lockMode(fd int) (locking.Mode, bool) {
	if k.knows {
		return k.kernel.lockMode(fd)
	}
	return 0, false
}

func (k *secretive) unlock(fd int) error {
	if !k.may {
		k.t.Error("a lock was given back")
	}
	return k.kernel.unlock(fd)
}

// inMode is how the file is locked, as another program sees it.
func inMode(t *testing.T, path string) (shared, locked bool) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := flock(false)
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l); err != nil {
		t.Fatal(err)
	}
	return l.Type == unix.F_RDLCK, l.Type != unix.F_UNLCK
}

// A damaged journal may lack the end of one lock and the beginning of the next, so that
// it has another mode than the lock, or both. The lock stays what it is, without a gap.
func TestTheModeInDoubt(t *testing.T) {
	const ex, sh = locking.Exclusive, locking.Shared
	type want struct {
		at     int // which record has it; -1: none
		either bool
		mode   locking.Mode // also of the file
	}
	for _, tc := range []struct {
		name   string
		lock   locking.Mode
		sharer bool // another program has it too
		told   []locking.Mode
		known  want // where the kernel says how the file is locked
		hidden want
	}{
		{"a stale shared one comes first", ex, false, []locking.Mode{sh, ex}, want{1, false, ex}, want{0, true, ex}},
		{"a stale shared one comes last", ex, false, []locking.Mode{ex, sh}, want{0, false, ex}, want{0, true, ex}},
		{"a stale exclusive one", sh, false, []locking.Mode{ex, sh}, want{1, false, sh}, want{0, true, ex}},
		{"a stale exclusive one, others share it", sh, true, []locking.Mode{ex, sh}, want{1, false, sh}, want{0, true, sh}},
		{"its shared use comes first, others share it", sh, true, []locking.Mode{sh, ex}, want{0, false, sh}, want{0, true, sh}},
		{"the exclusive one has no record", ex, false, []locking.Mode{sh}, want{-1, false, ex}, want{0, true, ex}},
		{"the shared one has no record", sh, false, []locking.Mode{ex}, want{-1, false, sh}, want{0, true, ex}},
		{"the shared one has no record, others share it", sh, true, []locking.Mode{ex}, want{-1, false, sh}, want{-1, false, sh}},
	} {
		for _, knows := range []bool{true, false} {
			name, w := tc.name, tc.known
			if !knows {
				name, w = tc.name+", and the kernel does not say", tc.hidden
			}
			t.Run(name, func(t *testing.T) {
				ctx := context.Background()
				s := &shelf{}
				path := disk(t)
				_, held := lockFile(t, kept(s), path, tc.lock)
				if tc.sharer {
					other, _ := lockFile(t, New(), path, sh)
					defer other.Unlock(ctx)
				}
				s.die()
				b := kept(s)
				b.Distrust()
				k := &secretive{t: t, knows: knows}
				b.sys = k
				var list []locking.Held
				for _, mode := range tc.told {
					held.Mode = mode
					list = append(list, held)
				}
				var mine locking.Handle
				for i, r := range b.Restore(ctx, list) {
					switch {
					case i == w.at && (r.Err != nil || r.Either != w.either || r.Either && r.Mode != w.mode):
						t.Errorf("record %d: %+v", i, r)
					case i == w.at:
						mine = r.Handle
					case !errors.Is(r.Err, locking.ErrNotHeld) || r.Handle != nil:
						t.Errorf("record %d: %+v", i, r)
					}
				}
				if shared, locked := inMode(t, path); !locked || shared != (w.mode == sh) {
					t.Errorf("the file is locked %v, shared %v", locked, shared)
				}
				// The keeper has it as well, and what nobody has is shown and can be given back.
				left := 0
				if w.at < 0 {
					left = 1
				}
				if n := len(b.Unexplained()); n != left || len(s.kept) != 1 {
					t.Errorf("%d are not explained, and the keeper has %d", n, len(s.kept))
				}
				k.may = true
				if n, err := b.DropOthers(ctx); n != left || err != nil {
					t.Errorf("DropOthers: %d, %v", n, err)
				}
				if _, locked := inMode(t, path); locked != (mine != nil || tc.sharer) {
					t.Errorf("afterwards it is locked: %v", locked)
				}
				if mine != nil {
					if err := mine.Unlock(ctx); err != nil {
						t.Error(err)
					}
				}
				if len(s.kept) != 0 || !tc.sharer && !free(t, path) {
					t.Errorf("at the end the keeper has %d", len(s.kept))
				}
			})
		}
	}
}

// What was taken back for records of both modes stays so for the next daemon, for which
// the doubt is over: the journal has both.
func TestBothModesWithoutDoubt(t *testing.T) {
	for _, same := range []bool{false, true} {
		s := &shelf{}
		path := disk(t)
		_, held := lockFile(t, kept(s), path, locking.Exclusive)
		s.die()
		b := kept(s)
		b.same, b.sys = same, &secretive{t: t}
		other := held
		other.Mode = locking.Shared
		r := b.Restore(t.Context(), []locking.Held{other, held})
		if r[0].Err != nil || !r[0].Either || r[0].Mode != locking.Exclusive || !errors.Is(r[1].Err, locking.ErrNotHeld) {
			t.Errorf("same %v: %+v", same, r)
		}
		if shared, locked := inMode(t, path); !locked || shared {
			t.Errorf("same %v: the file is locked %v, shared %v", same, locked, shared)
		}
		b.sys.(*secretive).may = true
		if r[0].Handle != nil {
			if err := r[0].Handle.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}
