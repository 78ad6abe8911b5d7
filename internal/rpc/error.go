package rpc

import (
	"errors"
	"fmt"
	"strings"
)

// Code is a virErrorNumber (include/libvirt/virterror.h).
type Code int32

// The codes that a lock daemon answers with.
const (
	CodeInternal         Code = 1  // VIR_ERR_INTERNAL_ERROR
	CodeInvalidArg       Code = 8  // VIR_ERR_INVALID_ARG
	CodeOperationFailed  Code = 9  // VIR_ERR_OPERATION_FAILED
	CodeOperationDenied  Code = 29 // VIR_ERR_OPERATION_DENIED
	CodeSystem           Code = 38 // VIR_ERR_SYSTEM_ERROR
	CodeRPC              Code = 39 // VIR_ERR_RPC
	CodeOperationInvalid Code = 55 // VIR_ERR_OPERATION_INVALID
	CodeOperationTimeout Code = 68 // VIR_ERR_OPERATION_TIMEOUT
	CodeArgUnsupported   Code = 74 // VIR_ERR_ARGUMENT_UNSUPPORTED
	CodeResourceBusy     Code = 87 // VIR_ERR_RESOURCE_BUSY
	CodeNoServer         Code = 95 // VIR_ERR_NO_SERVER
	CodeNoClient         Code = 96 // VIR_ERR_NO_CLIENT
)

// Domain is a virErrorDomain: the part of libvirt that an error comes from.
type Domain int32

// The domains that a lock daemon answers with.
const (
	DomainNone      Domain = 0  // VIR_FROM_NONE
	DomainRPC       Domain = 7  // VIR_FROM_RPC
	DomainLockspace Domain = 51 // VIR_FROM_LOCKSPACE
	DomainAdmin     Domain = 62 // VIR_FROM_ADMIN
)

// levelError is VIR_ERR_ERROR of virErrorLevel.
const levelError = 2

// maxErrorText bounds each text of an error, in bytes. Names from a client may
// be 65,536 long, so nothing real is cut; libvirt's own bound is maxString.
const maxErrorText = 512 * 1024

// Error is virNetMessageError (src/rpc/virnetprotocol.x) without its parts
// about domains and networks, which no lock daemon fills. A text that is "" is
// sent as NULL.
type Error struct {
	Code    Code
	Domain  Domain
	Message string // what virsh prints
	Level   int32  // virErrorLevel; 0 is sent as 2, VIR_ERR_ERROR
	Str1    string // libvirt puts the format here ...
	Str2    string // ... and here what was formatted
	Str3    string
	Int1    int32 // errno for CodeSystem, otherwise mostly -1
	Int2    int32
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("libvirt error %d in domain %d", e.Code, e.Domain)
	}
	return e.Message
}

// formats is what libvirt puts in front of the text of an error
// (virErrorMsgStrings in src/util/virerror.c).
var formats = map[Code]string{
	CodeInternal:         "internal error: %s",
	CodeInvalidArg:       "invalid argument: %s",
	CodeOperationFailed:  "operation failed: %s",
	CodeOperationDenied:  "operation forbidden: %s",
	CodeOperationInvalid: "Requested operation is not valid: %s",
	CodeOperationTimeout: "Timed out during operation: %s",
	CodeArgUnsupported:   "argument unsupported: %s",
	CodeResourceBusy:     "resource busy: %s",
	CodeNoServer:         "Server not found: %s",
	CodeNoClient:         "Client not found: %s",
}

// NewError composes an error as libvirt does: the text comes after the words
// that libvirt has for the code, and once more alone in Str2.
func NewError(code Code, domain Domain, text string) *Error {
	format, ok := formats[code]
	if !ok {
		format = "%s"
	}
	return &Error{
		Code: code, Domain: domain, Level: levelError,
		Message: strings.Replace(format, "%s", text, 1),
		Str1:    format, Str2: text,
		Int1: -1, Int2: -1,
	}
}

// ErrDecode is for a Session to return when arguments cannot be read.
var ErrDecode error = NewError(CodeRPC, DomainRPC, "Unable to decode message payload")

// UnknownProcedure is for a Session to return.
func UnknownProcedure(procedure int32) error {
	return NewError(CodeRPC, DomainRPC, fmt.Sprintf("unknown procedure: %d", procedure))
}

func unknownProgram(h header) error {
	return NewError(CodeRPC, DomainRPC, fmt.Sprintf("Cannot find program %d version %d", h.program, h.version))
}

func unexpectedStatus(h header) error {
	return NewError(CodeRPC, DomainRPC, fmt.Sprintf("Unexpected message status %d", h.status))
}

// asError makes any error one that can be sent.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return NewError(CodeInternal, DomainRPC, err.Error())
}

// EncodeXDR appends e as virNetMessageError.
func (e *Error) EncodeXDR(enc *Encoder) {
	enc.Int32(int32(e.Code))
	enc.Int32(int32(e.Domain))
	enc.OptionalString(sendable(e.Message))
	if e.Level == 0 {
		enc.Int32(levelError)
	} else {
		enc.Int32(e.Level)
	}
	enc.Bool(false) // dom
	enc.OptionalString(sendable(e.Str1))
	enc.OptionalString(sendable(e.Str2))
	enc.OptionalString(sendable(e.Str3))
	enc.Int32(e.Int1)
	enc.Int32(e.Int2)
	enc.Bool(false) // net
}

// DecodeXDR reads a virNetMessageError.
func (e *Error) DecodeXDR(d *Decoder) {
	e.Code = Code(d.Int32())
	e.Domain = Domain(d.Int32())
	e.Message = d.OptionalString(maxString)
	e.Level = d.Int32()
	if d.Bool() { // dom: name, uuid, id
		d.String(maxString)
		d.Opaque(16)
		d.Int32()
	}
	e.Str1 = d.OptionalString(maxString)
	e.Str2 = d.OptionalString(maxString)
	e.Str3 = d.OptionalString(maxString)
	e.Int1 = d.Int32()
	e.Int2 = d.Int32()
	if d.Bool() { // net: name, uuid
		d.String(maxString)
		d.Opaque(16)
	}
}

func sendable(s string) string {
	if i := strings.IndexByte(s, 0); i >= 0 {
		s = s[:i]
	}
	return s[:min(len(s), maxErrorText)]
}
