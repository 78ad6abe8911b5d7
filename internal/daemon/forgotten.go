package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/domstatus"
	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// lookInterval is how often it is looked whether libvirt has written something of a virtual machine
	// that has given locks back. Such are those that are suspended, so there are few; a look is one stat.
	lookInterval = time.Second
	// maxRetry is how long it takes at most until what could not be taken again is tried again.
	maxRetry = 30 * time.Second
	// maxStatus bounds what is read of a virtual machine, as in internal/doctor.
	maxStatus = 4 << 20
)

// reminder takes locks again that libvirt has forgotten: it has given them back, and lets the
// virtual machine run. docs/virtlockd.md says how libvirt comes to that.
//
// A lock is taken again if libvirt has written, after it gave it back, that the virtual machine runs, that
// no job such as a migration is under way, and that it still writes the disk; and if two looks say so, as libvirt
// does not note jobs that take it a moment only. Whoever receives a migration takes the lock
// only while the sender notes that one is under way. For what other reasons locks are
// given back, and what libvirt writes then, is in TestJudge.
type reminder struct {
	dir     string // where libvirt notes what runs
	locks   *locking.Manager
	observe func(locking.Event)

	nudge  chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex // guards what follows
	notices map[giftKey]*notice
}

// giftKey tells what was given back from anything else.
type giftKey struct {
	pid int32
	ref locking.Ref
}

// notice is what is known of one.
type notice struct {
	stamp locking.Stamp // of what was read last
	gave  locking.Stamp // GivenBack.Stamp at that look
	due   bool          // and it has to be taken again
	again time.Time     // when that is tried
	pause time.Duration // after the last try
	busy  *control.Warning
	told  bool // that it could not be taken,
	named bool // and that another has it
}

// statusDir is where a libvirt with that socket notes what runs.
func statusDir(socket string) string { return filepath.Join(filepath.Dir(socket), "qemu") }

// newReminder makes one that does nothing before begin. It is a locking.Witness.
func newReminder(socket string, observe func(locking.Event)) *reminder {
	r := &reminder{
		dir: statusDir(socket), observe: observe, nudge: make(chan struct{}, 1), done: make(chan struct{}), notices: map[giftKey]*notice{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// begin looks at what owners give back to locks.
func (r *reminder) begin(locks *locking.Manager) {
	r.locks = locks
	r.GaveBack() // to an earlier daemon
	go r.run()
}

// stop ends it; nothing is taken after that. r may be nil, or not begun.
func (r *reminder) stop() {
	if r == nil || r.locks == nil {
		return
	}
	r.cancel()
	<-r.done
}

// file is where libvirt notes an owner; "" if it is not called as a virtual machine can be.
func (r *reminder) file(o locking.Owner) string {
	if o.Name == "" || strings.ContainsAny(o.Name, "/\x00") {
		return ""
	}
	return filepath.Join(r.dir, o.Name+".xml")
}

// Stamp implements locking.Witness.
func (r *reminder) Stamp(o locking.Owner) locking.Stamp {
	file := r.file(o)
	if file == "" {
		return locking.Stamp{}
	}
	// For each release: package os would make an error of what is usual without libvirt.
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return locking.Stamp{}
	}
	return stampOf(st)
}

// stampOf is that of a file; of anything else there is none.
func stampOf(st unix.Stat_t) locking.Stamp {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return locking.Stamp{}
	}
	return locking.Stamp{Inode: st.Ino, Written: st.Mtim.Nano()}
}

// GaveBack implements locking.Witness.
func (r *reminder) GaveBack() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

// run looks from time to time, as long as something is given back. Between two looks there is a
// lookInterval at least.
func (r *reminder) run() {
	defer close(r.done)
	var tick <-chan time.Time
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.nudge:
			// It is not looked now: two looks would be as close as two releases, of whomever, and each would look
			// at all that is given back.
			if tick == nil {
				tick = time.After(lookInterval)
			}
			continue
		case <-tick:
		}
		tick = nil
		if r.look(time.Now()) {
			tick = time.After(lookInterval)
		}
	}
}

// look looks at everything that was given back, and says whether there is anything.
func (r *reminder) look(now time.Time) bool {
	list := r.locks.GivenBack()
	r.keep(list)
	for _, g := range list {
		if r.ctx.Err() != nil {
			return true
		}
		r.lookAt(g, now)
	}
	return len(list) > 0
}

// keep forgets what nobody has given back any more.
func (r *reminder) keep(list []locking.GivenBack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.notices) == 0 {
		return
	}
	still := make(map[giftKey]bool, len(list))
	for _, g := range list {
		still[keyOf(g)] = true
	}
	for k := range r.notices {
		if !still[k] {
			delete(r.notices, k)
		}
	}
}

