// Package abi is the byte format in which Linux and a program talk about DLM locks: what is written to and read from
// /dev/dlm-control and /dev/dlm_<lockspace>.
//
// Facts are from include/uapi/linux/dlm_device.h, dlmconstants.h and dlm.h, and from fs/dlm/user.c of Linux 6.1. The
// structs keep the kernel's names, in Go's spelling, and its layout for 64-bit programs (is64bit = 1); pointers are
// 64-bit numbers, because to the kernel they are only values it hands back. A 32-bit program on a 64-bit kernel may
// use the same format; a 32-bit kernel may not, and is not supported.
package abi

import (
	"errors"
	"fmt"
	"structs"
	"unsafe"
)

// The version of the device interface this package speaks (DLM_DEVICE_VERSION_*). The kernel refuses another major
// with EBADE; the patch level is not checked, and 0 is what we send.
const (
	VersionMajor = 6
	VersionMinor = 0
)

// Sizes, in bytes.
const (
	LVBLen        = 32  // DLM_USER_LVB_LEN
	ResNameMax    = 64  // DLM_RESNAME_MAXLEN
	LockspaceMax  = 64  // DLM_LOCKSPACE_LEN
	HeaderSize    = 16  // struct dlm_write_request up to its union
	RequestSize   = 120 // sizeof(struct dlm_write_request); a shorter write is EINVAL whatever the command
	RequestMax    = RequestSize + ResNameMax
	ResultSize    = 72                  // sizeof(struct dlm_lock_result)
	ResultMax     = ResultSize + LVBLen // what one read returns at most
	lspaceNameOff = HeaderSize + 8
)

// Commands (DLM_USER_*).
const (
	CmdLock            = 1
	CmdUnlock          = 2
	CmdCreateLockspace = 4
	CmdRemoveLockspace = 5
	CmdPurge           = 6
)

// Flags of lock and unlock requests (DLM_LKF_*).
const (
	FlagNoQueue     = 0x00000001
	FlagCancel      = 0x00000002
	FlagConvert     = 0x00000004
	FlagValBlk      = 0x00000008
	FlagQueCvt      = 0x00000010
	FlagIvValBlk    = 0x00000020
	FlagPersistent  = 0x00000080
	FlagExpedite    = 0x00000400
	FlagNoQueueBast = 0x00000800
	FlagOrphan      = 0x00004000
	FlagForceUnlock = 0x00020000
)

// Flags of lockspaces.
const (
	LspaceNewExcl   = 8 // DLM_LSFL_NEWEXCL: creating one that exists is EEXIST
	LspaceForceFree = 2 // DLM_USER_LSFLG_FORCEFREE: removing does not look for locks
)

// Statuses in a result that are not errno values.
const (
	StatusCancel = -0x10001 // -DLM_ECANCEL
	StatusUnlock = -0x10002 // -DLM_EUNLOCK
)

// SbfValNotValid in Lksb.Flags says that the LVB is not valid (DLM_SBF_VALNOTVALID).
const SbfValNotValid = 0x02

// WriteHeader is struct dlm_write_request up to its union.
type WriteHeader struct {
	_       structs.HostLayout
	Version [3]uint32
	Cmd     uint8
	Is64bit uint8
	Unused  [2]uint8
}

// LockParams is struct dlm_lock_params without its flexible name.
type LockParams struct {
	_         structs.HostLayout
	Mode      uint8
	Namelen   uint8
	Unused    uint16
	Flags     uint32
	Lkid      uint32
	Parent    uint32
	Xid       uint64
	Timeout   uint64
	Castparam uint64
	Castaddr  uint64
	Bastparam uint64
	Bastaddr  uint64
	Lksb      uint64
	Lvb       [LVBLen]byte
}

// LspaceParams is struct dlm_lspace_params without its flexible name.
type LspaceParams struct {
	_     structs.HostLayout
	Flags uint32
	Minor uint32
}

// PurgeParams is struct dlm_purge_params.
type PurgeParams struct {
	_      structs.HostLayout
	Nodeid uint32
	Pid    uint32
}

// Lksb is struct dlm_lksb as it lies in a result.
type Lksb struct {
	_      structs.HostLayout
	Status int32
	Lkid   uint32
	Flags  uint8
	_      [7]uint8
	Lvbptr uint64
}

// LockResult is struct dlm_lock_result.
type LockResult struct {
	_            structs.HostLayout
	Version      [3]uint32
	Length       uint32
	UserAstaddr  uint64
	UserAstparam uint64
	UserLksb     uint64
	Lksb         Lksb
	BastMode     uint8
	Unused       [3]uint8
	LvbOffset    uint32
}

