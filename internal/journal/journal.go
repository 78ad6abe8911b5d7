package journal

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Journal is an open journal. Its methods may be called from many goroutines.
type Journal struct {
	dir  string
	boot string
	lock *os.File // holds a flock while the journal is open

	mu sync.Mutex // guards all below; held across the write of a record
	file
	idx        *index
	buf        []byte // the record being written
	torn       bool   // the file may go on after end with part of a record
	reserved   int64  // the file has pages up to here
	distrusted error
	closed     bool
	compacting bool
	compactAt  int64 // not before the file is this large
	stats      Stats

	background sync.WaitGroup // the compaction
}

// file is an open journal file.
type file struct {
	f    *os.File
	mark mark
	end  int64 // where the last whole record ends
	// spare is memory for a window, from one reading to the next; nil after Open.
	spare []byte
}

var _ locking.Journal = (*Journal)(nil)

// Stats are figures of an open journal.
type Stats struct {
	Entries     int    // entries that were not forgotten
	Lockspaces  int    // lockspaces that were added
	Bytes       int64  // size of the file
	LiveBytes   int64  // what Entries and Lockspaces would take in a fresh file
	Records     uint64 // written since Open
	Compactions uint64 // since Open
	Failures    uint64 // writes and compactions that failed since Open
	LastFailure error  // the last of these
}

// Stats returns the journal's figures.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Entries, s.Lockspaces = len(j.idx.live), len(j.idx.order)
	s.Bytes, s.LiveBytes = j.end, headersLen+j.idx.bytes
	return s
}

// Intend adds an entry in the state that it has and returns the seq it was given,
// which is higher than that of every entry of this boot before. e.Seq is ignored.
// It also makes sure that the file system has room for all that the entry may
// need until it is forgotten: where space has run out it returns ENOSPC, and
// Grant, Releasing and Forget of older entries still succeed.
// ErrTooLong, ErrDistrusted, ErrClosed, or a system error.
func (j *Journal) Intend(e locking.Entry) (uint64, error) {
	if err := checkEntry(&e); err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.lockedReady(); err != nil {
		return 0, err
	}
	// A seq is used up even if the write fails.
	e.Seq = j.idx.next
	j.idx.next++
	j.buf = appendEntry(j.buf[:0], j.mark, j.end, &e)
	off := j.end
	if err := j.lockedWriteNew(stepIntend, roomPerEntry); err != nil {
		return 0, err
	}
	j.idx.add(e.Seq, slot{off: off, size: uint32(len(j.buf)), state: e.State})
	j.lockedTidy()
	return e.Seq, nil
}

// Grant says that the backend granted the entry's lock. Granting twice, or after
// Releasing (the backend could not release), is no error.
// ErrNoEntry, ErrDistrusted, ErrClosed, or a system error.
func (j *Journal) Grant(seq uint64) error {
	return j.setState(stepGrant, kindGrant, seq, locking.EntryGranted)
}

// Releasing says that nobody needs the entry's lock any more. Saying it twice is
// no error. Errors as of Grant.
func (j *Journal) Releasing(seq uint64) error {
	return j.setState(stepReleasing, kindReleasing, seq, locking.EntryReleasing)
}

func (j *Journal) setState(st step, k kind, seq uint64, state locking.EntryState) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	s, err := j.lockedFind(seq)
	if err != nil || s.state == state {
		return err
	}
	if err := j.lockedNote(st, k, seq); err != nil {
		return err
	}
	s.state = state
	j.idx.live[seq] = s
	j.lockedTidy()
	return nil
}

// Forget removes an entry, in whatever state. Errors as of Grant.
func (j *Journal) Forget(seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	s, err := j.lockedFind(seq)
	if err != nil {
		return err
	}
	if err := j.lockedNote(stepForget, kindForget, seq); err != nil {
		return err
	}
	j.idx.forget(seq, s)
	j.lockedTidy()
	return nil
}

// AddLockspace remembers a lockspace for as long as the boot lasts. Adding it
// twice is no error. Errors as of Intend.
func (j *Journal) AddLockspace(path string) error {
	if len(path) > MaxName {
		return ErrTooLong
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.lockedReady(); err != nil {
		return err
	}
	if _, ok := j.idx.spaces[path]; ok {
		return nil
	}
	j.buf = appendText(j.buf[:0], j.mark, j.end, kindLockspace, path)
	if err := j.lockedWriteNew(stepLockspace, 0); err != nil {
		return err
	}
	j.idx.addSpace(path)
	j.lockedTidy()
	return nil
}

// Settled says that whatever Damage.Unknown warned of is settled, or that nothing was held before a
// journal that is Fresh, so that the next Open does not warn of it again. Errors as of Grant.
func (j *Journal) Settled() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.lockedReady(); err != nil || j.idx.doubt == "" {
		return err
	}
	j.buf = appendText(j.buf[:0], j.mark, j.end, kindSettled, "")
	if err := j.lockedWrite(stepSettled); err != nil {
		return err
	}
	j.idx.setDoubt("")
	return nil
}

