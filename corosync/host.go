package corosync

import (
	"errors"
	"fmt"
	"sync"
)

// Host is the corosync of this host, reached through its own client libraries.
func Host() System { return host{} }

type host struct{}

// loadable returns why nothing can ever come of a System.
func loadable(sys System) error {
	if _, is := sys.(host); !is {
		return nil
	}
	_, err := libraries()
	return err
}

// libraries loads the libraries, once. A process that did not find them has to be started anew.
var libraries = sync.OnceValues(func() (*library, error) {
	lib := new(library)
	if err := lib.load(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLibrary, err)
	}
	return lib, nil
})

// Available returns nil if corosync's client libraries are there, and otherwise ErrNoLibrary with what the loader said. It
// says nothing about whether corosync runs.
func Available() error {
	_, err := libraries()
	return err
}

// routes lead from a connection's handle, which is all that a callback gets, to where its events go. Callbacks come only
// during a call of dispatch, so a route is there in time.
type routes[T any] struct {
	mu sync.Mutex
	m  map[uint64]T
}

func (r *routes[T]) set(handle uint64, v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[uint64]T{}
	}
	r.m[handle] = v
}

func (r *routes[T]) drop(handle uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, handle)
}

func (r *routes[T]) get(handle uint64) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.m[handle]
	return v, ok
}

// dispatches is how many events are delivered in one Dispatch, so that sends have their turn.
const dispatches = 64

// dispatchSome calls a library's dispatch until there is nothing more, or it is another's turn.
func dispatchSome(one func() int32) error {
	for range dispatches {
		if err := codeError(one()); errors.Is(err, ErrTryAgain) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
