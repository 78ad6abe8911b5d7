// Package wire is the byte format of dlm_controld's sockets. Structs keep the names they have in
// dlm_controld/dlm_controld.h and dlm_controld/libdlmcontrol.h of dlm 4.2, in Go's spelling, with C's padding spelled
// out; numbers are in the byte order of the host.
package wire

import (
	"encoding/binary"
	"structs"
)

const (
	Magic   = 0xD13CD13C
	Version = 0x00010001 // the upper half must agree

	LockspaceLen = 64 // DLM_LOCKSPACE_LEN, linux/dlmconstants.h
)

// Commands (DLMC_CMD_*).
const (
	CmdDumpPlocks     = 2
	CmdLockspaceInfo  = 3
	CmdLockspaces     = 5
	CmdLockspaceNodes = 6
	CmdDumpStatus     = 13
	CmdDumpConfig     = 14
)

// Kinds of DlmcState (DLMC_STATE_*).
const (
	StateDaemon      = 1
	StateDaemonNode  = 2
	StateStartupNode = 3
)

// DlmcHeader is struct dlmc_header: every request, and the beginning of every answer but the one to DUMP_STATUS.
type DlmcHeader struct {
	_       structs.HostLayout
	Magic   uint32
	Version uint32
	Command uint32
	Option  uint32
	Len     uint32 // with the header itself
	Data    int32  // in an answer: a negative error number, or a count
	Flags   int32
	Unused2 int32
	Name    [LockspaceLen]byte // not terminated if it is that long
}

// DlmcState is struct dlmc_state: the answer to DUMP_STATUS is a row of these, each followed by StrLen bytes of text and
// BinLen bytes of something else.
type DlmcState struct {
	_      structs.HostLayout
	Type   uint32
	Flags  uint32
	Nodeid int32
	Data32 uint32
	Data64 uint32 // its name promises more
	StrLen uint32
	BinLen uint32
}

// DlmcNode is struct dlmc_node.
type DlmcNode struct {
	_            structs.HostLayout
	Nodeid       int32
	Flags        uint32
	AddedSeq     uint32
	RemovedSeq   uint32
	FailReason   int32
	Pad          [4]byte
	FailWalltime uint64
	FailMonotime uint64
}

// DlmcChange is struct dlmc_change.
type DlmcChange struct {
	_             structs.HostLayout
	MemberCount   int32
	JoinedCount   int32
	RemoveCount   int32
	FailedCount   int32
	WaitCondition int32
	WaitMessages  int32
	Seq           uint32
	CombinedSeq   uint32
}

// DlmcLockspace is struct dlmc_lockspace.
type DlmcLockspace struct {
	_        structs.HostLayout
	CgPrev   DlmcChange
	CgNext   DlmcChange
	Flags    uint32
	GlobalID uint32
	Name     [LockspaceLen + 1]byte
	Pad      [3]byte
}

// Sizes, in bytes. A test compares them with the structs.
const (
	HeaderSize    = 96
	StateSize     = 28
	NodeSize      = 40
	ChangeSize    = 32
	LockspaceSize = 140
)

// Append appends the bytes of v, which is a struct of this package or a slice of them.
func Append(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.NativeEndian, v)
	if err != nil {
		panic(err) // only for a type without a fixed size
	}
	return b
}

// Decode reads a struct of this package from the beginning of b. It is an error if b is too short.
func Decode[T any](b []byte) (v T, err error) {
	_, err = binary.Decode(b, binary.NativeEndian, &v)
	return v, err
}
