package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// Bounds on what a record holds, in bytes.
const (
	// MaxName is what libvirt's protocol allows a string to be
	// (VIR_LOCK_SPACE_PROTOCOL_STRING_MAX in src/locking/lock_protocol.x).
	MaxName = 65536
	// MaxID bounds Entry.ID, which a backend may build from several names.
	MaxID = 4 * MaxName
	// MaxNote bounds Entry.Note. A longer one is left out.
	MaxNote = 4096
)

// A record, little endian:
//
//	 0  mark   8 bytes, random, the same in the whole file
//	 8  size   u32, of the whole record
//	12  check  u32, CRC-32C of the 12 bytes before
//	16  kind   u8
//	17  body
//	    sum    u32, CRC-32C of everything before
//
// Both sums start from the record's offset in the file, so a record is valid
// only where it was written. The mark is not known to clients, so no name they
// choose can look like a record. check tells a record that was cut short, whose
// size is right, from one whose size is damaged.
const (
	markLen    = 8
	headLen    = 16
	sumLen     = 4
	offKind    = headLen
	offSeq     = offKind + 1
	offState   = offSeq + 8
	minRecord  = headLen + 1 + sumLen
	noteLen    = minRecord + 8                        // a record whose body is a seq
	entryFixed = 8 + 3 + 4 + 4 + 16 + 8 + 8 + 4 + 4*4 // an entry's body without its strings
	maxRecord  = minRecord + entryFixed + MaxID + 3*MaxName + 4 + MaxNote
)

// roomPerEntry is what a live entry may yet need in the file until it is forgotten.
const roomPerEntry = 3 * noteLen

type kind uint8

const (
	kindEntry kind = iota + 1
	kindGrant
	kindReleasing
	kindForget
	kindLockspace
	kindDoubt   // body: why there may be locks that no entry explains
	kindSettled // there are none any more
)

type mark [markLen]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(off int64, b []byte) uint32 {
	return crc32.Update(uint32(off)^uint32(off>>32), castagnoli, b)
}

