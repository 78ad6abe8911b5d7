//go:build linux && (amd64 || arm64)

package corosync

import (
	"fmt"
	"structs"
	"unsafe"

	"github.com/ebitengine/purego"
)

// library is what is used of libcpg, libquorum and libcmap: <corosync/cpg.h>, <corosync/quorum.h> and <corosync/cmap.h>
// of corosync 3. All functions that return int32 return a cs_error_t.
type library struct {
	cpgInitialize func(handle *uint64, callbacks *cpgCallbacks) int32
	cpgFinalize   func(handle uint64) int32
	cpgFdGet      func(handle uint64, fd *int32) int32
	cpgJoin       func(handle uint64, name *cpgName) int32
	cpgLeave      func(handle uint64, name *cpgName) int32
	cpgDispatch   func(handle uint64, types int32) int32
	cpgMcast      func(handle uint64, guarantee int32, iov *iovec, n uint32) int32
	cpgLocalGet   func(handle uint64, node *uint32) int32
	cpgMaxMsgSize func(handle uint64, size *uint32) int32

	quorumInitialize func(handle *uint64, model int32, data *quorumModelV1, kind *uint32, context uintptr) int32
	quorumFinalize   func(handle uint64) int32
	quorumFdGet      func(handle uint64, fd *int32) int32
	quorumDispatch   func(handle uint64, types int32) int32
	quorumGetquorate func(handle uint64, quorate *int32) int32
	quorumTrackstart func(handle uint64, flags uint32) int32

	cmapInitialize   func(handle *uint64) int32
	cmapFinalize     func(handle uint64) int32
	cmapGet          func(handle uint64, key *byte, value *byte, size *uintptr, kind *int32) int32
	cmapIterInit     func(handle uint64, prefix *byte, iter *uint64) int32
	cmapIterNext     func(handle uint64, iter uint64, key *byte, size *uintptr, kind *int32) int32
	cmapIterFinalize func(handle uint64, iter uint64) int32

	cpgCallbacks    cpgCallbacks
	quorumCallbacks quorumModelV1
}

// Constants of corotypes.h, cpg.h and quorum.h.
const (
	csDispatchOneNonblocking = 4
	csTrackCurrent           = 0x01
	csTrackChanges           = 0x02
	cpgTypeAgreed            = 2
	cpgMembersMax            = 128
	quorumModelOne           = 1
	quorumFree               = 0 // quorum_type: no provider, always quorate
)

// cpgName is struct cpg_name.
type cpgName struct {
	_      structs.HostLayout
	length uint32
	value  [MaxGroupName]byte
}

// cpgAddress is struct cpg_address.
type cpgAddress struct {
	_      structs.HostLayout
	nodeid uint32
	pid    uint32
	reason uint32
}

// cpgCallbacks is cpg_callbacks_t.
type cpgCallbacks struct {
	_       structs.HostLayout
	deliver uintptr
	confchg uintptr
}

// quorumModelV1 is quorum_model_v1_data_t.
type quorumModelV1 struct {
	_              structs.HostLayout
	model          int32
	quorumNotify   uintptr
	nodelistNotify uintptr
}

// iovec is struct iovec of <sys/uio.h>.
type iovec struct {
	_    structs.HostLayout
	base *byte
	size uintptr
}

// load loads all libraries and finds all functions, or says what is missing.
func (l *library) load() error {
	for _, lib := range []struct {
		name  string
		funcs map[string]any
	}{
		{"libcpg.so.4", map[string]any{
			"cpg_initialize": &l.cpgInitialize, "cpg_finalize": &l.cpgFinalize, "cpg_fd_get": &l.cpgFdGet, "cpg_join": &l.cpgJoin,
			"cpg_leave": &l.cpgLeave, "cpg_dispatch": &l.cpgDispatch, "cpg_mcast_joined": &l.cpgMcast, "cpg_local_get": &l.cpgLocalGet,
			"cpg_max_atomic_msgsize_get": &l.cpgMaxMsgSize,
		}},
		{"libquorum.so.5", map[string]any{
			"quorum_model_initialize": &l.quorumInitialize, "quorum_finalize": &l.quorumFinalize, "quorum_fd_get": &l.quorumFdGet,
			"quorum_dispatch": &l.quorumDispatch, "quorum_getquorate": &l.quorumGetquorate, "quorum_trackstart": &l.quorumTrackstart,
		}},
		{"libcmap.so.4", map[string]any{
			"cmap_initialize": &l.cmapInitialize, "cmap_finalize": &l.cmapFinalize, "cmap_get": &l.cmapGet, "cmap_iter_init": &l.cmapIterInit,
			"cmap_iter_next": &l.cmapIterNext, "cmap_iter_finalize": &l.cmapIterFinalize,
		}},
	} {
		h, err := purego.Dlopen(lib.name, purego.RTLD_NOW|purego.RTLD_LOCAL)
		if err != nil {
			return err
		}
		for name, f := range lib.funcs {
			sym, err := purego.Dlsym(h, name)
			if err != nil {
				return fmt.Errorf("%s is too old: %w", lib.name, err)
			}
			purego.RegisterFunc(f, sym)
		}
	}
	l.cpgCallbacks = cpgCallbacks{deliver: purego.NewCallback(cpgDeliver), confchg: purego.NewCallback(cpgConfchg)}
	l.quorumCallbacks = quorumModelV1{
		model: quorumModelOne, quorumNotify: purego.NewCallback(quorumNotify), nodelistNotify: purego.NewCallback(quorumNodelist),
	}
	return nil
}

// bytesOf ends a string for C.
func bytesOf(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return unsafe.SliceData(b)
}

// listOf copies a list of C's, of a bounded length.
func listOf[T any](first *T, n uint64, limit uint64) []T {
	if first == nil || n == 0 {
		return nil
	}
	return append([]T(nil), unsafe.Slice(first, min(n, limit))...)
}
