package locktest

import (
	"cmp"
	"slices"
	"sync"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Gifts is a locking.GiftJournal in memory. Make it with NewGifts.
type Gifts struct {
	t Reporter

	mu   sync.Mutex // guards all below
	kept map[uint64]locking.Kept
	last uint64
	fail error
	// Added is called after each Add, with how many are kept then. It may be nil.
	Added func(kept int)
}

var _ locking.GiftJournal = (*Gifts)(nil)

// NewGifts makes one that keeps nothing yet.
func NewGifts(t Reporter) *Gifts { return &Gifts{t: t, kept: map[uint64]locking.Kept{}} }

// Fail makes each Add fail with err from now on, or none if err is nil.
func (g *Gifts) Fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail = err
}

// Kept is what a next process would find, in order of Seq.
func (g *Gifts) Kept() []locking.Kept {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []locking.Kept
	for _, k := range g.kept {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b locking.Kept) int { return cmp.Compare(a.Seq, b.Seq) })
	return list
}

// Load adds what an earlier process left.
func (g *Gifts) Load(list []locking.Kept) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range list {
		g.kept[k.Seq] = k
		g.last = max(g.last, k.Seq)
	}
}

// Add implements locking.GiftJournal.
func (g *Gifts) Add(k locking.Kept) (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return 0, g.fail
	}
	if k.OwnerStart == 0 || k.Stamp == (locking.Stamp{}) {
		g.t.Errorf("kept of nobody, or of whom nothing is known: %+v", k)
	}
	g.last++
	k.Seq = g.last
	g.kept[k.Seq] = k
	if g.Added != nil {
		g.Added(len(g.kept))
	}
	return k.Seq, nil
}

// Forget implements locking.GiftJournal.
func (g *Gifts) Forget(seq uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.kept[seq]; !ok {
		g.t.Errorf("Forget of gift %d, which is not kept", seq)
	}
	delete(g.kept, seq)
	return nil
}
