package rpc

import "encoding/binary"

// Sizes in bytes, from src/rpc/virnetprotocol.x.
const (
	lenSize    = 4                      // VIR_NET_MESSAGE_LEN_MAX: the length word, which counts itself
	headerSize = 24                     // VIR_NET_MESSAGE_HEADER_MAX
	minMessage = lenSize + headerSize   // a message without payload
	maxMessage = lenSize + 32*1024*1024 // VIR_NET_MESSAGE_MAX does not count the length word
	maxString  = 4 * 1024 * 1024        // VIR_NET_MESSAGE_STRING_MAX
	maxFDs     = 32                     // VIR_NET_MESSAGE_NUM_FDS_MAX
)

// msgType is virNetMessageType.
type msgType uint32

const (
	typeCall        msgType = 0
	typeReply       msgType = 1
	typeMessage     msgType = 2
	typeCallWithFDs msgType = 4
)

// virNetMessageStatus.
const (
	statusOK    uint32 = 0
	statusError uint32 = 1
)

// The keepalive program, src/rpc/virkeepaliveprotocol.x.
const (
	keepaliveProgram uint32 = 0x6b656570
	keepaliveVersion uint32 = 1
	keepalivePing    int32  = 1
	keepalivePong    int32  = 2
)

// header is virNetMessageHeader.
type header struct {
	program   uint32
	version   uint32
	procedure int32
	typ       msgType
	serial    uint32
	status    uint32
}

// parseHeader reads the header at the start of b, which has headerSize bytes.
func parseHeader(b []byte) header {
	_ = b[headerSize-1]
	return header{
		program:   binary.BigEndian.Uint32(b[0:]),
		version:   binary.BigEndian.Uint32(b[4:]),
		procedure: int32(binary.BigEndian.Uint32(b[8:])),
		typ:       msgType(binary.BigEndian.Uint32(b[12:])),
		serial:    binary.BigEndian.Uint32(b[16:]),
		status:    binary.BigEndian.Uint32(b[20:]),
	}
}

// isKeepalive says whether h belongs to the keepalive protocol. libvirt looks
// at the program, version and type only (src/rpc/virkeepalive.c).
func (h header) isKeepalive() bool {
	return h.program == keepaliveProgram && h.version == keepaliveVersion && h.typ == typeMessage
}

func (h header) isCall() bool { return h.typ == typeCall || h.typ == typeCallWithFDs }

// appendMessage appends room for a length and h to b. finishMessage puts the length in.
func appendMessage(b []byte, h header) []byte {
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, h.program)
	b = binary.BigEndian.AppendUint32(b, h.version)
	b = binary.BigEndian.AppendUint32(b, uint32(h.procedure))
	b = binary.BigEndian.AppendUint32(b, uint32(h.typ))
	b = binary.BigEndian.AppendUint32(b, h.serial)
	return binary.BigEndian.AppendUint32(b, h.status)
}

// finishMessage writes the length of the message that is all of b. A message
// never grows beyond maxMessage here: its strings come from messages that are
// smaller, or are bounded by Error.
func finishMessage(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(len(b)))
}