// Suspect notes that there may be locks that no entry explains, as the user of a journal that is Fresh may find out: something
// is held although nobody has written it down. The next Open says so too, until Settled. Errors as of Grant.
func (j *Journal) Suspect(why string) (*Damage, error) {
	var d Damage
	d.unknown(why)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.lockedReady(); err != nil {
		return nil, err
	}
	j.buf = appendText(j.buf[:0], j.mark, j.end, kindDoubt, d.reason())
	if err := j.lockedWriteNew(stepSuspect, 0); err != nil {
		return nil, err
	}
	j.idx.setDoubt(d.reason())
	return &d, nil
}

// Close ends the use of the journal by this process and changes nothing in it.
// After it the next Open, unlike after a kill, does not wait for the end of this
// process, so what has locks that the journal knows of must be closed before.
// It waits for a compaction under way, which takes about a second at most for
// 1,000,000 entries. Later calls of all methods but Stats return ErrClosed.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return ErrClosed
	}
	_ = j.lockedReady() // tries to remove what a failed write left; Open does it otherwise
	j.closed = true
	j.mu.Unlock()
	j.background.Wait()
	_ = j.signLock("") // nobody needs to wait for the end of this process
	err := j.f.Close()
	if e := j.lock.Close(); err == nil {
		err = e
	}
	return err
}

func (j *Journal) lockedFind(seq uint64) (slot, error) {
	if err := j.lockedReady(); err != nil {
		return slot{}, err
	}
	s, ok := j.idx.live[seq]
	if !ok {
		return slot{}, fmt.Errorf("%w: %d", ErrNoEntry, seq)
	}
	return s, nil
}

func (j *Journal) lockedNote(st step, k kind, seq uint64) error {
	j.buf = appendNote(j.buf[:0], j.mark, j.end, k, seq)
	return j.lockedWrite(st)
}

// lockedReady refuses calls that cannot succeed, and removes what a failed write
// may have left behind, so that the next record follows the last whole one.
func (j *Journal) lockedReady() error {
	switch {
	case j.closed:
		return ErrClosed
	case j.distrusted != nil:
		return j.distrusted
	case j.torn:
		if err := j.f.Truncate(j.end); err != nil {
			return j.lockedFailed(fmt.Errorf("journal: removing part of a record: %w", err))
		}
		// Truncating also gives back the pages after the end.
		j.torn, j.reserved = false, j.end
	}
	return nil
}

// lockedWriteNew writes a record that is not about an entry with room of its own.
func (j *Journal) lockedWriteNew(st step, room int64) error {
	need := j.end + int64(len(j.buf)) + room + int64(len(j.idx.live))*roomPerEntry
	if err := j.lockedReserve(need); err != nil {
		return j.lockedFailed(fmt.Errorf("journal: reserving room: %w", err))
	}
	return j.lockedWrite(st)
}

// lockedWrite appends j.buf to the file. One write is all a record needs: what
// write(2) has taken is the kernel's, and stays when the process is killed. A
// kill in the middle leaves a prefix of the record.
func (j *Journal) lockedWrite(st step) error {
	st.before.Pass()
	if pointTorn.Armed() {
		_, _ = j.f.WriteAt(j.buf[:len(j.buf)/2], j.end)
		pointTorn.Pass()
	}
	if err := writeAt(j.f, j.buf, j.end); err != nil {
		j.torn = true
		return j.lockedFailed(fmt.Errorf("journal: writing: %w", err))
	}
	st.after.Pass()
	j.end += int64(len(j.buf))
	j.stats.Records++
	return nil
}

func (j *Journal) lockedFailed(err error) error {
	j.stats.Failures++
	j.stats.LastFailure = err
	return err
}

// reserveChunk is how many bytes are reserved at a time.
const reserveChunk = 256 << 10

// lockedReserve makes sure that the file system has pages for the file up to need.
func (j *Journal) lockedReserve(need int64) error {
	if need <= j.reserved {
		return nil
	}
	to, err := reserve(j.f, j.end, need)
	if err == nil {
		j.reserved = to
	}
	return err
}

// reserve gets pages for f from off to need or somewhat further, and returns how
// far. A file system that cannot reserve is taken to have room.
func reserve(f *os.File, off, need int64) (int64, error) {
	to := need + reserveChunk
	err := fallocate(int(f.Fd()), off, to-off)
	if err == unix.ENOSPC {
		to = need
		err = fallocate(int(f.Fd()), off, to-off)
	}
	if err == unix.EOPNOTSUPP {
		return 1 << 62, nil
	}
	return to, err
}

// Replaced by tests.
var (
	fallocate = func(fd int, off, n int64) error {
		for {
			if err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n); err != unix.EINTR {
				return err
			}
		}
	}
	writeAt = func(f *os.File, b []byte, off int64) error {
		_, err := f.WriteAt(b, off)
		return err
	}
)
