package lockprogram

import "github.com/vmlockd/vmlockd/internal/rpc"

// What libvirt's lock_protocol.x calls VIR_LOCK_SPACE_PROTOCOL_PROGRAM and
// VIR_LOCK_SPACE_PROTOCOL_PROGRAM_VERSION.
const (
	ProgramNumber uint32 = 0xEA7BEEF
	Version       uint32 = 1
)

// The procedures, virLockSpaceProtocolProcedure.
const (
	ProcRegister        int32 = 1
	ProcRestrict        int32 = 2
	ProcNew             int32 = 3
	ProcCreateResource  int32 = 4
	ProcDeleteResource  int32 = 5
	ProcAcquireResource int32 = 6
	ProcReleaseResource int32 = 7
	ProcCreateLockspace int32 = 8
)

// The flags of ProcAcquireResource, virLockSpaceProtocolAcquireResourceFlags.
const (
	FlagShared     uint32 = 1
	FlagAutocreate uint32 = 2
)

const (
	maxString = 65536 // VIR_LOCK_SPACE_PROTOCOL_STRING_MAX, bytes
	uuidSize  = 16    // VIR_UUID_BUFLEN

	// maxArgs is the size of the longest arguments: two strings and flags.
	maxArgs = 2*(4+maxString) + 4
)

// ownerArgs is virLockSpaceProtocolRegisterArgs. The name is a part of the
// message that was decoded.
type ownerArgs struct {
	uuid  [uuidSize]byte
	name  []byte
	id    uint32
	pid   uint32
	flags uint32
}

func (a *ownerArgs) decode(d *rpc.Decoder) bool {
	copy(a.uuid[:], d.Opaque(uuidSize))
	a.name = d.String(maxString)
	a.id = d.Uint32()
	a.pid = d.Uint32()
	a.flags = d.Uint32()
	return d.OK()
}

// resourceArgs is what the four procedures about resources have:
// virLockSpaceProtocolAcquireResourceArgs and the like.
type resourceArgs struct {
	path  []byte
	name  []byte
	flags uint32
}

func (a *resourceArgs) decode(d *rpc.Decoder) bool {
	a.path = d.String(maxString)
	a.name = d.String(maxString)
	a.flags = d.Uint32()
	return d.OK()
}
