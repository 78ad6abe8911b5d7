package holder

import (
	"encoding/binary"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// oobLen is the room for the control message of maxFDs descriptors.
var oobLen = unix.CmsgSpace(maxFDs * 4)

// appendRights is unix.UnixRights without its allocation: this is on the way of
// every lock.
func appendRights(b []byte, fds []int) []byte {
	if len(fds) == 0 {
		return nil
	}
	start := len(b)
	for range unix.CmsgSpace(len(fds) * 4) {
		b = append(b, 0)
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[start]))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(len(fds) * 4))
	data := b[start+unix.CmsgLen(0):]
	for i, fd := range fds {
		binary.NativeEndian.PutUint32(data[4*i:], uint32(fd))
	}
	return b
}

// appendReceived appends the descriptors of a received control message to fds.
// They are ours to close whatever else is wrong with the message.
func appendReceived(fds []int, oob []byte) []int {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		n := int(h.Len)
		if n < unix.CmsgLen(0) || n > len(oob) {
			return fds
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for data := oob[unix.CmsgLen(0):n]; len(data) >= 4; data = data[4:] {
				fds = append(fds, int(binary.NativeEndian.Uint32(data)))
			}
		}
		oob = oob[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(oob)):]
	}
	return fds
}

// packet is one received message.
type packet struct {
	data []byte
	fds  []int // close-on-exec, owned by the receiver of the packet
	// cut is set when the kernel could not install all descriptors that came
	// with it (MSG_CTRUNC of recvmsg(2)); it installs the first ones, in order.
	cut bool
}

// receiver has the buffers for receiving; data and fds of a packet are valid
// until the next call.
type receiver struct {
	buf, oob []byte
	fds      []int
}

func newReceiver() *receiver {
	return &receiver{buf: make([]byte, maxMessage+1), oob: make([]byte, oobLen), fds: make([]int, 0, maxFDs)}
}

// receive does not wait: EAGAIN if there is nothing. EPIPE at the end, which a
// message of length 0 cannot be told from; nobody sends one. That the other end was closed with something unread
// in it is no end: the kernel says so once (ECONNRESET), and before it gives what that end had sent.
func (r *receiver) receive(fd int) (packet, error) {
	for {
		n, oobn, flags, _, err := unix.Recvmsg(fd, r.buf, r.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNRESET {
			continue
		}
		if err != nil {
			return packet{}, err
		}
		r.fds = appendReceived(r.fds[:0], r.oob[:oobn])
		if n == 0 || flags&unix.MSG_TRUNC != 0 || n > maxMessage {
			closeAll(r.fds)
			if n == 0 {
				return packet{}, unix.EPIPE
			}
			return packet{}, errMalformed
		}
		return packet{data: r.buf[:n], fds: r.fds, cut: flags&unix.MSG_CTRUNC != 0}, nil
	}
}

// send sends one message, and does not wait.
func send(fd int, data, oob []byte) error {
	for {
		_, err := unix.SendmsgN(fd, data, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// prepare gives a connected socket room for the longest message in each
// direction, whatever net.core.wmem_default is.
func prepare(fd int) {
	const room = 8 * maxMessage
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room) != nil { // needs CAP_NET_ADMIN
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, room)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// link is the daemon's end of the connection.
type link struct {
	fd   int // valid until file is closed
	file *os.File
	conn syscall.RawConn
	rcv  *receiver
	pid  int // of the holder
	// limit is how many descriptors it holds at most; 0 if that is not known.
	limit int
	// full is set when it has refused something, until it has kept all of that.
	full bool
	// version is the one that both ends speak; 0 until the holder has said hello.
	version uint16
}

func newLink(fd int) (*link, error) {
	file := os.NewFile(uintptr(fd), "holder")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &link{fd: fd, file: file, conn: conn, rcv: newReceiver()}, nil
}

// receive waits for a message, until file is closed or its deadline is over.
func (l *link) receive() (p packet, err error) {
	waitErr := l.conn.Read(func(fd uintptr) bool {
		p, err = l.rcv.receive(int(fd))
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return packet{}, waitErr
	}
	return p, err
}

// call is one request and its reply, for the time before other goroutines use
// the link.
func (l *link) call(seq uint32, request []byte, op uint8) (header, *cursor, packet, error) {
	if err := l.send(request); err != nil {
		return header{}, nil, packet{}, err
	}
	return l.reply(seq, op)
}

func (l *link) send(request []byte) error {
	err := send(l.fd, request, nil)
	runtime.KeepAlive(l.file)
	return err
}

// reply waits for the reply to the request with this number.
func (l *link) reply(seq uint32, op uint8) (header, *cursor, packet, error) {
	p, err := l.receive()
	if err != nil {
		return header{}, nil, packet{}, err
	}
	h, c, err := decodeHeader(p.data)
	if err == nil && (h.seq != seq || h.op != op) {
		err = errMalformed
	}
	if err != nil {
		closeAll(p.fds)
		return header{}, nil, packet{}, err
	}
	return h, c, p, nil
}
