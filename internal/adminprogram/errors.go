package adminprogram

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// checkFlags is what libvirt's virCheckFlags says, in the name of the function that
// says it there. No procedure has flags.
func checkFlags(flags uint32, function string) error {
	if flags == 0 {
		return nil
	}
	return &rpc.Error{
		Code: rpc.CodeInvalidArg, Domain: rpc.DomainAdmin,
		Message: fmt.Sprintf("unsupported flags (0x%x) in function %s", flags, function),
		Str1:    function, Str2: "flags",
	}
}

// noServer and noClient are what most procedures say, and noMatchingServer and
// noMatchingClient what the others do.
func noServer(name string) error {
	return rpc.NewError(rpc.CodeNoServer, rpc.DomainRPC, fmt.Sprintf("No server named '%s'", name))
}

func noMatchingServer(name string) error {
	return rpc.NewError(rpc.CodeNoServer, rpc.DomainAdmin, fmt.Sprintf("no server with matching name '%s' found", name))
}

func noClient(id uint64) error {
	return rpc.NewError(rpc.CodeNoClient, rpc.DomainRPC, fmt.Sprintf("No client with matching ID '%d'", id))
}

func noMatchingClient(id uint64) error {
	return rpc.NewError(rpc.CodeNoClient, rpc.DomainAdmin, fmt.Sprintf("no client with matching id '%d' found", id))
}

func invalid(domain rpc.Domain, format string, args ...any) error {
	return rpc.NewError(rpc.CodeInvalidArg, domain, fmt.Sprintf(format, args...))
}

// answer makes of an error of a port what virtlockd answers in that case: a file
// that cannot be opened is an error of the system, anything else a wrong argument.
func answer(err error) error {
	if err == nil {
		return nil
	}
	var e *rpc.Error
	if errors.As(err, &e) {
		return err
	}
	var path *fs.PathError
	var errno syscall.Errno
	if errors.As(err, &path) && errors.As(err, &errno) {
		words := errno.Error() // which begin with a capital there
		re := rpc.NewError(rpc.CodeSystem, rpc.DomainNone, fmt.Sprintf("failed to %s %s: %s", path.Op, path.Path, strings.ToUpper(words[:1])+words[1:]))
		re.Int1 = int32(errno)
		return re
	}
	return invalid(rpc.DomainNone, "%v", err)
}