// bytesOf is the memory of one of the structs above. They have no Go pointers, so copying bytes in and out is all
// that encoding is, in the host's byte order.
func bytesOf[T any](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

func header(buf []byte, cmd uint8) {
	h := WriteHeader{Version: [3]uint32{VersionMajor, VersionMinor, 0}, Cmd: cmd, Is64bit: 1}
	copy(buf, bytesOf(&h))
}

// EncodeLock makes the write for CmdLock or CmdUnlock. It sets p.Namelen. The name is at most ResNameMax bytes; that is
// the caller's to check.
func EncodeLock(cmd uint8, p LockParams, name string) []byte {
	return EncodeLockInto(nil, cmd, p, name)
}

// EncodeLockInto is EncodeLock in the memory of buf, if that has room.
func EncodeLockInto(buf []byte, cmd uint8, p LockParams, name string) []byte {
	n := RequestSize + len(name)
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	clear(buf)
	header(buf, cmd)
	p.Namelen = uint8(len(name))
	copy(buf[HeaderSize:], bytesOf(&p))
	copy(buf[RequestSize:], name)
	return buf
}

// EncodeLspace makes the write for CmdCreateLockspace or CmdRemoveLockspace. The name is at most LockspaceMax bytes.
func EncodeLspace(cmd uint8, flags, minor uint32, name string) []byte {
	buf := make([]byte, RequestSize)
	header(buf, cmd)
	p := LspaceParams{Flags: flags, Minor: minor}
	copy(buf[HeaderSize:], bytesOf(&p))
	copy(buf[lspaceNameOff:], name)
	return buf
}

// EncodePurge makes the write for CmdPurge.
func EncodePurge(nodeid, pid uint32) []byte {
	buf := make([]byte, RequestSize)
	header(buf, CmdPurge)
	p := PurgeParams{Nodeid: nodeid, Pid: pid}
	copy(buf[HeaderSize:], bytesOf(&p))
	return buf
}

// Request is a decoded write. Of Lock, Lspace and Purge, Cmd says which one has meaning.
type Request struct {
	Cmd    uint8
	Lock   LockParams
	Lspace LspaceParams
	Purge  PurgeParams
	Name   string
}

// Errors of decoding.
var (
	ErrSize    = errors.New("size out of range")
	ErrVersion = errors.New("version is not 6.0")
	ErrFormat  = errors.New("malformed")
)

// DecodeRequest is the kernel's side of the Encode functions; the simulation uses it.
func DecodeRequest(buf []byte) (Request, error) {
	var r Request
	if len(buf) < RequestSize || len(buf) > RequestMax {
		return r, fmt.Errorf("request of %d bytes: %w", len(buf), ErrSize)
	}
	var h WriteHeader
	copy(bytesOf(&h), buf)
	if h.Version[0] != VersionMajor || h.Version[1] > VersionMinor {
		return r, fmt.Errorf("request: %w", ErrVersion)
	}
	if h.Is64bit != 1 {
		return r, fmt.Errorf("request of a 32-bit program: %w", ErrFormat)
	}
	r.Cmd = h.Cmd
	switch h.Cmd {
	case CmdLock, CmdUnlock:
		copy(bytesOf(&r.Lock), buf[HeaderSize:])
		if RequestSize+int(r.Lock.Namelen) > len(buf) {
			return r, fmt.Errorf("request with a name beyond its end: %w", ErrFormat)
		}
		r.Name = string(buf[RequestSize : RequestSize+int(r.Lock.Namelen)])
	case CmdCreateLockspace, CmdRemoveLockspace:
		copy(bytesOf(&r.Lspace), buf[HeaderSize:])
		name := buf[lspaceNameOff:]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		r.Name = string(name)
	case CmdPurge:
		copy(bytesOf(&r.Purge), buf[HeaderSize:])
	default:
		return r, fmt.Errorf("request with command %d: %w", h.Cmd, ErrFormat)
	}
	return r, nil
}

// EncodeResult makes what one read returns. A nil lvb leaves the LVB out.
func EncodeResult(r LockResult, lvb *[LVBLen]byte) []byte {
	r.Version = [3]uint32{VersionMajor, VersionMinor, 2}
	r.Length, r.LvbOffset = ResultSize, 0
	if lvb != nil {
		r.Length, r.LvbOffset = ResultMax, ResultSize
	}
	buf := make([]byte, r.Length)
	copy(buf, bytesOf(&r))
	if lvb != nil {
		copy(buf[ResultSize:], lvb[:])
	}
	return buf
}

// DecodeResult reads what one read returned. lvb is nil when there is none; otherwise it is a part of buf. Nothing in
// buf is trusted: a result that the kernel cannot have made is an error and never a panic.
func DecodeResult(buf []byte) (r LockResult, lvb []byte, err error) {
	if len(buf) < ResultSize {
		return r, nil, fmt.Errorf("result of %d bytes: %w", len(buf), ErrSize)
	}
	copy(bytesOf(&r), buf)
	if r.Version[0] != VersionMajor {
		return r, nil, fmt.Errorf("result: %w", ErrVersion)
	}
	if r.LvbOffset == 0 {
		return r, nil, nil
	}
	off := uint64(r.LvbOffset)
	if off < ResultSize || off+LVBLen > uint64(len(buf)) {
		return r, nil, fmt.Errorf("result with an LVB at %d of %d bytes: %w", off, len(buf), ErrFormat)
	}
	return r, buf[off : off+LVBLen], nil
}
