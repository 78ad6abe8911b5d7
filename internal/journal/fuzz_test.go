package journal

import (
	"os"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// FuzzOpen opens arbitrary bytes. Whatever they are, Open returns, does not read
// more than there is, and the next Open finds the same, whole.
func FuzzOpen(f *testing.F) {
	dir := memoryDir(f)
	j, _ := mustOpen(f, dir)
	seq := mustIntend(f, j, entry(1))
	must(f, j.Grant(seq))
	must(f, j.AddLockspace("/a"))
	mustIntend(f, j, entry(2))
	must(f, j.Forget(seq))
	m := j.mark
	must(f, j.Close())
	good := readFile(f, journalFile(dir))
	f.Add(good)
	f.Add([]byte{})
	f.Add(good[:len(good)-7])
	f.Add(good[:headersLen])
	f.Add(good[:copyLen])
	bad := append([]byte(nil), good...)
	bad[headersLen+30] ^= 4
	f.Add(bad)
	f.Add(append(bad, make([]byte, 4096)...))
	nonsense := appendNote(good[:len(good):len(good)], m, int64(len(good)), kindGrant, 99)
	nonsense = appendText(nonsense, m, int64(len(nonsense)), kindDoubt, "why")
	nonsense = appendEntry(nonsense, m, int64(len(nonsense)), &locking.Entry{Seq: 1 << 63})
	f.Add(appendText(nonsense, m, int64(len(nonsense)), 99, "later"))

	f.Fuzz(func(t *testing.T, b []byte) {
		dir := memoryDir(t)
		must(t, os.WriteFile(journalFile(dir), b, 0o600))
		var j *Journal
		var r Recovered
		var err error
		testenv.Bounded(t, 100, len(b), func() { j, r, err = Open(dir, boot) })
		must(t, err)
		must(t, j.Close())
		again, r2, err := Open(dir, boot)
		must(t, err)
		defer again.Close()
		want := newModel()
		want.spaces = r.Lockspaces
		for _, e := range r.Entries {
			want.entries[e.Seq] = e
		}
		if d := want.diff(r2); d != "" {
			t.Error(d)
		}
		if unknown := r.Damage != nil && r.Damage.Unknown; unknown != (r2.Damage != nil && r2.Damage.Unknown) || (r2.Damage != nil && r2.Damage.Aside != "") {
			t.Errorf("damage %v, then %v", r.Damage, r2.Damage)
		}
	})
}

// FuzzRecord gives the body of a record of each kind arbitrary content with a
// right checksum, which no flipped bit does but a newer version may.
func FuzzRecord(f *testing.F) {
	e := entry(1)
	e.Seq = 1
	rec := appendEntry(nil, mark{}, 0, &e)
	f.Add(byte(kindEntry), rec[offSeq:len(rec)-sumLen])
	f.Add(byte(kindEntry), []byte{})
	f.Add(byte(kindGrant), []byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Add(byte(kindLockspace), []byte("/a"))
	f.Add(byte(kindDoubt), []byte("why"))
	f.Add(byte(0), []byte("what"))
	f.Fuzz(func(t *testing.T, k byte, body []byte) {
		idx := newIndex(1, 0)
		rec := appendText(nil, mark{}, 0, kind(k), string(body))
		var err error
		testenv.Bounded(t, 100, len(rec), func() { err = idx.apply(0, rec) })
		if err != nil {
			return
		}
		if kind(k) == kindEntry {
			e, err := decodeEntry(rec, true)
			must(t, err)
			if again := appendEntry(nil, mark{}, 0, &e); len(again) != len(rec) {
				t.Errorf("%d bytes are read and %d written", len(rec), len(again))
			}
		}
	})
}
