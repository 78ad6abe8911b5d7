package holder

import (
	"fmt"
	"runtime"
	"testing"
)

// What a descriptor may have in the holder's heap, in bytes.
const mostPerDescriptor = 80

func TestMemoryOfADescriptor(t *testing.T) {
	const n = 10000
	inUse := func() int {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int(s.HeapAlloc)
	}
	s := store{next: 1}
	before := inUse()
	for i := range n {
		s.add(uint64(i+1), fmt.Sprintf("file 64769 %d", 1234000+i), i)
	}
	if per := (inUse() - before) / n; per > mostPerDescriptor {
		t.Errorf("a descriptor has %d bytes, more than %d", per, mostPerDescriptor)
	}
	runtime.KeepAlive(&s)
}
