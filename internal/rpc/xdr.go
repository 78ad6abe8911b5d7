package rpc

import (
	"bytes"
	"encoding/binary"
)

// Decoder reads XDR (RFC 4506) from a slice, as libvirt's xdr routines do:
// padding may hold anything, and what follows the last item is not looked at.
//
// The first item that does not fit makes it fail, and everything read from then
// on is zero. So it is enough to ask OK once, at the end. It never allocates.
type Decoder struct {
	rest   []byte
	failed bool
}

// NewDecoder reads from b.
func NewDecoder(b []byte) *Decoder { return &Decoder{rest: b} }

// Reset makes d read from b, as if it were new.
func (d *Decoder) Reset(b []byte) { *d = Decoder{rest: b} }

// OK says whether all that was read was there.
func (d *Decoder) OK() bool { return !d.failed }

// Remaining is the number of bytes that have not been read.
func (d *Decoder) Remaining() int { return len(d.rest) }

func (d *Decoder) fail() {
	d.failed = true
	d.rest = nil
}

// Uint32 reads an unsigned int, or an enum.
func (d *Decoder) Uint32() uint32 {
	if len(d.rest) < 4 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint32(d.rest)
	d.rest = d.rest[4:]
	return v
}

// Int32 reads an int.
func (d *Decoder) Int32() int32 { return int32(d.Uint32()) }

// Uint64 reads an unsigned hyper.
func (d *Decoder) Uint64() uint64 { return uint64(d.Uint32())<<32 | uint64(d.Uint32()) }

// Bool reads a bool, or says whether an optional item follows. As in libtirpc,
// everything but 0 is true.
func (d *Decoder) Bool() bool { return d.Uint32() != 0 }

// Opaque reads n bytes of fixed-length opaque data. The result is a part of the
// slice that d reads from, and nil if d has failed.
func (d *Decoder) Opaque(n int) []byte {
	padded := padded(n)
	if n < 0 || len(d.rest) < padded {
		d.fail()
		return nil
	}
	v := d.rest[:n:n]
	d.rest = d.rest[padded:]
	return v
}

// String reads a string of at most limit bytes. As in C, it ends at the first
// NUL byte. The result is a part of the slice that d reads from.
func (d *Decoder) String(limit int) []byte {
	n := d.Uint32()
	if uint64(n) > uint64(limit) {
		d.fail()
		return nil
	}
	v := d.Opaque(int(n))
	if i := bytes.IndexByte(v, 0); i >= 0 {
		v = v[:i]
	}
	return v
}

// OptionalString reads a string that may be missing (NULL), which is returned
// as "".
func (d *Decoder) OptionalString(limit int) string {
	if !d.Bool() {
		return ""
	}
	return string(d.String(limit))
}

// Encoder appends XDR to a slice.
type Encoder struct {
	buf []byte
}

// NewEncoder appends to b.
func NewEncoder(b []byte) *Encoder { return &Encoder{buf: b} }

// Bytes is all that was encoded, after what the slice held in the beginning.
func (e *Encoder) Bytes() []byte { return e.buf }

// Uint32 appends an unsigned int, or an enum.
func (e *Encoder) Uint32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }

// Int32 appends an int.
func (e *Encoder) Int32(v int32) { e.Uint32(uint32(v)) }

// Uint64 appends an unsigned hyper.
func (e *Encoder) Uint64(v uint64) { e.buf = binary.BigEndian.AppendUint64(e.buf, v) }

// Bool appends a bool.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint32(1)
	} else {
		e.Uint32(0)
	}
}

// Opaque appends fixed-length opaque data, with zeros as padding.
func (e *Encoder) Opaque(v []byte) {
	e.buf = append(e.buf, v...)
	e.pad(len(v))
}

// String appends a string.
func (e *Encoder) String(v string) {
	e.Uint32(uint32(len(v)))
	e.buf = append(e.buf, v...)
	e.pad(len(v))
}

// OptionalString appends a string that may be missing: "" is sent as NULL.
func (e *Encoder) OptionalString(v string) {
	e.Bool(v != "")
	if v != "" {
		e.String(v)
	}
}

func (e *Encoder) pad(n int) {
	const zeros = "\x00\x00\x00"
	e.buf = append(e.buf, zeros[:padded(n)-n]...)
}

// padded rounds up to the 4 bytes that every XDR item is a multiple of.
func padded(n int) int { return (n + 3) &^ 3 }
