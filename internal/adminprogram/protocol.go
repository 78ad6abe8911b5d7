package adminprogram

import (
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// What libvirt's admin_protocol.x calls ADMIN_PROGRAM and ADMIN_PROTOCOL_VERSION.
const (
	ProgramNumber uint32 = 0x06900690
	Version       uint32 = 1
)

// The procedures, admin_procedure.
const (
	ProcConnectOpen       int32 = 1
	ProcConnectClose      int32 = 2
	ProcGetLibVersion     int32 = 3
	ProcListServers       int32 = 4
	ProcLookupServer      int32 = 5
	ProcGetThreadpool     int32 = 6
	ProcSetThreadpool     int32 = 7
	ProcListClients       int32 = 8
	ProcLookupClient      int32 = 9
	ProcClientInfo        int32 = 10
	ProcClientClose       int32 = 11
	ProcGetClientLimits   int32 = 12
	ProcSetClientLimits   int32 = 13
	ProcGetLoggingOutputs int32 = 14
	ProcGetLoggingFilters int32 = 15
	ProcSetLoggingOutputs int32 = 16
	ProcSetLoggingFilters int32 = 17
	ProcUpdateTLSFiles    int32 = 18
	ProcSetDaemonTimeout  int32 = 19
)

const (
	maxClientList = 16384 // ADMIN_CLIENT_LIST_MAX
	maxParams     = 32    // ADMIN_SERVER_THREADPOOL_PARAMETERS_MAX, ADMIN_SERVER_CLIENT_LIMITS_MAX
	maxField      = 79    // VIR_TYPED_PARAM_FIELD_LENGTH less the NUL, bytes

	transportUnix uint32 = 0 // VIR_CLIENT_TRANS_UNIX

	// libVersion is that of libvirt, 9.0.0, whose daemon this one behaves like.
	libVersion uint64 = 9_000_000
)

// maxArgs bounds the arguments of a call, in bytes: a name, as many parameters as
// there may be, each with a field of the longest kind and a text, and flags. What
// is longer cannot be decoded here, although one text alone may be 4 MiB in libvirt
// (ADMIN_STRING_MAX).
const maxArgs = 64 << 10

// The types of parameters, virTypedParameterType.
const (
	typeInt     uint32 = 1
	typeUint    uint32 = 2
	typeLlong   uint32 = 3
	typeUllong  uint32 = 4
	typeDouble  uint32 = 5
	typeBoolean uint32 = 6
	typeString  uint32 = 7
)

var typeNames = map[uint32]string{
	typeInt: "int", typeUint: "uint", typeLlong: "llong", typeUllong: "ullong",
	typeDouble: "double", typeBoolean: "boolean", typeString: "string",
}

// param is admin_typed_param, with a value of the types that are looked at.
type param struct {
	field string
	kind  uint32
	value uint32 // of typeUint
}

// decodeParams reads an array of parameters; false if it cannot be read.
func decodeParams(d *rpc.Decoder) ([]param, bool) {
	n := d.Uint32()
	if !d.OK() || n > maxParams {
		return nil, false
	}
	list := make([]param, 0, n)
	for range n {
		p := param{field: string(d.String(maxArgs)), kind: d.Uint32()}
		switch p.kind {
		case typeInt, typeUint, typeBoolean:
			p.value = d.Uint32()
		case typeLlong, typeUllong, typeDouble:
			d.Uint64()
		case typeString:
			d.String(maxArgs)
		default:
			return nil, false
		}
		if !d.OK() {
			return nil, false
		}
		list = append(list, p)
	}
	return list, true
}

// paramWriter appends an array of parameters whose number is known.
type paramWriter struct{ e *rpc.Encoder }

func writeParams(e *rpc.Encoder, n int) paramWriter {
	e.Uint32(uint32(n))
	return paramWriter{e}
}

func (w paramWriter) uint(field string, v uint32) { w.number(field, typeUint, v) }

func (w paramWriter) number(field string, kind, v uint32) {
	w.e.String(field)
	w.e.Uint32(kind)
	w.e.Uint32(v)
}

func (w paramWriter) text(field, v string) {
	w.e.String(field)
	w.e.Uint32(typeString)
	w.e.String(v)
}

// clientArgs is what names a client: admin_nonnull_client. Of it only the server
// and the id count.
type clientArgs struct {
	server string
	id     uint64
}

func (a *clientArgs) decode(d *rpc.Decoder) {
	a.server = string(d.String(maxArgs))
	a.id = d.Uint64()
	d.Uint64() // timestamp
	d.Uint32() // transport
}
