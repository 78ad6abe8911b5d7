package lockprogram

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// What a session refuses by itself. The words are virtlockd's.
var (
	errNotRegistered error = rpc.NewError(rpc.CodeOperationInvalid, rpc.DomainRPC, "lock owner details have not been registered")
	errRestricted    error = rpc.NewError(rpc.CodeOperationDenied, rpc.DomainRPC, "lock manager connection has been restricted")
)

// unknownFlags is what libvirt's virCheckFlags says, in the name of the function
// that says it there.
func unknownFlags(flags uint32, function string) error {
	return &rpc.Error{
		Code: rpc.CodeInvalidArg, Domain: rpc.DomainRPC,
		Message: fmt.Sprintf("unsupported flags (0x%x) in function %s", flags, function),
		Str1:    function, Str2: "flags",
	}
}

// answer makes of an error of package locking what virtlockd answers in that
// case. nil stays nil.
func answer(procedure int32, err error) error {
	if err == nil {
		return nil
	}
	var e *locking.Error
	if !errors.As(err, &e) {
		return rpc.NewError(rpc.CodeInternal, rpc.DomainLockspace, err.Error())
	}
	code, domain := codeOf(procedure, e)
	re := rpc.NewError(code, domain, e.Error())
	var errno syscall.Errno
	if code == rpc.CodeSystem && errors.As(e.Err, &errno) {
		re.Int1 = int32(errno)
	}
	return re
}

func codeOf(procedure int32, e *locking.Error) (rpc.Code, rpc.Domain) {
	switch e.Kind {
	case locking.KindBusy, locking.KindNotLocked:
		return rpc.CodeResourceBusy, rpc.DomainLockspace
	case locking.KindNotOwner:
		return rpc.CodeInternal, rpc.DomainLockspace
	case locking.KindNoLockspace, locking.KindLockspaceExists:
		return rpc.CodeInternal, rpc.DomainRPC
	case locking.KindDefaultLockspace:
		return rpc.CodeOperationInvalid, rpc.DomainRPC
	case locking.KindInvalid:
		// A lockspace that is no directory is an internal error there; a name that
		// leads out of its lockspace is accepted there.
		if procedure == ProcNew || procedure == ProcCreateLockspace {
			return rpc.CodeInternal, rpc.DomainLockspace
		}
		return rpc.CodeInvalidArg, rpc.DomainLockspace
	case locking.KindSystem:
		if procedure == ProcCreateResource {
			return rpc.CodeSystem, rpc.DomainNone
		}
		return rpc.CodeSystem, rpc.DomainLockspace
	case locking.KindOwnerGone:
		return rpc.CodeOperationInvalid, rpc.DomainLockspace
	case locking.KindUnavailable:
		if errors.Is(e.Err, context.DeadlineExceeded) {
			return rpc.CodeOperationTimeout, rpc.DomainLockspace
		}
		return rpc.CodeOperationFailed, rpc.DomainLockspace
	}
	return rpc.CodeInternal, rpc.DomainLockspace
}
