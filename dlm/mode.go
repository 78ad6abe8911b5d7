package dlm

import (
	"fmt"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// Mode is how much of a resource a lock has. The numbers are the kernel's.
type Mode uint8

// The six modes, from the weakest to the strongest.
const (
	NL Mode = iota // null: conflicts with nothing; keeps the resource and lets its LVB be read
	CR             // concurrent read
	CW             // concurrent write
	PR             // protected read: the usual shared lock
	PW             // protected write
	EX             // exclusive
)

var modeNames = [...]string{"NL", "CR", "CW", "PR", "PW", "EX"}

// String is the mode's usual two letters, or Mode(n) for a number that is no mode.
func (m Mode) String() string {
	if m.valid() {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

func (m Mode) valid() bool { return m <= EX }

// compatible has a bit for each mode that may be granted beside the index (the compatibility matrix of fs/dlm/lock.c,
// which is symmetric).
var compatible = [...]uint8{
	NL: 0b111111,
	CR: 0b011111,
	CW: 0b000111,
	PR: 0b001011,
	PW: 0b000011,
	EX: 0b000001,
}

// Compatible reports whether locks in the modes m and o may be granted on one resource at the same time. A number that
// is no mode is compatible with nothing.
func (m Mode) Compatible(o Mode) bool {
	return m.valid() && o.valid() && compatible[m]&(1<<o) != 0
}

// LVBLen is the size of a lock value block in bytes.
const LVBLen = abi.LVBLen

// LVB is a lock value block: 32 bytes the cluster keeps with a resource as long as anyone has a lock on it, a NL lock
// included. It is a hint and never proof of anything: see the package comment for when it gets lost.
type LVB [LVBLen]byte

// The most bytes a name may have (DLM_RESNAME_MAXLEN, DLM_LOCKSPACE_LEN).
const (
	MaxResourceName  = abi.ResNameMax
	MaxLockspaceName = abi.LockspaceMax
)
