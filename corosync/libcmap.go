//go:build linux && (amd64 || arm64)

package corosync

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"unsafe"
)

// Types of values: cmap_value_types_t.
const (
	cmapInt8   = 1
	cmapUint8  = 2
	cmapInt16  = 3
	cmapUint16 = 4
	cmapInt32  = 5
	cmapUint32 = 6
	cmapInt64  = 7
	cmapUint64 = 8
	cmapFloat  = 9
	cmapDouble = 10
	cmapString = 11
)

// cmapConn is a handle of libcmap.
type cmapConn struct {
	lib    *library
	handle uint64
}

// OpenCmap implements System.
func (host) OpenCmap() (Map, error) {
	lib, err := libraries()
	if err != nil {
		return nil, err
	}
	c := &cmapConn{lib: lib}
	if err := codeError(lib.cmapInitialize(&c.handle)); err != nil {
		return nil, err
	}
	return c, nil
}

// Close implements Map.
func (c *cmapConn) Close() error { return codeError(c.lib.cmapFinalize(c.handle)) }

// Get implements Map. A value that has grown between the question for its length and that for itself is asked for again.
func (c *cmapConn) Get(key string) (Value, error) {
	name := bytesOf(key)
	for range 3 {
		var size uintptr
		var kind int32
		if err := codeError(c.lib.cmapGet(c.handle, name, nil, &size, &kind)); err != nil {
			return Value{}, err
		}
		if size > maxValue {
			return Value{}, fmt.Errorf("%w: a value of %d bytes", ErrInvalid, size)
		}
		buf := make([]byte, size+1)
		err := codeError(c.lib.cmapGet(c.handle, name, unsafe.SliceData(buf), &size, &kind))
		if err == LibraryError(csErrInvalid) {
			continue
		}
		if err != nil {
			return Value{}, err
		}
		return valueOf(kind, buf[:min(size, uintptr(len(buf)))]), nil
	}
	return Value{}, ErrTryAgain
}

// valueOf reads a value in the host's byte order, which is little endian on both processors.
func valueOf(kind int32, b []byte) Value {
	var full [8]byte
	copy(full[:], b)
	n := binary.NativeEndian.Uint64(full[:])
	switch kind {
	case cmapInt8:
		return IntValue(int64(int8(n)))
	case cmapInt16:
		return IntValue(int64(int16(n)))
	case cmapInt32:
		return IntValue(int64(int32(n)))
	case cmapInt64:
		return IntValue(int64(n))
	case cmapUint8, cmapUint16, cmapUint32, cmapUint64:
		return UintValue(n)
	case cmapFloat:
		return TextValue(strconv.FormatFloat(float64(math.Float32frombits(uint32(n))), 'g', -1, 32))
	case cmapDouble:
		return TextValue(strconv.FormatFloat(math.Float64frombits(n), 'g', -1, 64))
	case cmapString:
		b, _, _ = bytes.Cut(b, []byte{0})
		return TextValue(string(b))
	}
	return TextValue(fmt.Sprintf("%q", b))
}

// Keys implements Map.
func (c *cmapConn) Keys(prefix string, limit int) ([]string, error) {
	var iter uint64
	// An empty prefix, for all keys, is a null pointer.
	var p *byte
	if prefix != "" {
		p = bytesOf(prefix)
	}
	if err := codeError(c.lib.cmapIterInit(c.handle, p, &iter)); err != nil {
		return nil, err
	}
	defer c.lib.cmapIterFinalize(c.handle, iter)
	var keys []string
	for len(keys) < limit {
		var name [maxKey + 1]byte
		var size uintptr
		var kind int32
		code := c.lib.cmapIterNext(c.handle, iter, &name[0], &size, &kind)
		if code == csErrNoSection {
			break
		}
		if err := codeError(code); err != nil {
			return nil, err
		}
		key, _, _ := bytes.Cut(name[:], []byte{0})
		keys = append(keys, string(key))
	}
	return keys, nil
}
