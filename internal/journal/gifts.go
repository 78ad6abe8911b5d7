package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// giftsDir is where Gifts are, in the journal's directory.
const giftsDir = "given-back"

// Gifts is a locking.GiftJournal: a Journal of its own, in a directory that is made when there is something to keep.
//
// It is not a kind of record in the journal beside it, since a program that is older than this file reads that one:
// it would take such a record for damage, and could not follow on this program any more. What gets lost here is only forgotten,
// so what cannot be read is forgotten as well, and whoever uses locks is not told of it.
type Gifts struct {
	dir, boot string

	mu     sync.Mutex // guards what follows
	j      *Journal   // nil until there is something to keep
	closed bool
}

var _ locking.GiftJournal = (*Gifts)(nil)

// OpenGifts opens what belongs to the journal in dir, and returns what an earlier process of this boot has kept. With an
// error that is less than there was, or nothing, and it works all the same; the error says what cannot be read.
func OpenGifts(dir, bootID string) (*Gifts, []locking.Kept, error) {
	g := &Gifts{dir: filepath.Join(dir, giftsDir), boot: bootID}
	if _, err := os.Lstat(g.dir); errors.Is(err, fs.ErrNotExist) {
		return g, nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	list, err := g.lockedOpen()
	return g, list, err
}

// lockedOpen is for g.j being nil. After an error it may be nil still.
func (g *Gifts) lockedOpen() ([]locking.Kept, error) {
	j, r, err := Open(g.dir, g.boot)
	if err != nil {
		return nil, err
	}
	g.j = j
	doubt := r.Damage != nil && r.Damage.Unknown
	if doubt || r.Fresh {
		// It is not guessed what there was. That none of it is read the next time either is certain before that is settled.
		for _, e := range r.Entries {
			err = errors.Join(err, j.Forget(e.Seq))
		}
		if err == nil {
			err = j.Settled()
		}
		if doubt {
			err = errors.Join(errors.New(r.Damage.String()), err)
		}
		return nil, err
	}
	list := make([]locking.Kept, 0, len(r.Entries))
	for _, e := range r.Entries {
		k, bad := keptOf(e)
		if bad != nil {
			err = errors.Join(err, bad, j.Forget(e.Seq))
			continue
		}
		list = append(list, k)
	}
	return list, err
}

// An entry's note is the Stamp.
const stampFormat = "inode %d written %d"

func keptOf(e locking.Entry) (k locking.Kept, err error) {
	k = locking.Kept{Seq: e.Seq, Owner: e.Owner, OwnerStart: e.OwnerStart, Ref: e.Ref, Mode: e.Mode, Autocreate: e.Autocreate}
	_, err = fmt.Sscanf(e.Note, stampFormat, &k.Stamp.Inode, &k.Stamp.Written)
	if err != nil || fmt.Sprintf(stampFormat, k.Stamp.Inode, k.Stamp.Written) != e.Note || e.State != locking.EntryGranted || e.OwnerStart == 0 {
		return k, fmt.Errorf("entry %d, in state %d with note %q, is not of what a process gave back", e.Seq, e.State, e.Note)
	}
	return k, nil
}

// Add implements locking.GiftJournal. Errors as of Journal.Intend.
func (g *Gifts) Add(k locking.Kept) (uint64, error) {
	j, err := g.open()
	if err != nil {
		return 0, err
	}
	return j.Intend(locking.Entry{
		State: locking.EntryGranted, Ref: k.Ref, Mode: k.Mode, Autocreate: k.Autocreate, Owner: k.Owner, OwnerStart: k.OwnerStart,
		Note: fmt.Sprintf(stampFormat, k.Stamp.Inode, k.Stamp.Written),
	})
}

// open makes the directory and the journal if need be.
func (g *Gifts) open() (*Journal, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return nil, ErrClosed
	case g.j != nil:
		return g.j, nil
	}
	if err := os.Mkdir(g.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	list, err := g.lockedOpen()
	if g.j == nil {
		return nil, err
	}
	for _, k := range list { // it could not be read before, and so nobody remembers it
		_ = g.j.Forget(k.Seq)
	}
	return g.j, nil
}

// Forget implements locking.GiftJournal. Errors as of Journal.Forget.
func (g *Gifts) Forget(seq uint64) error {
	g.mu.Lock()
	j := g.j
	g.mu.Unlock()
	if j == nil {
		return ErrClosed
	}
	return j.Forget(seq)
}

// Close is Journal.Close. Later calls of all methods return ErrClosed. g may be nil.
func (g *Gifts) Close() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	g.closed = true
	if g.j == nil {
		return nil
	}
	return g.j.Close()
}
