package daemon

import (
	"os"
	"runtime"
)

// A daemon that locks files does little with one request: what costs is to wake a thread, which takes longer than
// the work that is left for it, above all in a virtual machine. So all goroutines share one processor
// (GOMAXPROCS), and its thread takes what comes without waking another.
//
// One thing speaks against that: a system call that does not return keeps its processor until Go's sysmon looks,
// which is 20 ms at most, and meanwhile nobody is served. Where file systems are slow or hang that would happen
// again and again. So there are more processors as soon as an access has not ended in 100 ms, and until for ten seconds
// none was so slow.
const (
	calmProcessors = 1
	// slowProcessors is how many there are at least while a file system is slow: all accesses but one may begin to
	// hang within the same 20 ms, and others are served. An access that hangs for longer has none. With 16 of them
	// others got less, as threads without work look for some.
	slowProcessors = 4
)

// slowTeller is a backend that tells when its system calls take long.
type slowTeller interface{ TellSlow(func(slow bool)) }

// tuneProcessors is for a process that is this daemon's alone, once what was held is taken back, which several
// processors do faster. What the environment says is left as it is. The result undoes it.
func tuneProcessors(b backend) (undo func()) {
	s, ok := b.(slowTeller)
	if !ok || os.Getenv("GOMAXPROCS") != "" {
		return func() {}
	}
	before := runtime.GOMAXPROCS(calmProcessors)
	s.TellSlow(func(slow bool) {
		if slow {
			runtime.GOMAXPROCS(max(before, slowProcessors))
		} else {
			runtime.GOMAXPROCS(calmProcessors)
		}
	})
	return func() {
		s.TellSlow(nil)
		runtime.GOMAXPROCS(before)
	}
}