func keyOf(g locking.GivenBack) giftKey { return giftKey{g.Owner.PID, g.Ref} }

func (r *reminder) lookAt(g locking.GivenBack, now time.Time) {
	stamp := r.Stamp(g.Owner)
	if stamp == (locking.Stamp{}) || stamp == g.Stamp {
		r.put(g, notice{}) // nothing was written since
		return
	}
	r.mu.Lock()
	n := notice{}
	if known := r.notices[keyOf(g)]; known != nil {
		n = *known
	}
	r.mu.Unlock()
	before := n.due && n.gave == g.Stamp // and not of what was released once more since
	n.gave = g.Stamp
	if n.stamp != stamp {
		text, at, err := readStatus(r.file(g.Owner))
		if err != nil {
			return // it is replaced just now, or gone; the next look tells
		}
		j := judge(text, g)
		n.stamp, n.due = at, j == forgotten
		if j == unneeded {
			r.locks.ForgetGivenBack(g)
			return
		}
		if !n.due {
			n = notice{stamp: at, gave: g.Stamp}
		}
	}
	if !n.due || !before || now.Before(n.again) {
		r.put(g, n)
		return
	}
	r.take(g, n, now)
}

// take takes a lock again, or notes that it could not.
func (r *reminder) take(g locking.GivenBack, n notice, now time.Time) {
	err := r.locks.TakeAgain(r.ctx, g, n.stamp)
	if err == nil || errors.Is(err, locking.ErrTaken) || r.ctx.Err() != nil {
		r.put(g, notice{}) // if it is given back still, the next look begins anew
		return
	}
	n.pause = min(max(2*n.pause, lookInterval), maxRetry)
	n.again = now.Add(n.pause)
	if e, ok := errors.AsType[*locking.Error](err); ok && e.Kind == locking.KindBusy {
		n.busy = &control.Warning{Code: control.WarnTwoWriters, Message: fmt.Sprintf(
			"two virtual machines write one disk: %s (uuid %s, pid %d) runs without the lock of %s, as libvirt has forgotten it, and another has it (%s): end one of them, and check the disk",
			g.Owner.Name, locking.FormatUUID(g.Owner.UUID), g.Owner.PID, g.Ref.Name, e)}
	} else {
		n.busy = nil
	}
	tell := !n.told || n.busy != nil && !n.named
	n.told, n.named = true, n.named || n.busy != nil
	r.put(g, n)
	if tell {
		r.observe(locking.Event{Kind: locking.NotTakenAgain, Ref: g.Ref, Owner: g.Owner, Mode: g.Mode, Err: err})
	}
}

func (r *reminder) put(g locking.GivenBack, n notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == (notice{}) {
		delete(r.notices, keyOf(g))
		return
	}
	r.notices[keyOf(g)] = &n
}

// warnings are those of the status.
func (r *reminder) warnings() []control.Warning {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []control.Warning
	for _, n := range r.notices {
		if n.busy != nil {
			list = append(list, *n.busy)
		}
	}
	slices.SortFunc(list, func(a, b control.Warning) int { return strings.Compare(a.Message, b.Message) })
	return list
}

// readStatus reads one version of a file, and says which.
func readStatus(file string) (text []byte, at locking.Stamp, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, at, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, at, &os.PathError{Op: "fstat", Path: file, Err: err}
	}
	if at = stampOf(st); at == (locking.Stamp{}) || st.Size > maxStatus {
		return nil, at, fmt.Errorf("%s has %d bytes, or is no file", file, st.Size)
	}
	text, err = io.ReadAll(io.LimitReader(f, maxStatus))
	return text, at, err
}

// judgement is what is to be made of a lock that was given back.
type judgement int

const (
	undecided judgement = iota // the virtual machine is paused, something is done with it, or it cannot be told
	forgotten                  // it runs with that disk
	unneeded                   // it does not have that disk any more
)

// judge says what libvirt's note of a virtual machine means for a lock that was given back before it was written.
func judge(text []byte, g locking.GivenBack) judgement {
	s, err := domstatus.ParseStatus(text)
	switch {
	case err != nil, s.PID != int(g.Owner.PID), strings.TrimSpace(s.Domain.UUID) != locking.FormatUUID(g.Owner.UUID), !s.Idle():
		return undecided
	}
	uses, unsure := s.Domain.Uses(g.Ref.Lockspace, g.Ref.Name)
	switch {
	case !uses && !unsure:
		return unneeded
	case uses && s.State == domstatus.Running:
		return forgotten
	}
	return undecided
}
