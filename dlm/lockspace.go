package dlm

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
	"github.com/vmlockd/vmlockd/internal/table"
)

// DefaultInFlight is how many writes a Lockspace has in the kernel at once unless Options say otherwise. While a
// lockspace is stopped each of them is a thread that cannot be killed, so there must be a bound; and a running
// lockspace keeps hardly more than one per CPU busy.
const DefaultInFlight = 128

// Options of a Lockspace; the zero value is good.
type Options struct {
	// InFlight bounds the writes that are in the kernel at once; more wait for their turn, and leave the line when their
	// context ends. 0 is DefaultInFlight. Adoptions have a place of their own, because they alone do not wait for a
	// stopped lockspace.
	InFlight int
	// UnderWay, if it is not nil, is kept at what DrainFile wants to know. Once Close has returned, without an error or
	// after another Close, nobody stores to it.
	UnderWay *UnderWay
}

// Lockspace is an open lockspace: the locks this process has in it, and the requests under way. All methods may be
// called from any goroutine. Make one with Create or Open, and end it with Close or Leave.
type Lockspace struct {
	name   string
	kernel Kernel
	dev    Device
	limit  int
	// underWay is Options.UnderWay, until nothing more will be known of what is left.
	underWay atomic.Pointer[UnderWay]

	stop      chan struct{} // closed when nothing new is taken; stopErr then says why
	finished  chan struct{} // closed when the device is closed and every goroutine has ended
	adoptTurn chan struct{} // holds a token while a batch of adoptions is under way
	wg        sync.WaitGroup

	mu         sync.Mutex // guards what follows, and what Lock says it guards there; never held during a system call
	stopErr    error      // nil, ErrClosed or ErrBroken
	closing    bool
	handing    bool // Handover has begun: it waits for writes too
	gone       bool // the device is being closed: writes are pointless
	closeErr   error
	locks      table.Table[uint64, Lock] // by cookie, until the kernel has said its last word about them
	lastCookie uint64
	late       map[orphan][]*Lock  // adopted after the caller had left
	busy       int                 // locks with a request under way
	idle       chan struct{}       // while Close or Handover waits: closed when nothing is under way
	unsettled  map[*Lock]time.Time // since when
	writing    map[*write]struct{}
	adopting   *write
	lines      [2]list.List // of *write: releases, then all others
	stray      uint64
	malformed  uint64
}

// start makes a Lockspace of an open device.
func start(k Kernel, name string, dev Device, opts Options) *Lockspace {
	ls := newLockspace(k, name, dev, opts)
	ls.wg.Go(ls.read)
	return ls
}

func newLockspace(k Kernel, name string, dev Device, opts Options) *Lockspace {
	ls := &Lockspace{
		name: name, kernel: k, dev: dev, limit: opts.InFlight,
		stop: make(chan struct{}), finished: make(chan struct{}), adoptTurn: make(chan struct{}, 1),
		locks: table.New(func(l *Lock) uint64 { return l.cookie }), late: map[orphan][]*Lock{}, unsettled: map[*Lock]time.Time{}, writing: map[*write]struct{}{},
	}
	if opts.UnderWay != nil {
		ls.underWay.Store(opts.UnderWay)
	}
	if ls.limit <= 0 {
		ls.limit = DefaultInFlight
	}
	return ls
}

// Name is the lockspace's name.
func (ls *Lockspace) Name() string { return ls.name }

func (ls *Lockspace) fault(op, resource string, err error) error {
	if err == os.ErrClosed { // what a device says that is being closed
		err = ErrClosed
	}
	return fault(op, ls.name, resource, err)
}

// read hands on every result until the device is closed. It never waits for anything but the device and mu.
func (ls *Lockspace) read() {
	var buf [abi.ResultMax]byte
	for {
		n, err := ls.dev.Read(buf[:])
		switch {
		case err == nil:
			ls.doubt(1)
			ls.mu.Lock()
			ls.resultLocked(buf[:n])
			ls.doubt(-1)
			ls.mu.Unlock()
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
		default:
			ls.fail(fmt.Errorf("%w: %w", ErrBroken, ls.fault("read", "", err)))
			return
		}
	}
}

func (ls *Lockspace) resultLocked(buf []byte) {
	res, lvb, err := abi.DecodeResult(buf)
	if err != nil {
		ls.malformed++
		return
	}
	l := ls.locks.Get(res.UserAstparam)
	if l == nil {
		ls.stray++
		return
	}
	switch res.UserAstaddr {
	case castAddr:
		l.castLocked(&res, lvb)
	case bastAddr:
		l.bastLocked(Mode(res.BastMode))
	default:
		ls.malformed++
	}
}

// fail ends everything after the device has failed: with no results, no request has an end.
func (ls *Lockspace) fail(err error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.stopErr == nil {
		ls.stopErr = err
		close(ls.stop)
	}
	ls.endAllLocked(err)
}

