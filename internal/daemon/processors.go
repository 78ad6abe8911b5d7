package daemon

import (
	"os"
	"runtime"
	"sync"
)

// A daemon that locks files does little with one request: what costs is to wake a thread, which takes longer than
// the work that is left for it, above all in a virtual machine. So all goroutines share one processor
// (GOMAXPROCS), and its thread takes what comes without waking another.
//
// Two things speak against that. A system call that does not return keeps its processor until Go's sysmon looks,
// which is 20 ms at most, and meanwhile nobody is served. Where file systems are slow or hang that would happen
// again and again. So there are more processors as soon as an access has not ended in 100 ms, and until for ten seconds
// none was so slow. And where many ask at the same time there is always work for a second thread, so that it need not
// be woken for each: then there are more until they have become few.
const (
	calmProcessors = 1
	// slowProcessors is how many there are at least while a file system is slow: all accesses but one may begin to
	// hang within the same 20 ms, and others are served. An access that hangs for longer has none. With 16 of them
	// others got less, as threads without work look for some.
	slowProcessors = 4
	// crowdedProcessors is how many there are at most while many ask. Two were measured, not more.
	crowdedProcessors = 4
)

// slowTeller is a backend that tells when its system calls take long.
type slowTeller interface{ TellSlow(func(slow bool)) }

// processors is what GOMAXPROCS is set to.
type processors struct {
	all int // what Go itself had set

	mu            sync.Mutex // guards both below
	slow, crowded bool
}

// tuneProcessors is for a process that is this daemon's alone, once what was held is taken back, which several
// processors do faster. What the environment says is left as it is. The result undoes it.
func tuneProcessors(b backend, c *crowd) (undo func()) {
	s, ok := b.(slowTeller)
	if !ok || os.Getenv("GOMAXPROCS") != "" {
		return func() {}
	}
	p := &processors{all: runtime.GOMAXPROCS(calmProcessors)}
	s.TellSlow(func(slow bool) { p.set(&p.slow, slow) })
	c.tellCrowded(func(crowded bool) { p.set(&p.crowded, crowded) })
	return func() {
		s.TellSlow(nil)
		c.tellCrowded(nil)
		runtime.GOMAXPROCS(p.all)
	}
}

// set notes one of p's two, and has as many processors as both ask for.
func (p *processors) set(which *bool, to bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*which = to
	n := calmProcessors
	if p.crowded {
		n = min(p.all, crowdedProcessors)
	}
	if p.slow {
		n = max(p.all, slowProcessors)
	}
	runtime.GOMAXPROCS(n)
}
