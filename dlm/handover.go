package dlm

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// HandoverKernel is what a Kernel may be besides: one whose devices can stay open when the program in a process is
// replaced. Host and the simulation in package dlmtest are.
type HandoverKernel interface {
	Kernel
	// Attach makes a Device of a descriptor that Detach returned, if it is one of that lockspace's device. It takes the
	// descriptor over in any case; after an error it has closed it, which may wait like Device.Close.
	Attach(lockspace string, minor uint32, fd int) (Device, error)
}

// HandoverDevice is what the devices of a HandoverKernel are besides.
type HandoverDevice interface {
	Device
	// Detach ends the use of the device as Close does, but the kernel is told nothing, because another descriptor of
	// the same open file, close-on-exec, is returned. A read that is under way returns os.ErrClosed, and takes no
	// result with it. After an error the device is as it was.
	Detach() (fd int, err error)
}

// ErrNoHandover: this Kernel's devices end with the program that opened them.
var ErrNoHandover = errors.New("devices cannot be handed over here")

// Handover is a lockspace between two programs of one process: the open device, and what the next program cannot ask
// the kernel for. The kernel ties locks to the open file, not to the program, so they stay what they are as long as a
// descriptor of it is open; with the last one they end, and become orphans if they are persistent.
//
// What Handover has is the kernel's and this package's, so do not change any of it. MarshalBinary makes bytes of it.
type Handover struct {
	// Lockspace is the lockspace's name.
	Lockspace string
	// FD is a descriptor of the lockspace's device, close-on-exec. To let it live across execve(2) clear that flag
	// immediately before, so that no other child inherits it: the locks would then live as long as that child.
	FD int

	lastCookie uint64
	locks      []handedLock // in the order of cookies
}

// handedLock is what is known of one lock. The names are those in Lock.
type handedLock struct {
	name       string
	cookie     uint64
	lkid       uint32
	mode       Mode
	persistent bool
	notify     bool
	notice     int8 // a notice that nobody has received; noNotice if there is none
	adopted    bool
	lvbAsked   bool
	lvbValid   bool
	lvb        LVB
	owed       *request // has a mode, and with FlagValBlk an LVB; it has ended
}

const noNotice = int8(-1)

// Len is how many locks are handed over.
func (h *Handover) Len() int { return len(h.locks) }

// Handover is a Close after which the device is still open: calls under way return ErrClosed, and what they asked for
// is undone first; the locks that are left stay what they are, also those that are not persistent. Resume goes on with
// them, in this program or in one that the process executes instead.
//
// An error means that nothing is handed over, and that the lockspace is being closed, for which Close waits: it is
// ErrNoHandover, ErrUnsettled if requests had no outcome when ctx ended, or the kernel's.
func (ls *Lockspace) Handover(ctx context.Context) (*Handover, error) {
	const op = "hand over"
	dev, ok := ls.dev.(HandoverDevice)
	ls.mu.Lock()
	if ls.stopErr != nil {
		err := ls.stopErr
		ls.mu.Unlock()
		return nil, ls.fault(op, "", err)
	}
	ls.stopErr, ls.closing, ls.handing = ErrClosed, true, true
	close(ls.stop)
	ls.mu.Unlock()

	err := ls.drain(ctx)
	ls.mu.Lock()
	ls.gone = true
	ls.closeErr = err
	if err == nil && len(ls.late) > 0 {
		err = fmt.Errorf("%w: adoptions that nobody waited for", ErrUnsettled)
	}
	ls.mu.Unlock()
	fd := -1
	switch {
	case err != nil:
	case !ok:
		err = ErrNoHandover
	default:
		fd, err = dev.Detach()
	}
	if err != nil {
		go ls.shut()
		return nil, ls.fault(op, "", err)
	}
	ls.wg.Wait() // nothing but the reader is left, which has what it has read handled
	h := &Handover{Lockspace: ls.name, FD: fd}
	ls.mu.Lock()
	ls.handLocked(h)
	ls.mu.Unlock()
	close(ls.finished)
	return h, nil
}

// handLocked notes all locks in h and forgets them.
func (ls *Lockspace) handLocked(h *Handover) {
	h.lastCookie = ls.lastCookie
	h.locks = make([]handedLock, 0, ls.locks.Len())
	for l := range ls.locks.All() {
		if l.dead {
			continue
		}
		n := noNotice
		if l.blocking != nil {
			select {
			case m := <-l.blocking:
				n = int8(m)
			default:
			}
		}
		h.locks = append(h.locks, handedLock{
			name: l.name, cookie: l.cookie, lkid: l.lkid, mode: l.mode, persistent: l.persistent, notify: l.blocking != nil,
			notice: n, adopted: l.adopted, lvbAsked: l.lvbAsked, lvbValid: l.lvbValid, lvb: l.lvb,
			owed: l.owed,
		})
	}
	slices.SortFunc(h.locks, func(a, b handedLock) int { return cmp.Compare(a.cookie, b.cookie) })
	ls.endAllLocked(ErrClosed)
}

