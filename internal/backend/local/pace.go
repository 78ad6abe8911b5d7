package local

import (
	"sync"
	"time"
)

const (
	// slowAccess is how long an access to a file takes that shows that its file system is slow, or hangs. It is
	// more than a busy machine keeps a thread waiting for a processor, mostly: 30 ms were not.
	slowAccess = 100 * time.Millisecond
	// paceCalm is how long no access must have been slow until none is expected to be.
	paceCalm = 10 * time.Second
)

// pace finds out whether file systems answer at once. No timer runs for it: while nobody asks for a file, nobody
// is delayed by those who wait for one.
type pace struct {
	mu    sync.Mutex // guards all below
	tell  func(slow bool)
	first *access // under way, in the order in which they began
	last  *access
	slow  bool
	seen  time.Time // when an access was found to be slow, last
}

// access is system calls on one file, on a goroutine of their own.
type access struct {
	begun    time.Time
	on       bool // in the list
	previous *access
	next     *access
}

// begin is called by the goroutine of the access, immediately before the first system call.
func (p *pace) begin(a *access) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tell == nil {
		return
	}
	a.begun = time.Now()
	p.lockedLook(a.begun)
	a.on, a.previous = true, p.last
	if p.last == nil {
		p.first = a
	} else {
		p.last.next = a
	}
	p.last = a
}

// end is called after the last one.
func (p *pace) end(a *access) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !a.on {
		return
	}
	p.lockedLook(time.Now())
	if a.previous == nil {
		p.first = a.next
	} else {
		a.previous.next = a.next
	}
	if a.next == nil {
		p.last = a.previous
	} else {
		a.next.previous = a.previous
	}
	*a = access{}
}

// lockedLook looks at the access that has been under way for the longest time.
func (p *pace) lockedLook(now time.Time) {
	switch {
	case p.tell == nil:
	case p.first != nil && now.Sub(p.first.begun) >= slowAccess:
		p.seen = now
		if !p.slow {
			p.slow = true
			p.tell(true)
		}
	case p.slow && now.Sub(p.seen) >= paceCalm:
		p.slow = false
		p.tell(false)
	}
}

// TellSlow has tell called with true when an access to a file has not ended in 100 ms, and with false when for
// ten seconds none was so slow. Both are noticed at the begin or end of an access. tell is called in the goroutine of
// one, and all others wait for it.
func (b *Backend) TellSlow(tell func(slow bool)) {
	b.pace.mu.Lock()
	defer b.pace.mu.Unlock()
	b.pace.tell = tell
}
