package holder

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Bounds of the protocol. None of them may shrink in a later version.
const (
	// MaxKey is the longest key in bytes.
	MaxKey = 255
	// maxFDs is how many descriptors one message carries: SCM_MAX_FD of
	// include/net/scm.h, which unix(7) gives as the limit since Linux 2.6.38.
	maxFDs = 253
	// maxMessage is the longest message in bytes, header included. It stays far
	// below the smallest send buffer this package asks for, so that a message is
	// never too long for the socket.
	maxMessage = 32 << 10
	// maxDrops is how many descriptors one message drops at most.
	maxDrops = 1024
)

// version is spoken by this build. A later version only ever adds operations and
// fields at the end of HELLO: the holder of an earlier build outlives the
// upgrade of the daemon and must be understood as long as it holds something.
const version = 2

// toldOf is the first version whose holder answers a message that wants no reply if it
// could not keep all that came with it.
const toldOf = 2

const magic = 0x4c484d56 // "VMHL"

// Operations. A reply has the operation and the sequence number of its request.
const (
	opHello  = 1
	opChange = 2
	opList   = 3
)

const headerLen = 8

// errMalformed is what the decoders return. It ends the connection, as nothing
// that follows on it can be trusted.
var errMalformed = errors.New("malformed message")

// header starts every message: op u8, quiet u8, errno u16 (0 in requests), seq u32;
// all integers are little endian.
type header struct {
	op    uint8
	quiet bool       // of opChange: no reply is wanted, unless not everything is kept
	errno unix.Errno // why the request was not (wholly) carried out
	seq   uint32
}

func (h header) append(b []byte) []byte {
	quiet := uint8(0)
	if h.quiet {
		quiet = 1
	}
	b = append(b, h.op, quiet)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.errno))
	return binary.LittleEndian.AppendUint32(b, h.seq)
}

func decodeHeader(b []byte) (header, *cursor, error) {
	c := &cursor{b: b}
	h := header{op: c.u8(), quiet: c.u8() == 1}
	h.errno = unix.Errno(c.u16())
	h.seq = c.u32()
	if c.short {
		return header{}, nil, errMalformed
	}
	return h, c, nil
}

// cursor reads a message. Reading past its end gives zeros and sets short.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.short, c.b = true, nil
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() uint8 {
	if p := c.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if p := c.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if p := c.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (c *cursor) key() string {
	n := int(c.u16())
	if n > MaxKey {
		c.short, c.b = true, nil
	}
	return string(c.take(n))
}

func appendKey(b []byte, key string) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(key)))
	return append(b, key...)
}

// helloRequest is the first message of a daemon.
type helloRequest struct{ version uint16 }

func (r helloRequest) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	return binary.LittleEndian.AppendUint16(b, r.version)
}

func decodeHelloRequest(c *cursor) (r helloRequest, err error) {
	if c.u32() != magic {
		return r, errMalformed
	}
	r.version = c.u16()
	if c.short || r.version == 0 {
		return r, errMalformed
	}
	return r, nil // what follows is of a later version
}

// helloReply answers it. If errno is EBUSY, pid is the daemon that is connected.
type helloReply struct {
	version uint16 // the holder's; both speak the lower one of the two
	pid     int32  // of the holder
	held    uint32
	limit   uint32 // how many descriptors it holds at most
	next    uint64 // the lowest id that was never used
}

func (r helloReply) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	b = binary.LittleEndian.AppendUint16(b, r.version)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.pid))
	b = binary.LittleEndian.AppendUint32(b, r.held)
	b = binary.LittleEndian.AppendUint32(b, r.limit)
	return binary.LittleEndian.AppendUint64(b, r.next)
}

func decodeHelloReply(c *cursor) (r helloReply, err error) {
	if c.u32() != magic {
		return r, errMalformed
	}
	r = helloReply{version: c.u16(), pid: int32(c.u32()), held: c.u32(), limit: c.u32(), next: c.u64()}
	if c.short || r.version == 0 {
		return r, errMalformed
	}
	return r, nil
}

// changeRequest drops descriptors, then adds those that come with the message:
// the one at place i, with key puts[i], gets the id base+i. Ids only grow.
type changeRequest struct {
	base  uint64
	drops []uint64
	puts  []string
}

const changeFixed = headerLen + 12

func (r changeRequest) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.base)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.drops)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.puts)))
	for _, id := range r.drops {
		b = binary.LittleEndian.AppendUint64(b, id)
	}
	for _, key := range r.puts {
		b = appendKey(b, key)
	}
	return b
}

// decodeChangeRequest reuses the slices of r. Nothing is allocated before the
// message was long enough for it.
func decodeChangeRequest(c *cursor, r *changeRequest) error {
	r.drops, r.puts = r.drops[:0], r.puts[:0]
	r.base = c.u64()
	drops, puts := int(c.u16()), int(c.u16())
	if c.short || drops > maxDrops || puts > maxFDs || r.base == 0 || r.base > 1<<62 {
		return errMalformed
	}
	for range drops {
		r.drops = append(r.drops, c.u64())
	}
	for range puts {
		r.puts = append(r.puts, c.key())
	}
	if c.short || len(c.b) != 0 {
		return errMalformed
	}
	return nil
}

// changeReply says how many of the descriptors are held: the first kept ones. If
// these are not all, errno says why.
type changeReply struct{ kept uint16 }

func (r changeReply) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint16(b, r.kept)
}

func decodeChangeReply(c *cursor, puts int) (r changeReply, err error) {
	r.kept = c.u16()
	if c.short || int(r.kept) > puts {
		return r, errMalformed
	}
	return r, nil
}

// listRequest asks for what is held with ids above after, in order of ids, as
// much as fits into one message.
type listRequest struct {
	after   uint64
	withFDs bool // send the descriptors along
}

func (r listRequest) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.after)
	if r.withFDs {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeListRequest(c *cursor) (r listRequest, err error) {
	r = listRequest{after: c.u64(), withFDs: c.u8() != 0}
	if c.short || len(c.b) != 0 {
		return r, errMalformed
	}
	return r, nil
}

// listed is one entry of the reply. A reply without entries ends the list.
type listed struct {
	id  uint64
	key string
}

func appendListed(b []byte, l listed) []byte {
	return appendKey(binary.LittleEndian.AppendUint64(b, l.id), l.key)
}

func decodeListReply(c *cursor, after uint64) ([]listed, error) {
	var list []listed
	for len(c.b) > 0 {
		l := listed{id: c.u64(), key: c.key()}
		if c.short || l.id <= after || len(list) == maxFDs {
			return nil, errMalformed
		}
		after = l.id
		list = append(list, l)
	}
	return list, nil
}

// statusError is the error that a reply's errno stands for.
func statusError(errno unix.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.EMFILE:
		return ErrFull
	case unix.EOPNOTSUPP:
		return fmt.Errorf("the holder of an older vmlockd does not know this operation: %w", errno)
	}
	return errno
}
