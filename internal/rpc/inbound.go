package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// smallBuffer is what a connection has for messages that it receives, in bytes.
// All that libvirt's plug-in sends fits, unless paths are very long.
const smallBuffer = 4096

// errFraming is the base of all errors after which nobody can know where the
// next message starts.
var errFraming = errors.New("malformed message")

// inbound takes messages from a stream of bytes.
//
// Of each message it keeps no more than limit says the receiver can look at,
// and skips the rest: libvirt allows 32 MiB, of which no procedure of the lock
// program needs more than 128 KiB. So a long message costs no memory, and it is
// answered as virtlockd does, which ignores what follows the arguments.
type inbound struct {
	r io.Reader
	// limit is how many bytes of the payload the receiver can look at.
	limit func(header) int
	// grow is asked before the buffer gets larger than smallBuffer, and may wait
	// or refuse. shrunk is told when it is small again.
	grow   func() error
	shrunk func()

	small      []byte // made once
	buf        []byte // small, or a larger one for the message that needs it
	start, end int    // what was received and not consumed is buf[start:end]
	message    message
}

// message is the one that next returned. It is valid until the next call of next.
type message struct {
	header
	payload []byte // without the number of descriptors; not longer than limit
	size    int    // bytes of the buffer it takes
}

// next waits for a message. io.EOF means that the stream ended where a message
// may begin; io.ErrUnexpectedEOF that it ended within one.
//
// After an error of the reader nothing is lost: next may be called again, and
// pending is what another inbound has to receive first.
func (in *inbound) next() (*message, error) {
	in.release()
	if err := in.need(lenSize); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(in.buf[in.start:])
	if length < minMessage || length > maxMessage {
		return nil, fmt.Errorf("%w: a length of %d bytes", errFraming, length)
	}
	if err := in.need(minMessage); err != nil {
		return nil, err
	}
	h := parseHeader(in.buf[in.start+lenSize:])
	payload := int(length) - minMessage
	count := 0 // size of the number of descriptors, which comes first
	if h.typ == typeCallWithFDs {
		count = 4
		if payload < count {
			return nil, fmt.Errorf("%w: no number of descriptors", errFraming)
		}
	}
	kept := minMessage + min(payload, count+max(in.limit(h), 0))
	if err := in.need(kept); err != nil {
		return nil, err
	}
	skip, fds := int(length)-kept, 0
	if count > 0 {
		n := binary.BigEndian.Uint32(in.buf[in.start+minMessage:])
		if n > maxFDs {
			return nil, fmt.Errorf("%w: %d descriptors", errFraming, n)
		}
		// Each descriptor comes with one byte of its own after the message. The
		// kernel drops the descriptor, because nobody asked for it.
		fds = int(n)
	}
	skip, err := in.discard(kept, skip+fds)
	if err != nil {
		// What was left out is no longer part of the message.
		fds = min(fds, skip)
		binary.BigEndian.PutUint32(in.buf[in.start:], uint32(kept+skip-fds))
		if count > 0 {
			binary.BigEndian.PutUint32(in.buf[in.start+minMessage:], uint32(fds))
		}
		return nil, err
	}
	in.message = message{
		header:  h,
		payload: in.buf[in.start+minMessage+count : in.start+kept],
		size:    kept + skip,
	}
	return &in.message, nil
}

// pending is what was received and is not part of a message that next returned.
func (in *inbound) pending() []byte {
	in.release()
	return in.buf[in.start:in.end]
}

// preload makes in receive b before anything else. It is for an inbound that
// has not been used.
func (in *inbound) preload(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	in.small = make([]byte, smallBuffer)
	in.buf = in.small
	if len(b) > smallBuffer {
		if err := in.grow(); err != nil {
			return err
		}
		in.buf = make([]byte, len(b))
	}
	in.end = copy(in.buf, b)
	return nil
}

// need waits until n bytes can be looked at.
func (in *inbound) need(n int) error {
	for in.end-in.start < n {
		if in.start > 0 && in.start+n > len(in.buf) {
			copy(in.buf, in.buf[in.start:in.end])
			in.end -= in.start
			in.start = 0
		}
		if in.end == len(in.buf) {
			if err := in.enlarge(n); err != nil {
				return err
			}
		}
		room := in.buf[in.end:]
		if len(in.buf) > smallBuffer {
			// No more than this message, so that the buffer can be given up after it.
			room = room[:min(len(room), in.start+n-in.end)]
		}
		got, err := in.r.Read(room)
		in.end += got
		if got > 0 {
			continue
		}
		if err == io.EOF && in.end > in.start {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	return nil
}

// enlarge makes room in a buffer that is full, for a message of n bytes. It
// doubles, so memory is at most twice what has really arrived.
func (in *inbound) enlarge(n int) error {
	if len(in.buf) == 0 {
		in.small = make([]byte, smallBuffer)
		in.buf = in.small
		return nil
	}
	if len(in.buf) == smallBuffer {
		if err := in.grow(); err != nil {
			return err
		}
	}
	buf := make([]byte, min(2*len(in.buf), n))
	copy(buf, in.buf[:in.end])
	in.buf = buf
	return nil
}

// discard waits until the skip bytes after the first kept ones have arrived too.
// Those that are in the buffer stay there, as there may be more behind them; the
// others are dropped. It returns how many are still to be skipped, either when
// the message is consumed, or when an error is gone.
func (in *inbound) discard(kept, skip int) (int, error) {
	if in.end-in.start >= kept+skip {
		return skip, nil
	}
	// All that was received belongs to this message.
	skip -= in.end - in.start - kept
	in.end = in.start + kept
	scratch := scratchBuffers.Get().(*[]byte)
	defer scratchBuffers.Put(scratch)
	for skip > 0 {
		n, err := in.r.Read((*scratch)[:min(skip, len(*scratch))])
		skip -= n
		if n > 0 {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		return skip, err
	}
	return 0, nil
}

// scratchBuffers hold what is read only to be dropped.
var scratchBuffers = sync.Pool{New: func() any {
	b := make([]byte, 16*1024)
	return &b
}}

// release gives up the message that next returned, and the memory for it if
// that was large.
func (in *inbound) release() {
	in.start += in.message.size
	in.message = message{}
	if in.start == in.end {
		in.start, in.end = 0, 0
	}
	if len(in.buf) > smallBuffer && in.end-in.start <= smallBuffer {
		in.end = copy(in.small, in.buf[in.start:in.end])
		in.start = 0
		in.buf = in.small
		in.shrunk()
	}
}