// begin starts a record at the end of b.
func begin(b []byte, m mark, k kind) []byte {
	b = append(b, m[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return append(b, byte(k))
}

// finish completes the record that began at b[at:] and goes to off in the file.
func finish(b []byte, at int, off int64) []byte {
	rec := b[at:]
	binary.LittleEndian.PutUint32(rec[markLen:], uint32(len(rec)+sumLen))
	binary.LittleEndian.PutUint32(rec[markLen+4:], sum(off, rec[:markLen+4]))
	return binary.LittleEndian.AppendUint32(b, sum(off, rec))
}

func appendNote(b []byte, m mark, off int64, k kind, seq uint64) []byte {
	at := len(b)
	b = begin(b, m, k)
	b = binary.LittleEndian.AppendUint64(b, seq)
	return finish(b, at, off)
}

func appendText(b []byte, m mark, off int64, k kind, text string) []byte {
	at := len(b)
	b = begin(b, m, k)
	b = append(b, text...)
	return finish(b, at, off)
}

func appendEntry(b []byte, m mark, off int64, e *locking.Entry) []byte {
	at := len(b)
	le := binary.LittleEndian
	b = begin(b, m, kindEntry)
	b = le.AppendUint64(b, e.Seq)
	autocreate := byte(0)
	if e.Autocreate {
		autocreate = 1
	}
	b = append(b, byte(e.State), byte(e.Mode), autocreate)
	b = le.AppendUint32(b, uint32(e.Owner.PID))
	b = le.AppendUint32(b, e.Owner.ID)
	b = append(b, e.Owner.UUID[:]...)
	b = le.AppendUint64(b, e.OwnerStart)
	b = le.AppendUint64(b, uint64(e.Since.Unix()))
	b = le.AppendUint32(b, uint32(e.Since.Nanosecond()))
	for _, s := range [...]string{e.ID, e.Ref.Lockspace, e.Ref.Name, e.Owner.Name} {
		b = le.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	// Older versions know no notes, and read entries without one. One that has a note they
	// take for damaged: such a program does not take over (Check), and a start of it doubts.
	if n := len(e.Note); n > 0 && n <= MaxNote {
		b = le.AppendUint32(b, uint32(n))
		b = append(b, e.Note...)
	}
	return finish(b, at, off)
}

// checkEntry refuses what could not be read again.
func checkEntry(e *locking.Entry) error {
	if e.State > locking.EntryReleasing || e.Mode > locking.Shared {
		return fmt.Errorf("journal: no state %d, or no mode %d", e.State, e.Mode)
	}
	if len(e.ID) > MaxID || len(e.Ref.Lockspace) > MaxName || len(e.Ref.Name) > MaxName || len(e.Owner.Name) > MaxName {
		return ErrTooLong
	}
	return nil
}

// decodeEntry reads a record that is known to be whole and of kindEntry, without
// its strings unless asked. What a newer version may have put there is an error,
// as is anything left over.
func decodeEntry(rec []byte, names bool) (e locking.Entry, err error) {
	le := binary.LittleEndian
	b := rec[offSeq : len(rec)-sumLen]
	if len(b) < entryFixed {
		return e, errBody
	}
	e.Seq = le.Uint64(b)
	e.State = locking.EntryState(b[8])
	e.Mode = locking.Mode(b[9])
	e.Autocreate = b[10] == 1
	if b[10] > 1 || checkEntry(&e) != nil {
		return e, errBody
	}
	e.Owner.PID = int32(le.Uint32(b[11:]))
	e.Owner.ID = le.Uint32(b[15:])
	copy(e.Owner.UUID[:], b[19:])
	e.OwnerStart = le.Uint64(b[35:])
	e.Since = time.Unix(int64(le.Uint64(b[43:])), int64(le.Uint32(b[51:])))
	b = b[55:]
	for i, s := range [...]*string{&e.ID, &e.Ref.Lockspace, &e.Ref.Name, &e.Owner.Name, &e.Note} {
		limit := uint32(MaxName)
		switch i {
		case 0:
			limit = MaxID
		case 4:
			if len(b) == 0 {
				return e, nil // it has none
			}
			if limit = MaxNote; len(b) >= 4 && le.Uint32(b) == 0 {
				return e, errBody // one that has none ends before
			}
		}
		if len(b) < 4 || le.Uint32(b) > limit || len(b)-4 < int(le.Uint32(b)) {
			return e, errBody
		}
		n := 4 + le.Uint32(b)
		if names {
			*s = string(b[4:n])
		}
		b = b[n:]
	}
	if len(b) != 0 {
		return e, errBody
	}
	return e, nil
}

// The file starts with the same header twice, so that damage to one copy costs
// nothing:
//
//	 0  magic    8 bytes
//	 8  version  u32
//	12  boot     u32, length of the boot id
//	16  next     u64, lowest seq that no entry had when the file was begun
//	24  mark     8 bytes, see above
//	32  boot id  up to maxBoot bytes, then zeros
//	96  base     u64, length of the file when it was begun; it is never shorter
//	124 sum      u32, CRC-32C of everything before
const (
	magic      = "vmlockd\x00"
	version    = 1
	maxBoot    = 64
	copyLen    = 128
	headersLen = 2 * copyLen
)

type header struct {
	boot string
	next uint64
	mark mark
	base int64
}

func (h header) encode() []byte {
	b := make([]byte, copyLen)
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], uint32(len(h.boot)))
	le.PutUint64(b[16:], h.next)
	copy(b[24:], h.mark[:])
	copy(b[32:32+maxBoot], h.boot)
	le.PutUint64(b[96:], uint64(h.base))
	le.PutUint32(b[copyLen-sumLen:], sum(0, b[:copyLen-sumLen]))
	return append(b, b...)
}

func decodeHeader(b []byte) (h header, err error) {
	le := binary.LittleEndian
	if len(b) < copyLen || string(b[:8]) != magic || le.Uint32(b[copyLen-sumLen:]) != sum(0, b[:copyLen-sumLen]) {
		return h, errHeader
	}
	if v := le.Uint32(b[8:]); v != version {
		return h, fmt.Errorf("it is of version %d, this program knows version %d", v, version)
	}
	n := le.Uint32(b[12:])
	if n > maxBoot {
		return h, errHeader
	}
	h.boot = string(b[32 : 32+n])
	h.next = le.Uint64(b[16:])
	copy(h.mark[:], b[24:])
	h.base = int64(le.Uint64(b[96:]))
	return h, nil
}
