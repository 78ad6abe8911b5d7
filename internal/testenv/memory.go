package testenv

import (
	"runtime/metrics"
	"testing"
)

// slack is what Bounded allows in any case, in bytes: the runtime counts in steps,
// and other goroutines of the test allocate too.
const slack = 2 << 20

// Bounded fails the test if f allocates more than each times size bytes and 2 MB: what
// comes from outside must take memory in proportion to what came. Memory that f gives
// back counts as well.
func Bounded(t testing.TB, each, size int, f func()) {
	t.Helper()
	before := Allocated()
	f()
	if took := Allocated() - before; took > uint64(each)*uint64(size)+slack {
		t.Errorf("%d bytes were allocated for an input of %d", took, size)
	}
}

// Allocated is how many bytes this process has allocated on its heap so far.
func Allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
