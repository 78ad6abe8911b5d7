package cluster

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

func sample() record {
	return record{
		node:  0x80000001,
		owner: locking.Owner{PID: -799, UUID: [16]byte{1, 2, 3, 15: 16}},
		since: time.Unix(1795413755, 0),
	}
}

func TestRecord(t *testing.T) {
	r := sample()
	b := r.encode()
	// It is what other hosts read, of other versions too.
	const want = "a1 80 00 00 01 ff ff fc e1 6b 03 d6 fb 01 02 03 00 00 00 00 00 00 00 00 00 00 00 00 10 ad b2 18"
	if got := fmt.Sprintf("% x", b); got != want {
		t.Errorf("the layout has changed:\n got %s\nwant %s", got, want)
	}
	got, err := decodeRecord(b)
	if err != nil || got != r {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, tc := range []struct{ since, want time.Time }{
		{time.Unix(-5, 0), time.Unix(0, 0)},
		{time.Time{}, time.Unix(0, 0)},
		{time.Unix(1<<40, 0), time.Unix(math.MaxUint32, 0)},
		{time.Unix(7, 999_999_999), time.Unix(7, 0)},
	} {
		if got, err := decodeRecord(record{since: tc.since}.encode()); err != nil || !got.since.Equal(tc.want) {
			t.Errorf("%v became %v, %v", tc.since, got.since, err)
		}
	}
}

func TestNoRecord(t *testing.T) {
	if _, err := decodeRecord(dlm.LVB{}); !errors.Is(err, errNoRecord) {
		t.Errorf("of zeroes: %v", err)
	}
	good := sample().encode()
	for bit := range 8 * dlm.LVBLen {
		b := good
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeRecord(b); !errors.Is(err, errRecordDamaged) {
			t.Errorf("with bit %d turned: %v", bit, err)
		}
	}
	other := good
	other[0]++
	sum := checksum(other[:recordSum])
	copy(other[recordSum:], sum[:])
	if _, err := decodeRecord(other); !errors.Is(err, errRecordVersion) {
		t.Errorf("of the next version: %v", err)
	}
}

// FuzzRecord: whatever is in the block, it is a record that would be written like
// that, or none.
func FuzzRecord(f *testing.F) {
	good := sample().encode()
	f.Add(good[:])
	f.Add(make([]byte, dlm.LVBLen))
	f.Add([]byte("0123456789abcdef0123456789abcdef"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b dlm.LVB
		copy(b[:], in)
		r, err := decodeRecord(b)
		if err != nil {
			if r != (record{}) {
				t.Errorf("an error and a record: %+v", r)
			}
			// The checksum put right, so that the rest is reached.
			sum := checksum(b[:recordSum])
			copy(b[recordSum:], sum[:])
			if r, err = decodeRecord(b); err != nil {
				return
			}
		}
		if r.encode() != b {
			t.Errorf("%x is read as %+v, which is written as %x", b, r, r.encode())
		}
		if text := r.holder().String(); len(text) > 200 || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' }) {
			t.Errorf("shown as %q", text)
		}
	})
}

func TestCombine(t *testing.T) {
	holder := func(name string, node uint32, mode locking.Mode, since int64) locking.RemoteHolder {
		return locking.RemoteHolder{Node: node, Holder: locking.Holder{Owner: locking.Owner{Name: name}, Mode: mode, Since: time.Unix(since, 0)}}
	}
	const ex, sh = locking.Exclusive, locking.Shared
	type list = []locking.RemoteHolder
	hint := holder("", 2, ex, 5)
	web := holder("web", 2, ex, 5)
	for _, tc := range []struct {
		name     string
		mode     locking.Mode
		hint     *locking.RemoteHolder
		peers    list
		answered []uint32
		want     list
	}{
		{"nothing is known", ex, nil, nil, nil, list{}},
		{"no peer answers", ex, &hint, nil, nil, list{hint}},
		{"other peers answer", ex, &hint, nil, []uint32{1, 3}, list{hint}},
		{"its own node says better", ex, &hint, list{web}, []uint32{1, 2, 3}, list{web}},
		{"its own node knows nothing of it", ex, &hint, nil, []uint32{2}, list{}},
		{"somebody else has it", ex, &hint, list{holder("new", 3, ex, 6)}, []uint32{3}, list{holder("new", 3, ex, 6)}},
		{"others share it", ex, &hint, list{holder("b", 3, sh, 7), holder("a", 1, sh, 6)}, []uint32{1, 3},
			list{holder("a", 1, sh, 6), holder("b", 3, sh, 7)}},
		{"a shared one is not in the way", sh, nil, list{holder("a", 1, sh, 6), web}, []uint32{1, 2}, list{web}},
		{"only shared ones, who are not in the way", sh, nil, list{holder("a", 1, sh, 6)}, []uint32{1}, list{}},
	} {
		if got := combine(tc.mode, tc.hint, tc.peers, tc.answered); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
