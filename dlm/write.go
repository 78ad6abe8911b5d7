package dlm

import (
	"container/list"
	"time"
)

// The lines in which writes wait for a place. Releases go first: they make room for others, and a host at its limit
// must still be able to let go.
const (
	lineRelease = iota
	lineOther
)

// write is one write to the lockspace's device. The kernel may keep the thread that does it for as long as the lockspace
// is stopped, so each is done on a goroutine that does nothing else, and their number is bounded.
type write struct {
	buf   []byte
	line  int
	lock  *Lock                  // nil if the write is about no lock
	req   *request               // on whose behalf; nil if the write is about no lock
	done  func(n int, err error) // called with mu held when the kernel has returned
	since time.Time              // when it went to the kernel
	place *list.Element          // in its line; nil once it has gone to the kernel
}

// writeLocked sends w to the kernel as soon as there is a place.
func (ls *Lockspace) writeLocked(w *write) {
	if len(ls.writing) >= ls.limit {
		w.place = ls.lines[w.line].PushBack(w)
		return
	}
	ls.takeLocked(w)
	ls.wg.Go(func() { ls.writer(w) })
}

func (ls *Lockspace) takeLocked(w *write) {
	w.place, w.since = nil, time.Now()
	ls.writing[w] = struct{}{}
	ls.doubt(1) // until it begins
	if w.lock != nil {
		w.lock.countLocked() // before the kernel sees it
	}
}

// withdrawLocked takes w out of its line. It reports false if w has gone to the kernel, from where nothing comes back early.
func (ls *Lockspace) withdrawLocked(w *write) bool {
	if w.place == nil {
		return false
	}
	ls.lines[w.line].Remove(w.place)
	w.place = nil
	return true
}

// writer does w and then, with the place it has, whatever waits.
func (ls *Lockspace) writer(w *write) {
	for w != nil {
		ls.doubt(-1)
		n, err := ls.dev.Write(w.buf)
		ls.doubt(1)
		ls.mu.Lock()
		delete(ls.writing, w)
		w.done(n, err)
		ls.doubt(-1)
		w = ls.nextLocked()
		ls.checkIdleLocked()
		ls.mu.Unlock()
	}
}

func (ls *Lockspace) nextLocked() *write {
	if len(ls.writing) >= ls.limit { // w.done may have given the place away
		return nil
	}
	for i := range ls.lines {
		if e := ls.lines[i].Front(); e != nil {
			w := ls.lines[i].Remove(e).(*write)
			ls.takeLocked(w)
			return w
		}
	}
	return nil
}
