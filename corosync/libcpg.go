//go:build linux && (amd64 || arm64)

package corosync

import (
	"os"
	"unsafe"
)

var cpgRoutes routes[func(Event)]

// cpgConn is a handle of libcpg.
type cpgConn struct {
	lib    *library
	handle uint64
	name   cpgName
	self   Member
	max    int
	*readiness
}

// OpenCPG implements System.
func (host) OpenCPG(group string, deliver func(Event)) (_ CPG, err error) {
	lib, err := libraries()
	if err != nil {
		return nil, err
	}
	c := &cpgConn{lib: lib, self: Member{PID: uint32(os.Getpid())}}
	c.name.length = uint32(copy(c.name.value[:], group))
	callbacks := lib.cpgCallbacks
	if err := codeError(lib.cpgInitialize(&c.handle, &callbacks)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	var fd int32
	if err := codeError(lib.cpgFdGet(c.handle, &fd)); err != nil {
		return nil, err
	}
	if c.readiness, err = watch(int(fd)); err != nil {
		return nil, err
	}
	if err := codeError(lib.cpgLocalGet(c.handle, &c.self.Node)); err != nil {
		return nil, err
	}
	var size uint32
	if err := codeError(lib.cpgMaxMsgSize(c.handle, &size)); err != nil {
		return nil, err
	}
	c.max = int(size)
	cpgRoutes.set(c.handle, deliver)
	return c, codeError(lib.cpgJoin(c.handle, &c.name))
}

func (c *cpgConn) Self() Member    { return c.self }
func (c *cpgConn) MaxMessage() int { return c.max }

// Dispatch implements Conn.
func (c *cpgConn) Dispatch() error {
	defer c.rearm()
	return dispatchSome(func() int32 { return c.lib.cpgDispatch(c.handle, csDispatchOneNonblocking) })
}

// Send implements CPG.
func (c *cpgConn) Send(data []byte) error {
	iov := iovec{base: unsafe.SliceData(data), size: uintptr(len(data))}
	return codeError(c.lib.cpgMcast(c.handle, cpgTypeAgreed, &iov, 1))
}

// Close implements Conn. Leaving before finalizing makes the others hear of a leave and not of a death.
func (c *cpgConn) Close() error {
	if c.readiness != nil {
		c.end()
	}
	_ = c.lib.cpgLeave(c.handle, &c.name)
	err := codeError(c.lib.cpgFinalize(c.handle))
	cpgRoutes.drop(c.handle)
	return err
}

// cpgDeliver is cpg_deliver_fn_t.
func cpgDeliver(handle uint64, _ *cpgName, nodeid, pid uint32, msg *byte, size uintptr) {
	deliver, ok := cpgRoutes.get(handle)
	if !ok {
		return
	}
	if size > maxDelivered { // it would be dropped anyway
		return
	}
	deliver(Message{From: Member{Node: nodeid, PID: pid}, Data: listOf(msg, uint64(size), maxDelivered)})
}

// maxDelivered is more than corosync sends in one piece.
const maxDelivered = 1 << 20

// cpgConfchg is cpg_confchg_fn_t.
func cpgConfchg(handle uint64, _ *cpgName, members *cpgAddress, nMembers uintptr, left *cpgAddress, nLeft uintptr, joined *cpgAddress, nJoined uintptr) {
	deliver, ok := cpgRoutes.get(handle)
	if !ok {
		return
	}
	var m Membership
	for _, a := range listOf(members, uint64(nMembers), cpgMembersMax) {
		m.Members = append(m.Members, Member{Node: a.nodeid, PID: a.pid})
	}
	m.Left, m.Joined = changes(left, nLeft), changes(joined, nJoined)
	deliver(m)
}

func changes(first *cpgAddress, n uintptr) []Change {
	var all []Change
	for _, a := range listOf(first, uint64(n), cpgMembersMax) {
		all = append(all, Change{Member: Member{Node: a.nodeid, PID: a.pid}, Reason: Reason(a.reason)})
	}
	return all
}
