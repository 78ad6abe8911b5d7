package journal

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/internal/locking"
)

var genName = rapid.OneOf(
	rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 40), func(b []byte) string { return string(b) }),
	rapid.Map(rapid.IntRange(0, MaxName), func(n int) string { return strings.Repeat("\xff", n) }),
	rapid.Just(""), rapid.Just(magic), rapid.Just("/var/lib/libvirt/images/a.qcow2"),
)

var genEntry = rapid.Custom(func(t *rapid.T) locking.Entry {
	return locking.Entry{
		State:      locking.EntryState(rapid.IntRange(0, 2).Draw(t, "state")),
		ID:         genName.Draw(t, "id"),
		Ref:        locking.Ref{Lockspace: genName.Draw(t, "space"), Name: genName.Draw(t, "name")},
		Mode:       locking.Mode(rapid.IntRange(0, 1).Draw(t, "mode")),
		Autocreate: rapid.Bool().Draw(t, "autocreate"),
		Owner: locking.Owner{
			PID: rapid.Int32().Draw(t, "pid"), ID: rapid.Uint32().Draw(t, "owner"), Name: genName.Draw(t, "ownername"),
			UUID: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid")),
		},
		OwnerStart: rapid.Uint64().Draw(t, "start"),
		Since:      rapid.SampledFrom([]time.Time{{}, time.Unix(1700000000, 123456789), time.Now()}).Draw(t, "since"),
		Note:       strings.Repeat("n", rapid.OneOf(rapid.IntRange(0, 40), rapid.Just(MaxNote)).Draw(t, "note")),
	}
})

// history is a journal, its model, and what the model was at each length of the file.
type history struct {
	dir    string
	j      *Journal
	model  model
	ever   map[uint64]locking.Entry // every entry there was, in whatever state
	marks  []point                  // since the file was begun
	header int64                    // where the file began
}

type point struct {
	end   int64
	model model
}

// run makes up to n random calls, some of which reopen or compact the journal.
func (h *history) run(t *rapid.T, n int) {
	for range rapid.IntRange(0, n).Draw(t, "calls") {
		seqs := make([]uint64, 0, len(h.model.entries))
		for s := range h.model.entries {
			seqs = append(seqs, s)
		}
		slices.Sort(seqs)
		op := rapid.SampledFrom([]string{"intend", "intend", "grant", "releasing", "forget", "space", "unknown", "compact", "reopen"}).Draw(t, "op")
		if len(seqs) == 0 && (op == "grant" || op == "releasing" || op == "forget") {
			op = "intend"
		}
		var err error
		switch op {
		case "intend":
			e := genEntry.Draw(t, "entry")
			e.Seq, err = h.j.Intend(e)
			if _, used := h.ever[e.Seq]; used {
				t.Fatalf("seq %d is used again", e.Seq)
			}
			h.model.entries[e.Seq], h.ever[e.Seq] = e, e
		case "grant", "releasing":
			seq := rapid.SampledFrom(seqs).Draw(t, "seq")
			e := h.model.entries[seq]
			if e.State = locking.EntryGranted; op == "grant" {
				err = h.j.Grant(seq)
			} else {
				e.State = locking.EntryReleasing
				err = h.j.Releasing(seq)
			}
			h.model.entries[seq] = e
		case "forget":
			seq := rapid.SampledFrom(seqs).Draw(t, "seq")
			err = h.j.Forget(seq)
			delete(h.model.entries, seq)
		case "space":
			path := genName.Draw(t, "path")
			err = h.j.AddLockspace(path)
			if !slices.Contains(h.model.spaces, path) {
				h.model.spaces = append(h.model.spaces, path)
			}
		case "unknown":
			seq := h.j.idx.next + uint64(rapid.IntRange(0, 3).Draw(t, "seq"))
			if h.j.Grant(seq) == nil || h.j.Releasing(seq) == nil || h.j.Forget(seq) == nil {
				t.Fatal("an entry that does not exist was accepted")
			}
		case "compact":
			err = h.j.compactOnce()
			h.marks, h.header = nil, h.j.end
		case "reopen":
			h.reopen(t)
		}
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		h.marks = append(h.marks, point{h.j.end, h.model.clone()})
	}
}

