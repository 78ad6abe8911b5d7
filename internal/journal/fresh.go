package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// fresh is a journal file in the making. Until install it has a name of its own
// that nobody reads, so a kill at any point leaves the old file in force.
type fresh struct {
	dir string
	file
	header header
	idx    *index
	buf    []byte // what comes at end, not written yet
	rec    []byte
}

const freshBuffer = 256 << 10

// newFresh begins a file that holds nothing yet.
func newFresh(dir, boot string, next uint64) (_ *fresh, err error) {
	path := filepath.Join(dir, freshName)
	stepCreate.before.Pass()
	// What a killed process left here is not worth looking at.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	stepCreate.after.Pass()
	w := &fresh{dir: dir, file: file{f: f}, idx: newIndex(next, 0), buf: make([]byte, 0, freshBuffer+4096)}
	_, _ = rand.Read(w.mark[:]) // never fails
	w.header = header{boot: boot, next: w.idx.next, mark: w.mark}
	w.buf = append(w.buf, w.header.encode()...)
	return w, nil
}

// emit appends a whole record of another file.
func (w *fresh) emit(rec []byte) error {
	w.rec = append(begin(w.rec[:0], w.mark, kind(rec[offKind])), rec[offSeq:len(rec)-sumLen]...)
	return w.put()
}

// emitEntry appends the record of an entry of another file, with a state that
// may have changed since.
func (w *fresh) emitEntry(rec []byte, state locking.EntryState) error {
	w.rec = append(begin(w.rec[:0], w.mark, kindEntry), rec[offSeq:len(rec)-sumLen]...)
	w.rec[offState] = byte(state)
	return w.put()
}

func (w *fresh) emitText(k kind, text string) error {
	w.rec = append(begin(w.rec[:0], w.mark, k), text...)
	return w.put()
}

// put completes the record that was begun in w.rec.
func (w *fresh) put() error {
	off := w.end + int64(len(w.buf))
	w.rec = finish(w.rec, 0, off)
	if err := w.idx.apply(off, w.rec); err != nil {
		return err
	}
	w.buf = append(w.buf, w.rec...)
	if len(w.buf) >= freshBuffer {
		return w.flush()
	}
	return nil
}

func (w *fresh) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	stepFill.before.Pass()
	if err := writeAt(w.f, w.buf, w.end); err != nil {
		return err
	}
	stepFill.after.Pass()
	w.end += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// install puts the file in the place of the one in force. After an error that one
// still is.
func (w *fresh) install() error {
	if err := w.flush(); err != nil {
		return err
	}
	w.header.base = w.end
	if err := writeAt(w.f, w.header.encode(), 0); err != nil {
		return err
	}
	stepRename.before.Pass()
	if err := os.Rename(filepath.Join(w.dir, freshName), filepath.Join(w.dir, journalName)); err != nil {
		return err
	}
	stepRename.after.Pass()
	return nil
}

// abandon removes the file. It is for one that was not installed.
func (w *fresh) abandon() {
	w.f.Close()
	_ = os.Remove(filepath.Join(w.dir, freshName))
}

// copyLive emits what idx, whose records are in win, adds up to. The entries in
// seqs are live and in order.
func (w *fresh) copyLive(win *window, spaces []string, doubt string, seqs []liveEntry) error {
	if doubt != "" {
		if err := w.emitText(kindDoubt, doubt); err != nil {
			return err
		}
	}
	for _, path := range spaces {
		if err := w.emitText(kindLockspace, path); err != nil {
			return err
		}
	}
	for _, l := range seqs {
		rec, err := readEntry(win, l)
		if err != nil {
			return err
		}
		if err := w.emitEntry(rec, l.state); err != nil {
			return err
		}
	}
	return nil
}

// readEntry reads the record of a live entry, which was whole before.
func readEntry(win *window, l liveEntry) ([]byte, error) {
	rec, v, err := win.record(l.off)
	if err != nil {
		return nil, err
	}
	if v != whole || kind(rec[offKind]) != kindEntry || binary.LittleEndian.Uint64(rec[offSeq:]) != l.seq {
		return nil, fmt.Errorf("%w: entry %d, at %d, was there and is damaged now", ErrDistrusted, l.seq, l.off)
	}
	return rec, nil
}
