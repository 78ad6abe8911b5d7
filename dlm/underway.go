package dlm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// UnderWay is memory in which a process keeps what DrainFile wants to know: how many of its requests the kernel may be
// working on, and about which resources. It is for memory that another process shares, which learns from it what is left
// when this one is killed, between any two instructions.
type UnderWay struct {
	mem []byte

	mu   sync.Mutex // guards what follows; held while a place is taken or given back, and for no longer
	free []int32    // places that were given back
	next int32      // from this one on none was ever taken
}

// The memory has a count, how many have no place, and places. A place has the length of a name, 0 when it is not taken,
// the lock's cookie and the name.
//
// The lower half of the count is how many locks have a request that the kernel has, or is about to be given. The upper
// half is how many of them the kernel may not have all the same, as a write has not begun, or has returned, or a
// result was read, and that does not count yet.
const (
	oneUnderWay = 1
	oneDoubtful = 1 << 32

	countAt    = 0
	namelessAt = 8
	placesAt   = 64
	placeSize  = nameAt + MaxResourceName
	cookieAt   = 8 // in a place
	nameAt     = 16
)

// UnderWaySize is how many bytes an UnderWay takes. It has room for the names of 800 requests; for more it has only
// their number, and DrainFile may wait for longer.
const UnderWaySize = 64 << 10

const places = (UnderWaySize - placesAt) / placeSize

// NewUnderWay makes an UnderWay of UnderWaySize bytes at an address that a page begins at, or a multiple of 8. They are
// all zero, or those of a process that has ended, for DrainFile; then they are only read. The error is ErrInvalid.
func NewUnderWay(mem []byte) (*UnderWay, error) {
	if len(mem) < UnderWaySize || uintptr(unsafe.Pointer(&mem[0]))%8 != 0 {
		return nil, fmt.Errorf("%w: %d bytes at %p, where %d are needed at a multiple of 8", ErrInvalid, len(mem), mem, UnderWaySize)
	}
	return &UnderWay{mem: mem[:UnderWaySize]}, nil
}

func (u *UnderWay) number(at int) *atomic.Int64 {
	return (*atomic.Int64)(unsafe.Pointer(&u.mem[at]))
}

// Count is how many requests the kernel may be working on, and how many of them it may not have all the same.
func (u *UnderWay) Count() (underWay, doubtful int) {
	n := u.number(countAt).Load()
	return int(int32(n)), int(n >> 32)
}

// doubt notes that the count may be too high by n more than before.
func (u *UnderWay) doubt(n int64) { u.number(countAt).Add(n * oneDoubtful) }

// nameless is the place of a request for whose name there is no room.
const nameless = -1

// begin notes a request before the kernel sees it. It returns its place, which is not 0.
func (u *UnderWay) begin(cookie uint64, name string) int32 {
	place := u.take()
	if place == nameless {
		u.number(namelessAt).Add(1)
	} else {
		at := placesAt + int(place-1)*placeSize
		copy(u.mem[at+nameAt:], name)
		u.number(at + cookieAt).Store(int64(cookie))
		u.number(at).Store(int64(len(name)))
	}
	u.number(countAt).Add(oneUnderWay)
	return place
}

// end notes that the kernel works on that request no more.
func (u *UnderWay) end(place int32) {
	u.number(countAt).Add(-oneUnderWay)
	if place == nameless {
		u.number(namelessAt).Add(-1)
		return
	}
	u.number(placesAt + int(place-1)*placeSize).Store(0)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.free = append(u.free, place)
}

func (u *UnderWay) take() int32 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := len(u.free); n > 0 {
		place := u.free[n-1]
		u.free = u.free[:n-1]
		return place
	}
	if u.next >= places {
		return nameless
	}
	u.next++
	return u.next
}

var errNameless = errors.New("not all resources are known")

// requests are the cookies of locks with a request, and the resources these are about, each once; and maybe some more, of
// requests that have just ended.
func (u *UnderWay) requests() (names []string, cookies map[uint64]struct{}, err error) {
	if u.number(namelessAt).Load() != 0 {
		return nil, nil, errNameless
	}
	seen := map[string]struct{}{}
	cookies = map[uint64]struct{}{}
	for place := range places {
		at := placesAt + place*placeSize
		n := u.number(at).Load()
		if n == 0 {
			continue
		}
		if n < 0 || n > MaxResourceName {
			return nil, nil, fmt.Errorf("%w: a name of %d bytes", ErrInvalid, n)
		}
		cookies[uint64(u.number(at+cookieAt).Load())] = struct{}{}
		name := string(u.mem[at+nameAt : at+nameAt+int(n)])
		if _, ok := seen[name]; !ok {
			seen[name] = struct{}{}
			names = append(names, name)
		}
	}
	// A place is taken before the request counts, and given back when it does no more.
	if underWay, _ := u.Count(); len(cookies) < underWay {
		return nil, nil, errNameless
	}
	return names, cookies, nil
}
