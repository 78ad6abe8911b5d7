package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Bounds of what guards tell each other.
const (
	maxMessage = 32 << 10
	maxFacts   = 256 // more nodes than any corosync cluster has
	// maxHeard bounds what is noted because others tell it, so that one that tells of ever other nodes leaves room for
	// what this host sees itself, and its messages can be sent.
	maxHeard = maxFacts / 2
	// maxLeft bounds, in milliseconds, what another node can make this one wait.
	maxLeft = int64(2 * time.Hour / time.Millisecond)
)

// version is of the messages. One with another version is understood as far as
// the fields are known; those of this version never change their meaning.
const version = 1

// message is what a guard tells all others, in regular intervals and when there
// is news. It comes back to its sender, which is the proof that this one is in
// the ring.
type message struct {
	Version int `json:"v"`
	// Sent is the sender's clock, in nanoseconds. Only the sender reads it.
	Sent int64 `json:"sent"`
	// Run tells the sender's messages from those of an earlier guard with its pid.
	Run uint64 `json:"run"`
	// Promise: owners of locks on this node are stopped when it loses the cluster.
	Promise  bool `json:"promise"`
	Watchdog bool `json:"watchdog,omitempty"` // the promise holds if the daemon dies, too
	// Needs is the LeastHoldOff of the sender, in milliseconds.
	Needs int64 `json:"needs"`
	// Leaving: the sender holds nothing, and takes nothing before it is heard of again.
	Leaving bool `json:"leaving,omitempty"`
	// Complete: Facts are all there are, as of the ring with number Ring and a
	// lockspace with the members Space.
	Complete bool     `json:"complete,omitempty"`
	Ring     uint64   `json:"ring"`
	Space    []uint32 `json:"space,omitempty"`
	Facts    []told   `json:"facts,omitempty"`
	// Dead are nodes that an operator has confirmed to be dead.
	Dead []uint32 `json:"dead,omitempty"`
}

// told is a vanished node.
type told struct {
	Node     uint32 `json:"node"`
	Left     int64  `json:"left"` // milliseconds of the hold-off, when it was sent
	Promised bool   `json:"promised"`
	// Unsure: the sender has not seen it vanish, or was away since.
	Unsure bool `json:"unsure,omitempty"`
	// Needs is what that node had said of itself; 0 if the sender has not heard it, or is of a version that does not tell.
	Needs int64 `json:"needs,omitempty"`
}

func encode(m message) ([]byte, error) {
	m.Version = version
	b, err := json.Marshal(m)
	if err == nil && len(b) > maxMessage {
		err = fmt.Errorf("a message of %d bytes", len(b))
	}
	return b, err
}

var errMessage = errors.New("not a message of a guard")

// decode reads a message of any version. What it returns is within bounds.
func decode(b []byte) (message, error) {
	var m message
	if len(b) > maxMessage {
		return m, fmt.Errorf("%w: %d bytes, where %d are the most", errMessage, len(b), maxMessage)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errMessage, err)
	}
	switch {
	case m.Version < 1:
		return message{}, fmt.Errorf("%w: version %d", errMessage, m.Version)
	case max(len(m.Facts), len(m.Dead), len(m.Space)) > maxFacts:
		return message{}, fmt.Errorf("%w: it names more than %d nodes", errMessage, maxFacts)
	}
	for i := range m.Facts {
		m.Facts[i].Left = min(max(m.Facts[i].Left, 0), maxLeft)
		m.Facts[i].Needs = min(max(m.Facts[i].Needs, 0), maxLeft)
	}
	m.Needs = min(max(m.Needs, 0), maxLeft)
	return m, nil
}
