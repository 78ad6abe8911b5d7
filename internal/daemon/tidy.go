package daemon

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// tidyFrom is how many locks have to be taken, given or taken back for it to be
	// worth a collection.
	tidyFrom = 500
	// calm is how long nothing must happen before it. A restart in place would
	// otherwise keep its first clients waiting for it.
	calm = time.Second
	// quietGC is GOGC while only work of the daemon's own goes on, which may take
	// minutes for thousands of locks. It leaves little at a time, and with the usual
	// GOGC would leave as much again as is in use before any of it is collected.
	quietGC = 25
)

// tidier gives memory back once there is little to do. A daemon that holds many
// locks does nothing for hours, and what taking them has left over, as much again
// as is in use, would stay for that long.
type tidier struct {
	free   func()        // gives memory back
	gc     func(int) int // sets GOGC, and returns what it was
	events atomic.Int64  // since the last time

	mu      sync.Mutex // guards what follows; held while free runs
	timer   *time.Timer
	busy    func() bool // work of its own goes on, for each lock that was taken; nil if there never is any
	freed   bool        // since it went on
	quiet   bool        // GOGC is quietGC
	usual   int         // what it was before; of use while quiet
	seen    int64       // events when the timer was set
	stopped bool
	after   []func() // done when the timer runs out, calm or not
}

func newTidier() *tidier { return &tidier{free: debug.FreeOSMemory, gc: debug.SetGCPercent} }

// until has memory given back once more when busy is not true any more.
func (t *tidier) until(busy func() bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = busy
}

// observe is told of what happens to locks.
func (t *tidier) observe(e locking.Event) {
	switch e.Kind {
	case locking.Granted, locking.TakenAgain, locking.Released, locking.ReleasedGone:
		t.did(1, nil)
	}
}

// did notes n events. f, which may be nil, is done a while later in any case.
func (t *tidier) did(n int64, f func()) {
	before := t.events.Add(n) - n
	if f == nil && (before >= tidyFrom || before+n < tidyFrom) {
		return // the timer runs, or there is no need
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if f != nil {
		t.after = append(t.after, f)
	}
	if t.timer == nil && !t.stopped {
		t.timer = time.AfterFunc(calm, t.look)
		t.seen = t.events.Load()
	}
}

func (t *tidier) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finish()
	if t.stopped {
		return
	}
	switch now := t.events.Load(); {
	case now != t.seen:
		t.lockedQuiet(false) // requests come, and are not to wait for collections
		t.seen = now
		t.timer.Reset(calm)
		return
	case now >= tidyFrom && t.busy != nil && t.busy():
		// That may take minutes, and leaves something too.
		if !t.freed {
			t.free()
			t.freed = true
		}
		t.lockedQuiet(true)
		t.timer.Reset(calm)
		return
	case now >= tidyFrom:
		t.free()
	}
	t.lockedQuiet(false)
	t.freed = false
	// What was counted since the look is for the next time, or for nobody.
	t.events.Store(0)
	t.timer = nil
}

func (t *tidier) lockedQuiet(quiet bool) {
	switch {
	case quiet == t.quiet:
	case quiet:
		t.usual = t.gc(quietGC)
	default:
		t.gc(t.usual)
	}
	t.quiet = quiet
}

// finish does what was put off.
func (t *tidier) finish() {
	for _, f := range t.after {
		f()
	}
	t.after = nil
}

// stop ends it.
func (t *tidier) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	if t.timer != nil {
		t.timer.Stop()
	}
	t.finish()
	t.lockedQuiet(false)
}