func (h *history) reopen(t *rapid.T) {
	if h.j != nil {
		if err := h.j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j, r, err := Open(h.dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	h.j = j
	if r.Damage != nil {
		t.Fatalf("damage: %v", r.Damage)
	}
	if d := h.model.diff(r); d != "" {
		t.Fatal(d)
	}
}

func property(t *testing.T, f func(t *rapid.T, h *history)) {
	base := memoryDir(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := fmt.Sprintf("%s/%d", base, n)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		h := &history{dir: dir, model: newModel(), ever: map[uint64]locking.Entry{}}
		h.reopen(t)
		defer func() { _ = h.j.Close() }()
		h.header = h.j.end
		h.marks = []point{{h.j.end, h.model.clone()}}
		f(t, h)
	})
}

// A journal that was not damaged holds what the model does.
func TestModel(t *testing.T) {
	property(t, func(t *rapid.T, h *history) {
		h.run(t, 60)
		h.reopen(t)
	})
}

// A kill during a write leaves the file cut off at any byte of what was
// appended: what was acknowledged before is there, and nothing else.
func TestCutOff(t *testing.T) {
	property(t, func(t *rapid.T, h *history) {
		h.run(t, 30)
		end := h.j.end
		h.j.Close()
		at := rapid.Int64Range(0, end).Draw(t, "cut")
		if rapid.Bool().Draw(t, "late") {
			at = max(end-at%200, 0)
		}
		if err := os.Truncate(journalFile(h.dir), at); err != nil {
			t.Fatal(err)
		}
		j, r, err := Open(h.dir, boot)
		if err != nil {
			t.Fatal(err)
		}
		h.j = j
		if at < h.header {
			// No kill does this.
			if r.Damage == nil || !r.Damage.Unknown {
				t.Fatalf("damage %v", r.Damage)
			}
			return
		}
		want, wantEnd := newModel(), h.header
		for _, p := range h.marks {
			if p.end <= at {
				want, wantEnd = p.model, p.end
			}
		}
		tail := int64(0)
		if r.Damage != nil {
			tail = r.Damage.Tail
			if r.Damage.Unknown {
				t.Fatalf("damage %v", r.Damage)
			}
		}
		if tail != at-wantEnd {
			t.Fatalf("a tail of %d bytes, want %d", tail, at-wantEnd)
		}
		if d := want.diff(r); d != "" {
			t.Fatal(d)
		}
		// And work goes on from there.
		h.model, h.ever = want, map[uint64]locking.Entry{}
		h.run(t, 5)
		h.reopen(t)
	})
}

// Bits that are flipped, and ranges that are overwritten, are noticed.
func TestDamaged(t *testing.T) {
	property(t, func(t *rapid.T, h *history) {
		h.run(t, 30)
		h.j.Close()
		b, err := os.ReadFile(journalFile(h.dir))
		if err != nil {
			t.Fatal(err)
		}
		at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		n := rapid.SampledFrom([]int{1, 1, 1, 4, 64, 512}).Draw(t, "length")
		n = min(n, len(b)-at)
		xor := byte(rapid.IntRange(1, 255).Draw(t, "xor"))
		for i := range n {
			b[at+i] ^= xor
		}
		if err := os.WriteFile(journalFile(h.dir), b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, r, err := Open(h.dir, boot)
		if err != nil {
			t.Fatal(err)
		}
		h.j = j
		switch d := r.Damage; {
		case d == nil || d.Aside == "":
			t.Fatalf("unnoticed: %v", d)
		case !d.Unknown:
			// One copy of the header.
			if at+n > headersLen {
				t.Fatalf("underrated: %v", d)
			}
			if d := h.model.diff(r); d != "" {
				t.Fatal(d)
			}
		}
		if aside, err := os.ReadFile(r.Damage.Aside); err != nil || !slices.Equal(aside, b) {
			t.Fatalf("what was set aside is something else (%v)", err)
		}
		for _, e := range r.Entries {
			was, ok := h.ever[e.Seq]
			was.State = e.State
			if !ok || !same(e, was) {
				t.Fatalf("invented: %+v", e)
			}
		}
		if _, used := h.ever[j.idx.next]; used && len(r.Entries) > 0 {
			t.Fatalf("seq %d will be used again", j.idx.next)
		}
		// The next start knows it as well, until it is settled.
		unknown := r.Damage.Unknown
		for range 2 {
			h.j.Close()
			if h.j, r, err = Open(h.dir, boot); err != nil {
				t.Fatal(err)
			}
			if unknown != (r.Damage != nil && r.Damage.Unknown && r.Damage.Earlier != "") {
				t.Fatalf("forgotten: %v", r.Damage)
			}
		}
		if err := h.j.Settled(); err != nil {
			t.Fatal(err)
		}
		h.j.Close()
		if h.j, r, err = Open(h.dir, boot); err != nil || r.Damage != nil {
			t.Fatalf("%v, damage %v after it was settled", err, r.Damage)
		}
	})
}
