//go:build linux && (amd64 || arm64)

package corosync

import "slices"

var quorumRoutes routes[*quorumConn]

// quorumConn is a handle of libquorum, with what it has said so far: it reports membership and quorum separately.
type quorumConn struct {
	lib     *library
	handle  uint64
	free    bool // there is no provider
	self    Member
	deliver func(Event)
	ring    Ring
	*readiness
}

// OpenQuorum implements System.
func (host) OpenQuorum(deliver func(Event)) (_ Conn, err error) {
	lib, err := libraries()
	if err != nil {
		return nil, err
	}
	c := &quorumConn{lib: lib, deliver: deliver}
	callbacks, kind := lib.quorumCallbacks, uint32(0)
	if err := codeError(lib.quorumInitialize(&c.handle, quorumModelOne, &callbacks, &kind, 0)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	c.free = kind == quorumFree
	var fd, quorate int32
	if err := codeError(lib.quorumFdGet(c.handle, &fd)); err != nil {
		return nil, err
	}
	if c.readiness, err = watch(int(fd)); err != nil {
		return nil, err
	}
	if err := codeError(lib.quorumGetquorate(c.handle, &quorate)); err != nil {
		return nil, err
	}
	c.ring.Quorate = quorate != 0 || c.free
	quorumRoutes.set(c.handle, c)
	return c, codeError(lib.quorumTrackstart(c.handle, csTrackCurrent|csTrackChanges))
}

// Self implements Conn. The quorum service does not tell.
func (c *quorumConn) Self() Member { return c.self }

// Dispatch implements Conn.
func (c *quorumConn) Dispatch() error {
	defer c.rearm()
	return dispatchSome(func() int32 { return c.lib.quorumDispatch(c.handle, csDispatchOneNonblocking) })
}

// Close implements Conn.
func (c *quorumConn) Close() error {
	if c.readiness != nil {
		c.end()
	}
	err := codeError(c.lib.quorumFinalize(c.handle))
	quorumRoutes.drop(c.handle)
	return err
}

// maxNodes is more than corosync can have in a ring (PROCESSOR_COUNT_MAX is 384).
const maxNodes = 1024

// quorumNotify is quorum_v1_quorum_notification_fn_t. The ring id is a struct of 16 bytes by value: on amd64 and arm64 two
// registers, with the node in the lower half of the first.
func quorumNotify(handle uint64, quorate uint32, ringNode, ringSeq uint64, n uint32, members *uint32) {
	c, ok := quorumRoutes.get(handle)
	if !ok {
		return
	}
	c.ring.Quorate = quorate != 0 || c.free
	c.ring.ID = RingID{Node: uint32(ringNode), Seq: ringSeq}
	c.ring.Members = sorted(members, n)
	c.deliver(c.ring.clone())
}

// quorumNodelist is quorum_v1_nodelist_notification_fn_t.
func quorumNodelist(handle uint64, ringNode, ringSeq uint64, nMembers uint32, members *uint32, nJoined uint32, joined *uint32, nLeft uint32, left *uint32) {
	c, ok := quorumRoutes.get(handle)
	if !ok {
		return
	}
	c.ring.ID = RingID{Node: uint32(ringNode), Seq: ringSeq}
	c.ring.Members = sorted(members, nMembers)
	ring := c.ring.clone()
	ring.Joined, ring.Left = sorted(joined, nJoined), sorted(left, nLeft)
	c.deliver(ring)
}

func sorted(first *uint32, n uint32) []uint32 {
	list := listOf(first, uint64(n), maxNodes)
	slices.Sort(list)
	return list
}
