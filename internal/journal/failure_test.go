package journal

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// failWrites makes every write fail once it has written the first n bytes.
func failWrites(t *testing.T, n int, err error) (restore func()) {
	old := writeAt
	writeAt = func(f *os.File, b []byte, off int64) error {
		if e := old(f, b[:min(n, len(b))], off); e != nil {
			t.Error(e)
		}
		return err
	}
	return func() { writeAt = old }
}

// A write that failed leaves nothing behind, whatever part of it was done.
func TestWriteFails(t *testing.T) {
	for _, part := range []int{0, 1, 10, 20, 150} {
		dir := memoryDir(t)
		j, _ := mustOpen(t, dir)
		want := newModel()
		a, b := entry(1), entry(2)
		a.Seq = mustIntend(t, j, a)
		want.entries[a.Seq] = a

		restore := failWrites(t, part, unix.ENOSPC)
		if _, err := j.Intend(b); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v, want ENOSPC", err)
		}
		if err := j.Grant(a.Seq); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v, want ENOSPC", err)
		}
		restore()
		if part%2 == 0 {
			// The next process finds what is left of it.
			must(t, j.Close())
			var r Recovered
			j, r = mustOpen(t, dir)
			if d := want.diff(r); d != "" || (r.Damage != nil && r.Damage.Unknown) {
				t.Errorf("%s, damage %v", d, r.Damage)
			}
		}
		b.Seq = mustIntend(t, j, b)
		want.entries[b.Seq] = b
		must(t, j.Close())
		_, r := mustOpen(t, dir)
		if d := want.diff(r); d != "" || r.Damage != nil {
			t.Errorf("%s, damage %v", d, r.Damage)
		}
	}
}

// While the torn end cannot be removed, nothing is written after it.
func TestRepairFails(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	seq := mustIntend(t, j, entry(1))
	restore := failWrites(t, 9, unix.EIO)
	if err := j.Grant(seq); !errors.Is(err, unix.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	restore()
	good := j.f
	bad, err := os.Open(journalFile(dir)) // not for writing: it cannot be truncated
	must(t, err)
	defer bad.Close()
	j.f = bad
	for range 2 {
		if _, err := j.Intend(entry(2)); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%v, want EINVAL", err)
		}
	}
	j.f = good
	must(t, j.Grant(seq))
	if s := j.Stats(); s.Failures != 3 || s.LastFailure == nil {
		t.Errorf("%+v", s)
	}
}

// Without room for what an entry may yet need, none is begun; what was begun can end.
func TestNoSpace(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	var seqs []uint64
	for i := range 100 {
		seqs = append(seqs, mustIntend(t, j, entry(i)))
	}
	limit := j.reserved
	oldReserve, oldWrite := fallocate, writeAt
	defer func() { fallocate, writeAt = oldReserve, oldWrite }()
	fallocate = func(fd int, off, n int64) error {
		if off+n > limit {
			return unix.ENOSPC
		}
		return oldReserve(fd, off, n)
	}
	writeAt = func(f *os.File, b []byte, off int64) error {
		if off+int64(len(b)) > limit {
			return unix.ENOSPC
		}
		return oldWrite(f, b, off)
	}
	var err error
	for err == nil {
		var seq uint64
		if seq, err = j.Intend(entry(1)); err == nil {
			seqs = append(seqs, seq)
		}
	}
	if !errors.Is(err, unix.ENOSPC) || len(seqs) < 200 {
		t.Fatalf("%v after %d entries", err, len(seqs))
	}
	if err := j.AddLockspace(strings.Repeat("x", 1000)); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for _, seq := range seqs {
		must(t, errors.Join(j.Grant(seq), j.Releasing(seq), j.Forget(seq)))
	}
}

func TestCompactionFails(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	e := entry(1)
	e.Seq = mustIntend(t, j, e)
	restore := failWrites(t, 100, unix.ENOSPC)
	j.compact()
	restore()
	if s := j.Stats(); s.Compactions != 0 || s.Failures != 1 || !errors.Is(s.LastFailure, unix.ENOSPC) {
		t.Errorf("%+v", s)
	}
	if _, err := os.Stat(dir + "/" + freshName); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v: what was begun is still there", err)
	}
	must(t, j.Grant(e.Seq))
	j.compact()
	if s := j.Stats(); s.Compactions != 1 || s.Failures != 1 {
		t.Errorf("%+v", s)
	}
	must(t, j.Releasing(e.Seq))
}

// A journal that cannot be read back is trusted no more, and keeps what it has.
func TestDistrust(t *testing.T) {
	dir := memoryDir(t)
	j, _ := mustOpen(t, dir)
	off := j.end
	seq := mustIntend(t, j, entry(1))
	if _, err := j.f.WriteAt([]byte{0xff}, off+100); err != nil {
		t.Fatal(err)
	}
	j.compact()
	_, err := j.Intend(entry(2))
	for _, err := range []error{err, j.Grant(seq), j.Forget(seq), j.AddLockspace("/a"), j.Settled()} {
		if !errors.Is(err, ErrDistrusted) {
			t.Errorf("%v, want ErrDistrusted", err)
		}
	}
	must(t, j.Close())
	if _, r := mustOpen(t, dir); r.Damage == nil || !r.Damage.Unknown {
		t.Errorf("damage %v", r.Damage)
	}
}
