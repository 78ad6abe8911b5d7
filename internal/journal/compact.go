package journal

import (
	"errors"
	"fmt"
)

// The file is compacted when it is more than twice as large as what it holds,
// and larger than compactMin bytes. So compaction costs each byte that is
// appended about one copied byte, and the file is never much larger than
// compactMin and twice its content. Tests lower it.
var compactMin int64 = 4 << 20

// catchUp is how many bytes may be left to copy when callers are made to wait.
const catchUp = 64 << 10

// lockedTidy starts a compaction if one is due.
func (j *Journal) lockedTidy() {
	if j.end < j.compactAt || j.end < 2*j.idx.bytes || j.compacting || j.closed {
		return
	}
	j.compacting = true
	j.background.Go(j.compact)
}

func (j *Journal) compact() {
	err := j.compactOnce()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.compacting = false
	j.compactAt = compactMin
	if err == nil {
		return
	}
	_ = j.lockedFailed(fmt.Errorf("journal: compacting: %w", err))
	if errors.Is(err, ErrDistrusted) {
		j.distrusted = err
	}
	// It is in nobody's way that the file is large. Try again when it has grown.
	j.compactAt = j.end + max(compactMin, j.end/4)
}

// compactOnce copies what is live to a fresh file, then what was appended
// meanwhile, and makes callers wait only for the last bit of that and the rename.
func (j *Journal) compactOnce() error {
	j.mu.Lock()
	old := j.file
	// This copy is the longest that callers wait: about 40 ns for each live entry.
	live := j.idx.entries(make([]liveEntry, 0, len(j.idx.live)))
	spaces, doubt, next := j.idx.order, j.idx.doubt, j.idx.next
	j.mu.Unlock()
	inOrder(live)

	w, err := newFresh(j.dir, j.boot, next)
	if err != nil {
		return err
	}
	installed := false
	defer func() {
		if installed {
			// This frees the file, which takes a while: so not with j.mu held.
			old.f.Close()
		} else {
			w.abandon()
		}
	}()
	win := &window{f: old.f, mark: old.mark, end: old.end}
	if err := w.copyLive(win, spaces, doubt, live); err != nil {
		return err
	}
	tail := old.end
	// Get the pages here, where nobody waits for it.
	reserved, err := w.reserve(0, 2*freshBuffer)
	if err != nil {
		return err
	}
	// Each round has less to copy than the one before, unless callers append faster
	// than this copies. Then let them wait.
	for round := 0; ; round++ {
		j.mu.Lock()
		left := j.end - tail
		if left <= catchUp || round == 8 {
			break
		}
		win.end = j.end
		j.mu.Unlock()
		if err := w.copyTail(win, tail); err != nil {
			return err
		}
		tail = win.end
		if reserved, err = w.reserve(reserved, 2*freshBuffer); err != nil {
			return err
		}
	}
	defer j.mu.Unlock()
	if err := j.lockedReady(); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	win.end = j.end
	if err := w.copyTail(win, tail); err != nil {
		return err
	}
	if len(w.idx.live) != len(j.idx.live) || w.idx.bytes != j.idx.bytes || len(w.idx.order) != len(j.idx.order) {
		return fmt.Errorf("%w: its records do not add up to the %d entries that it is known to hold", ErrDistrusted, len(j.idx.live))
	}
	if err := w.flush(); err != nil {
		return err
	}
	if reserved, err = w.reserve(reserved, 0); err != nil {
		return err
	}
	if err := w.install(); err != nil {
		return err
	}
	installed = true
	w.idx.next = j.idx.next
	j.file, j.idx, j.reserved = w.file, w.idx, reserved
	j.stats.Compactions++
	return nil
}

// copyTail emits the records from off to win.end, all of which were whole when
// they were written.
func (w *fresh) copyTail(win *window, off int64) error {
	// What the window holds may end in the middle of a record.
	for off < win.end {
		rec, v, err := win.record(off)
		if err != nil {
			return err
		}
		if v != whole {
			return fmt.Errorf("%w: a record at %d was there and is damaged now", ErrDistrusted, off)
		}
		off += int64(len(rec))
		if err := w.emit(rec); err != nil {
			return fmt.Errorf("%w: at %d: %w", ErrDistrusted, off, err)
		}
	}
	return nil
}

// reserve gets the pages that the entries may yet need, and some more, unless
// there are so many up to have already. It returns how far the pages go.
func (w *fresh) reserve(have, more int64) (int64, error) {
	need := w.end + more + int64(len(w.idx.live))*roomPerEntry
	if need <= have {
		return have, nil
	}
	return reserve(w.f, w.end, need)
}
