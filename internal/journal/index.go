package journal

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// slot is what is kept in memory of a live entry: where its record is, and how
// far the lock has come since.
type slot struct {
	off   int64
	size  uint32
	state locking.EntryState
}

// index is what a journal's records add up to.
type index struct {
	live   map[uint64]slot
	spaces map[string]struct{}
	order  []string // of spaces
	doubt  string   // "" if there is none
	next   uint64   // the seq of the next entry
	last   uint64   // the seq of the last entry seen
	bytes  int64    // what all this would take in a fresh file, without the headers
}

// newIndex is empty, with room for so many entries.
func newIndex(next uint64, room int) *index {
	return &index{live: make(map[uint64]slot, room), spaces: map[string]struct{}{}, next: max(next, 1)}
}

// newUnjudged is that of a journal that is Fresh.
func newUnjudged() *index {
	x := newIndex(1, 0)
	x.setDoubt(unjudged)
	return x
}

func (x *index) add(seq uint64, s slot) {
	x.live[seq] = s
	x.last = seq
	x.next = max(x.next, seq+1)
	x.bytes += int64(s.size)
}

func (x *index) forget(seq uint64, s slot) {
	delete(x.live, seq)
	x.bytes -= int64(s.size)
}

func (x *index) addSpace(path string) {
	if _, ok := x.spaces[path]; ok {
		return
	}
	x.spaces[path] = struct{}{}
	x.order = append(x.order, path)
	x.bytes += int64(minRecord + len(path))
}

func (x *index) setDoubt(text string) {
	if x.doubt != "" {
		x.bytes -= int64(minRecord + len(x.doubt))
	}
	x.doubt = text
	if text != "" {
		x.bytes += int64(minRecord + len(text))
	}
}

// apply takes in a whole record found at off, from any source. An error says why
// it makes no sense; nothing has changed then.
func (x *index) apply(off int64, rec []byte) error {
	k := kind(rec[offKind])
	body := rec[offSeq : len(rec)-sumLen]
	switch k {
	case kindEntry:
		e, err := decodeEntry(rec, false)
		if err != nil {
			return err
		}
		// In a file that was compacted the first entries have seqs below x.next,
		// but all come in order.
		if e.Seq <= x.last || e.Seq == math.MaxUint64 {
			return fmt.Errorf("entry %d comes after entry %d", e.Seq, x.last)
		}
		x.add(e.Seq, slot{off: off, size: uint32(len(rec)), state: e.State})
	case kindGrant, kindReleasing, kindForget:
		if len(body) != 8 {
			return errBody
		}
		seq := binary.LittleEndian.Uint64(body)
		s, ok := x.live[seq]
		if !ok {
			return fmt.Errorf("a record (kind %d) is about entry %d, which does not exist", k, seq)
		}
		switch k {
		case kindGrant:
			s.state = locking.EntryGranted
		case kindReleasing:
			s.state = locking.EntryReleasing
		case kindForget:
			x.forget(seq, s)
			return nil
		}
		x.live[seq] = s
	case kindLockspace:
		if len(body) > MaxName {
			return errBody
		}
		x.addSpace(string(body))
	case kindDoubt:
		if len(body) == 0 || len(body) > MaxName {
			return errBody
		}
		x.setDoubt(string(body))
	case kindSettled:
		if len(body) != 0 {
			return errBody
		}
		x.setDoubt("")
	default:
		return fmt.Errorf("a record has the unknown kind %d: a newer version may have written it", k)
	}
	return nil
}

// seqs are those of the live entries, in order.
func (x *index) seqs() []uint64 {
	s := make([]uint64, 0, len(x.live))
	for seq := range x.live {
		s = append(s, seq)
	}
	slices.Sort(s)
	return s
}

// liveEntry is a slot and its seq.
type liveEntry struct {
	seq uint64
	slot
}

// entries returns the live entries in no order, into s.
func (x *index) entries(s []liveEntry) []liveEntry {
	for seq, v := range x.live {
		s = append(s, liveEntry{seq, v})
	}
	return s
}

func inOrder(s []liveEntry) {
	slices.SortFunc(s, func(a, b liveEntry) int { return cmp.Compare(a.seq, b.seq) })
}
