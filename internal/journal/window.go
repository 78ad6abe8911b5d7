package journal

import (
	"bytes"
	"encoding/binary"
	"io"
)

// windowLen is how much of a file is in memory at a time. It is more than
// the longest record.
const windowLen = 1 << 20

// window reads records of a file of any size in bounded memory.
type window struct {
	f    io.ReaderAt
	mark mark
	end  int64 // nothing is read from here on

	buf  []byte // the file's bytes from base on
	base int64
}

// at returns n bytes at off; n is at most windowLen, and off+n at most w.end.
// They are valid until the next call.
func (w *window) at(off int64, n int) ([]byte, error) {
	if off < w.base || off+int64(n) > w.base+int64(len(w.buf)) {
		if cap(w.buf) == 0 {
			w.buf = make([]byte, 0, min(windowLen, max(w.end-off, int64(n))))
		}
		if n > cap(w.buf) {
			w.buf = make([]byte, 0, windowLen)
		}
		w.base = off
		w.buf = w.buf[:min(int64(cap(w.buf)), w.end-off)]
		if got, err := w.f.ReadAt(w.buf, off); got < len(w.buf) {
			w.buf = w.buf[:0]
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	i := off - w.base
	return w.buf[i : i+int64(n) : i+int64(n)], nil
}

type verdict uint8

const (
	whole  verdict = iota // a record, as it was written
	torn                  // the file ends within a record, which is right as far as it goes
	broken                // no record
)

// record looks at what is at off, which is less than w.end. The record is
// returned if it is whole. An error is one of reading.
func (w *window) record(off int64) ([]byte, verdict, error) {
	rest := w.end - off
	head, err := w.at(off, int(min(rest, headLen)))
	if err != nil {
		return nil, broken, err
	}
	n := min(len(head), markLen)
	if !bytes.Equal(head[:n], w.mark[:n]) {
		return nil, broken, nil
	}
	if rest < headLen {
		return nil, torn, nil
	}
	size := binary.LittleEndian.Uint32(head[markLen:])
	if binary.LittleEndian.Uint32(head[markLen+4:]) != sum(off, head[:markLen+4]) || size < minRecord || size > maxRecord {
		return nil, broken, nil
	}
	if int64(size) > rest {
		return nil, torn, nil
	}
	rec, err := w.at(off, int(size))
	if err != nil {
		return nil, broken, err
	}
	if binary.LittleEndian.Uint32(rec[size-sumLen:]) != sum(off, rec[:size-sumLen]) {
		return nil, broken, nil
	}
	return rec, whole, nil
}

// resume finds the first whole record at off or later, or w.end.
func (w *window) resume(off int64) (int64, error) {
	for off+minRecord <= w.end {
		b, err := w.at(off, int(min(w.end-off, windowLen/2)))
		if err != nil {
			return 0, err
		}
		i := bytes.Index(b, w.mark[:])
		if i < 0 {
			// The last bytes may be the beginning of a mark.
			off += int64(len(b) - markLen + 1)
			continue
		}
		off += int64(i)
		if _, v, err := w.record(off); err != nil || v == whole {
			return off, err
		}
		off++
	}
	return w.end, nil
}
