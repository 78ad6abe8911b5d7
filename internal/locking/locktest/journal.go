package locktest

import (
	"cmp"
	"slices"
	"sync"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Journal is a locking.Journal in memory. Make it with NewJournal.
type Journal struct {
	t Reporter

	mu      sync.Mutex // guards all below
	entries map[uint64]locking.Entry
	spaces  []string
	last    uint64
	fail    map[string]error
}

var _ locking.Journal = (*Journal)(nil)

// NewJournal makes a Journal with nothing in it.
func NewJournal(t Reporter) *Journal {
	return &Journal{t: t, entries: map[uint64]locking.Entry{}, fail: map[string]error{}}
}

// Fail makes the next call of a method ("Intend", "Grant", ...) fail with err, or
// no more if err is nil.
func (j *Journal) Fail(method string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail[method] = err
}

// Entries is what a next process would find, in order of Seq.
func (j *Journal) Entries() []locking.Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var list []locking.Entry
	for _, e := range j.entries {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b locking.Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	return list
}

// Lockspaces is what was added, in order.
func (j *Journal) Lockspaces() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.spaces)
}

// Load adds entries that an earlier process left.
func (j *Journal) Load(entries []locking.Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range entries {
		j.entries[e.Seq] = e
		j.last = max(j.last, e.Seq)
	}
}

func (j *Journal) lockedFailure(method string) error {
	err := j.fail[method]
	j.fail[method] = nil
	return err
}

// Intend implements locking.Journal.
func (j *Journal) Intend(e locking.Entry) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.lockedFailure("Intend"); err != nil {
		return 0, err
	}
	j.last++
	e.Seq = j.last
	j.entries[e.Seq] = e
	return e.Seq, nil
}

// Grant implements locking.Journal.
func (j *Journal) Grant(seq uint64) error { return j.state("Grant", seq, locking.EntryGranted) }

// Releasing implements locking.Journal.
func (j *Journal) Releasing(seq uint64) error {
	return j.state("Releasing", seq, locking.EntryReleasing)
}

func (j *Journal) state(method string, seq uint64, s locking.EntryState) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.entries[seq]
	if !ok {
		j.t.Errorf("%s of entry %d, which does not exist", method, seq)
	}
	if err := j.lockedFailure(method); err != nil {
		return err
	}
	e.State = s
	j.entries[seq] = e
	return nil
}

// Forget implements locking.Journal.
func (j *Journal) Forget(seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.entries[seq]; !ok {
		j.t.Errorf("Forget of entry %d, which does not exist", seq)
	}
	if err := j.lockedFailure("Forget"); err != nil {
		return err
	}
	delete(j.entries, seq)
	return nil
}

// AddLockspace implements locking.Journal.
func (j *Journal) AddLockspace(path string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.lockedFailure("AddLockspace"); err != nil {
		return err
	}
	j.spaces = append(j.spaces, path)
	return nil
}