// endAllLocked ends every request with err. No result is to be expected any more.
func (ls *Lockspace) endAllLocked(err error) {
	ls.gone = true
	// What ends here without its result is still under way in the kernel.
	ls.underWay.Store(nil)
	for i := range ls.lines {
		for e := ls.lines[i].Front(); e != nil; e = ls.lines[i].Front() {
			w := ls.lines[i].Remove(e).(*write)
			w.place = nil
			w.done(0, err)
		}
	}
	for _, l := range slices.Collect(ls.locks.All()) { // some are forgotten
		l.stopRetryLocked()
		l.dead = true
		l.endRequestsLocked(err)
		l.stepLocked()
	}
}

// Close lets the lockspace go: this node stays a member of it, and locks that are not persistent end; persistent ones
// become orphans of this node, which Adopt finds again. Calls under way return ErrClosed, and what they asked for is
// undone first.
//
// When ctx ends Close returns, whatever the kernel does, and the rest goes on in the background for as long as the
// kernel needs; calling Close again waits for it. If requests had to be left without an outcome the error is
// ErrUnsettled and says which resources they were about.
func (ls *Lockspace) Close(ctx context.Context) error {
	ls.mu.Lock()
	first := !ls.closing
	ls.closing = true
	if ls.stopErr == nil {
		ls.stopErr = ErrClosed
		close(ls.stop)
	}
	ls.mu.Unlock()

	if first {
		left := ls.drain(ctx)
		ls.mu.Lock()
		ls.gone = true
		ls.closeErr = left
		ls.mu.Unlock()
		go ls.shut()
	}
	select {
	case <-ls.finished:
		return ls.closeErr // no longer written
	case <-ctx.Done():
	}
	select { // both may be ready
	case <-ls.finished:
		return ls.closeErr
	default:
		return ls.fault("close", "", ctx.Err())
	}
}

// drain gives up all requests and waits until they have an outcome or ctx ends. It returns nil or which are left.
func (ls *Lockspace) drain(ctx context.Context) error {
	ls.mu.Lock()
	for _, l := range slices.Collect(ls.locks.All()) { // some may be forgotten
		if l.cur != nil {
			l.giveUpLocked(l.cur)
			l.stepLocked()
		}
	}
	idle := make(chan struct{})
	ls.idle = idle
	ls.checkIdleLocked()
	ls.mu.Unlock()

	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.idle = nil
	if ls.idleLocked() {
		return nil
	}
	const most = 10 // names in the text
	text, n := "", 0
	for l := range ls.locks.All() {
		if l.busy {
			if n++; n <= most {
				text += " " + quoteName(l.name)
			}
		}
	}
	if n > most {
		text += " ..."
	}
	return ls.fault("close", "", fmt.Errorf("%w: %d:%s", ErrUnsettled, n, text))
}

func (ls *Lockspace) checkIdleLocked() {
	if ls.idle != nil && (ls.gone || ls.idleLocked()) {
		close(ls.idle)
		ls.idle = nil
	}
}

// idleLocked reports whether nothing is under way. For Close it does not matter when the write returns of a request that
// has its outcome: the device waits for it.
func (ls *Lockspace) idleLocked() bool {
	return ls.busy == 0 && (!ls.handing || len(ls.writing) == 0 && ls.adopting == nil)
}

// shut closes the device, which may take as long as the lockspace is stopped, and then waits for all goroutines.
func (ls *Lockspace) shut() {
	err := ls.dev.Close()
	ls.wg.Wait()
	ls.mu.Lock()
	ls.endAllLocked(ErrClosed)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		ls.closeErr = errors.Join(ls.closeErr, ls.fault("close", "", err))
	}
	ls.mu.Unlock()
	close(ls.finished)
}

// Leave closes the lockspace and then makes this node leave it, as Remove does with the same force.
func (ls *Lockspace) Leave(ctx context.Context, force bool) error {
	if err := ls.Close(ctx); err != nil {
		return err
	}
	return Remove(ctx, ls.kernel, ls.name, force)
}

// Stats says what is under way.
type Stats struct {
	Locks     int // locks held, requested or being released
	InFlight  int // writes in the kernel
	Queued    int // writes waiting for a place
	Unsettled int // locks with a request whose caller has left and whose outcome the kernel has yet to give

	OldestWrite     time.Duration // how long the oldest write has been in the kernel; 0 if there is none
	OldestUnsettled time.Duration // how long ago the first of the Unsettled was given up; 0 if there is none

	Stray     uint64 // results about locks nobody knows, since the start: the kernel's late words; harmless
	Malformed uint64 // results that made no sense, since the start: never seen from a real kernel
}

// Stats returns the present numbers. It costs a walk over the writes in flight, and over what is unsettled.
func (ls *Lockspace) Stats() Stats {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	now := time.Now()
	s := Stats{
		Locks: ls.locks.Len(), InFlight: len(ls.writing), Queued: ls.lines[0].Len() + ls.lines[1].Len(),
		Unsettled: len(ls.unsettled), Stray: ls.stray, Malformed: ls.malformed,
	}
	if ls.adopting != nil {
		s.InFlight++
		s.OldestWrite = now.Sub(ls.adopting.since)
	}
	for w := range ls.writing {
		s.OldestWrite = max(s.OldestWrite, now.Sub(w.since))
	}
	for _, since := range ls.unsettled {
		s.OldestUnsettled = max(s.OldestUnsettled, now.Sub(since))
	}
	return s
}