// Resume goes on with a lockspace that was handed over in this process. It returns its locks in the order in which they
// were had, with their modes, LVBs and notices. It takes h over.
//
// After an error the device is closed: what was persistent is among this node's orphans, and Open and Adopt find it
// there. The error is ErrNoLockspace if the lockspace is gone, ErrInvalid if h is damaged or its descriptor is not
// one of the lockspace's device, ErrNoHandover, or the error of ctx, which bounds how long that closing is waited for.
func Resume(ctx context.Context, k Kernel, h *Handover, opts Options) (*Lockspace, []*Lock, error) {
	const op = "resume"
	dev, err := h.attach(ctx, k)
	if err != nil {
		return nil, nil, fault(op, h.Lockspace, "", err)
	}
	ls := newLockspace(k, h.Lockspace, dev, opts)
	list, err := ls.resumed(h)
	if err != nil {
		_, _ = detached(ctx, func() (int, error) { return 0, dev.Close() }, nil)
		return nil, nil, fault(op, h.Lockspace, "", err)
	}
	ls.wg.Go(ls.read)
	return ls, list, nil
}

// Discard closes the device that was handed over, as the end of the process would. It returns when the kernel has done
// so, or with the error of ctx when that ends first; the closing then goes on.
func (h *Handover) Discard(ctx context.Context, k Kernel) error {
	_, err := detached(ctx, func() (int, error) {
		dev, err := h.open(k)
		if err == nil {
			err = dev.Close()
		}
		return 0, err
	}, nil)
	return fault("discard", h.Lockspace, "", err)
}

func (h *Handover) attach(ctx context.Context, k Kernel) (Device, error) {
	return detached(ctx, func() (Device, error) { return h.open(k) }, func(d Device) { d.Close() })
}

func (h *Handover) open(k Kernel) (Device, error) {
	hk, ok := k.(HandoverKernel)
	if !ok {
		return nil, ErrNoHandover
	}
	// A lockspace that is gone has no minor, and Attach closes what it is given.
	minor, missing := k.Minor(h.Lockspace)
	dev, err := hk.Attach(h.Lockspace, minor, h.FD)
	if missing != nil && err == nil {
		dev.Close()
	}
	if missing != nil {
		return nil, missing
	}
	return dev, oneOf(err, ErrNoLockspace, ErrInvalid)
}

// resumed makes the locks of h those of ls, before anything is read.
func (ls *Lockspace) resumed(h *Handover) ([]*Lock, error) {
	list := make([]*Lock, len(h.locks))
	ls.lastCookie = h.lastCookie
	ls.locks.Expect(len(h.locks))
	for i := range h.locks {
		n := &h.locks[i]
		if n.lkid == 0 || n.cookie == 0 || n.cookie > h.lastCookie || ls.locks.Get(n.cookie) != nil || checkLock(n.name, n.mode) != nil ||
			n.owed != nil && !n.owed.mode.valid() {
			return nil, fmt.Errorf("%w: the lock on %s is damaged in what was handed over", ErrInvalid, quoteName(n.name))
		}
		l := &Lock{
			ls: ls, name: n.name, cookie: n.cookie, persistent: n.persistent, lkid: n.lkid, mode: n.mode,
			lvb: n.lvb, lvbValid: n.lvbValid, lvbAsked: n.lvbAsked, adopted: n.adopted, owed: n.owed,
		}
		if n.notify {
			l.blocking = make(chan Mode, 1)
			if m := Mode(n.notice); n.notice != noNotice && m.valid() {
				l.blocking <- m
			}
		}
		ls.locks.Put(l)
		list[i] = l
	}
	for _, l := range list {
		l.countLocked() // nobody else knows ls yet; what is owed is under way
	}
	return list, nil
}

// The bytes of a Handover, little endian: handoverFormat, u8 length and bytes of the lockspace's name, i32 descriptor,
// u64 last cookie, u32 number of locks, and for each: u8 flags, u8 mode, i8 notice, u32 id, u64 cookie, u8 length and
// bytes of the name, with handedLVB the LVB, and with handedOwed the u8 mode, and with handedOwedLVB the LVB, of a
// conversion whose result has not come. The values of castAddr and bastAddr belong to the format, as the kernel has them.
//
// With handoverOwed there is such a conversion. Who does not know of that must not go on, as the result would be taken
// for that of another one.
const (
	handoverFormat = 1
	handoverOwed   = 2
)

