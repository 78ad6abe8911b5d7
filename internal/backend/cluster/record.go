package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// record is what the holder of an exclusive lock publishes of itself in the
// lock's value block. It is for people who were refused, and never proof of
// anything.
//
// Its 32 bytes, numbers in network order: version 1, node 4, pid 4, time 4
// (seconds since 1970, unsigned), uuid 16, checksum 3 (the lower bytes of the
// CRC-32C of all before). A block of zeroes is that of a resource of which nobody
// has published anything.
type record struct {
	node  uint32 // of the cluster; 0 if the holder did not know its own
	owner locking.Owner
	since time.Time // of the grant, in seconds
}

// recordVersion is the first byte. Any other layout needs another one, and 0 is
// no record.
const recordVersion = 0xa1

// Where the parts are.
const (
	recordNode  = 1
	recordPID   = 5
	recordSince = 9
	recordUUID  = 13
	recordSum   = 29
)

// Why a value block tells nothing.
var (
	errNoRecord      = errors.New("nobody has published anything")
	errRecordVersion = errors.New("a record of another version")
	errRecordDamaged = errors.New("a damaged record")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) [3]byte {
	sum := crc32.Checksum(b, castagnoli)
	return [3]byte{byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

// encode makes the value block. What does not fit - the owner's name and id - is
// left out; a time before 1970 or after 2106 becomes the nearest one that fits.
func (r record) encode() (b dlm.LVB) {
	b[0] = recordVersion
	binary.BigEndian.PutUint32(b[recordNode:], r.node)
	binary.BigEndian.PutUint32(b[recordPID:], uint32(r.owner.PID))
	binary.BigEndian.PutUint32(b[recordSince:], uint32(min(max(r.since.Unix(), 0), math.MaxUint32)))
	copy(b[recordUUID:recordSum], r.owner.UUID[:])
	sum := checksum(b[:recordSum])
	copy(b[recordSum:], sum[:])
	return b
}

// decodeRecord reads a value block, which may have been written by anything.
func decodeRecord(b dlm.LVB) (record, error) {
	switch {
	case b == dlm.LVB{}:
		return record{}, errNoRecord
	case [3]byte(b[recordSum:]) != checksum(b[:recordSum]):
		return record{}, errRecordDamaged
	case b[0] != recordVersion:
		return record{}, fmt.Errorf("%w: %#x", errRecordVersion, b[0])
	}
	r := record{
		node:  binary.BigEndian.Uint32(b[recordNode:]),
		owner: locking.Owner{PID: int32(binary.BigEndian.Uint32(b[recordPID:]))},
		since: time.Unix(int64(binary.BigEndian.Uint32(b[recordSince:])), 0),
	}
	copy(r.owner.UUID[:], b[recordUUID:recordSum])
	return r, nil
}

// holder is the record for a refusal.
func (r record) holder() locking.RemoteHolder {
	return locking.RemoteHolder{
		Holder: locking.Holder{Owner: r.owner, Mode: locking.Exclusive, Since: r.since},
		Node:   r.node,
	}
}