const (
	handedPersistent = 1 << iota
	handedNotify
	handedAdopted
	handedLVBAsked
	handedLVBValid
	handedLVB
	handedOwed
	handedOwedLVB
)

// handedMin is the least that a lock takes.
const handedMin = 1 + 1 + 1 + 4 + 8 + 1

// MarshalBinary makes bytes of h for UnmarshalBinary in this or a later version. It never fails.
func (h *Handover) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, 64+len(h.locks)*(handedMin+MaxResourceName))
	format := uint8(handoverFormat)
	if slices.ContainsFunc(h.locks, func(n handedLock) bool { return n.owed != nil }) {
		format = handoverOwed
	}
	b = append(b, format, uint8(len(h.Lockspace)))
	b = append(b, h.Lockspace...)
	b = binary.LittleEndian.AppendUint32(b, uint32(int32(h.FD)))
	b = binary.LittleEndian.AppendUint64(b, h.lastCookie)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h.locks)))
	for i := range h.locks {
		n := &h.locks[i]
		var flags uint8
		flags |= flag(n.persistent, handedPersistent) | flag(n.notify, handedNotify) | flag(n.adopted, handedAdopted)
		flags |= flag(n.lvbAsked, handedLVBAsked) | flag(n.lvbValid, handedLVBValid) | flag(n.lvb != LVB{}, handedLVB)
		if n.owed != nil {
			flags |= handedOwed | flag(n.owed.flags&abi.FlagValBlk != 0, handedOwedLVB)
		}
		b = append(b, flags, uint8(n.mode), uint8(n.notice))
		b = binary.LittleEndian.AppendUint32(b, n.lkid)
		b = binary.LittleEndian.AppendUint64(b, n.cookie)
		b = append(append(b, uint8(len(n.name))), n.name...)
		if flags&handedLVB != 0 {
			b = append(b, n.lvb[:]...)
		}
		if flags&handedOwed != 0 {
			b = append(b, uint8(n.owed.mode))
		}
		if flags&handedOwedLVB != 0 {
			b = append(b, n.owed.lvb[:]...)
		}
	}
	return b, nil
}

func flag(on bool, bit uint8) uint8 {
	if on {
		return bit
	}
	return 0
}

var errHandover = fmt.Errorf("%w: these bytes are no lockspace that was handed over", ErrInvalid)

// UnmarshalBinary reads what MarshalBinary made. The error is ErrInvalid; h is as it was then. Resume checks what
// depends on more than the form.
func (h *Handover) UnmarshalBinary(data []byte) error {
	r := handoverReader{b: data}
	if f := r.u8(); f != handoverFormat && f != handoverOwed {
		return errHandover
	}
	n := Handover{Lockspace: r.text(), FD: int(int32(r.u32())), lastCookie: r.u64()}
	count := int(r.u32())
	if r.short || count > len(r.b)/handedMin || checkLockspace(n.Lockspace) != nil {
		return errHandover
	}
	n.locks = make([]handedLock, count)
	r.names = string(r.b) // one piece of memory for all names
	for i := range n.locks {
		l := &n.locks[i]
		flags := r.u8()
		l.mode, l.notice, l.lkid, l.cookie, l.name = Mode(r.u8()), int8(r.u8()), r.u32(), r.u64(), r.text()
		l.persistent, l.notify, l.adopted = flags&handedPersistent != 0, flags&handedNotify != 0, flags&handedAdopted != 0
		l.lvbAsked, l.lvbValid = flags&handedLVBAsked != 0, flags&handedLVBValid != 0
		if flags&handedLVB != 0 {
			copy(l.lvb[:], r.take(len(l.lvb)))
		}
		if flags&handedOwed != 0 {
			l.owed = newRequest(reqConvert, Mode(r.u8()), 0)
			l.owed.written = true
			l.owed.endLocked(ErrNoResult)
			if flags&handedOwedLVB != 0 {
				l.owed.flags = abi.FlagValBlk
				copy(l.owed.lvb[:], r.take(len(l.owed.lvb)))
			}
		}
	}
	if r.short || len(r.b) != 0 {
		return errHandover
	}
	*h = n
	return nil
}

// handoverReader reads bytes. Beyond the end all is zero, and short is set.
type handoverReader struct {
	b     []byte
	names string // the same bytes, and a beginning that was read; empty while texts are to be on their own
	short bool
}

func (r *handoverReader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *handoverReader) u8() uint8   { return r.take(1)[0] }
func (r *handoverReader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *handoverReader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }

func (r *handoverReader) text() string {
	n := int(r.u8())
	if n <= len(r.b) && r.names != "" {
		from := len(r.names) - len(r.b)
		r.b = r.b[n:]
		return r.names[from : from+n]
	}
	return string(r.take(n))
}
