package holder

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Handover is a client between two programs of one process: the connection to the
// holder, and the descriptors that both have. Only FDs may be looked at;
// MarshalBinary makes bytes of it.
type Handover struct {
	fd      int   // of the connection; -1 with missing
	pid     int   // of the holder; 0 if there was none
	missing error // what the holder lacks; nil if it has everything
	next    uint64
	seq     uint32
	quiet   int
	entries []handed // in order of ids
}

type handed struct {
	fd  int
	id  uint64
	key string
}

func byID(a, b handed) int { return cmp.Compare(a.id, b.id) }

// Kept is a descriptor for a holder, with its key.
type Kept struct {
	FD  int
	Key string
}

// Gathered is for descriptors that no Client has had: the one that resumes with them gives them to a
// holder, and its Complete says when that has them all.
func Gathered(list []Kept) *Handover {
	// A holder that is there already has given out lower ones.
	h := &Handover{fd: -1, missing: errNoHolder, next: uint64(time.Now().UnixNano())}
	for _, k := range list {
		h.entries = append(h.entries, handed{fd: k.FD, id: h.next, key: k.Key})
		h.next++
	}
	return h
}

// FDs are the descriptors that must stay open, all close-on-exec.
func (h *Handover) FDs() []int {
	list := make([]int, 0, len(h.entries)+1)
	if h.fd >= 0 {
		list = append(list, h.fd)
	}
	for _, e := range h.entries {
		list = append(list, e.fd)
	}
	return list
}

// Discard closes all descriptors, which the holder keeps.
func (h *Handover) Discard() { closeAll(h.FDs()) }

var errNoHolder = errors.New("there is none just now")

// ErrIncomplete is wrapped when the holder does not have all that it should: some
// locks would end with this process.
var ErrIncomplete = errors.New("the process that keeps locked files open does not have all of them")

// Complete is nil if the holder has everything that it should have, or has it in its
// socket and room for it: then the end of this process ends no lock. Otherwise the error wraps
// ErrIncomplete and says what is missing.
func (c *Client) Complete() error {
	s := c.Status()
	c.mu.Lock()
	why := c.why
	c.mu.Unlock()
	switch {
	case s.PID == 0 && why != nil:
		return fmt.Errorf("%w: %w: %w", ErrIncomplete, errNoHolder, why)
	case s.PID == 0:
		return fmt.Errorf("%w: %w", ErrIncomplete, errNoHolder)
	case s.Unkept > 0:
		return fmt.Errorf("%w: process %d lacks %d files", ErrIncomplete, s.PID, s.Unkept)
	}
	return nil
}

// Handover is Close for a process in which another Client goes on, with Resume: the
// connection stays open, and what is held stays as it is on both sides.
//
// An error that wraps ErrIncomplete comes with a Handover that is good for Resume
// in this program only, as the execution of another one would end locks. With
// ErrClosed there is none.
func (c *Client) Handover() (*Handover, error) {
	if !c.settle() {
		return nil, ErrClosed
	}
	h := c.detach()
	c.end()
	if h.missing != nil {
		return h, fmt.Errorf("%w: %w", ErrIncomplete, h.missing)
	}
	return h, nil
}

// detach makes what Resume needs, of a client that settle has brought to rest.
func (c *Client) detach() *Handover {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &Handover{fd: -1, next: c.next, seq: c.seq, quiet: c.quiet, entries: make([]handed, 0, c.entries.count)}
	unkept := 0
	for e := range c.entries.all() {
		if e.state != kept {
			unkept++
		}
		h.entries = append(h.entries, handed{fd: int(e.fd), id: e.id, key: e.key})
	}
	slices.SortFunc(h.entries, byID)
	switch {
	case c.link == nil:
		h.missing = fmt.Errorf("%w: %w", errNoHolder, c.why)
		return h
	case c.greeting || c.inFlight || len(c.drops) > 0 || len(c.queue) > 0:
		h.missing = errors.New("it has not answered")
	case unkept > 0:
		h.missing = fmt.Errorf("it lacks %d", unkept)
	}
	h.pid = c.link.pid
	if h.missing != nil {
		return h
	}
	// The one that is open belongs to the poller, and ends with it.
	fd, err := unix.FcntlInt(uintptr(c.link.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		h.missing = fmt.Errorf("duplicate the connection: %w", err)
		return h
	}
	h.fd = fd
	return h
}

// Resume goes on with what a client in this process has handed over: Taken gives
// the same descriptors, and nobody is asked. What the holder lacked is put again. It
// takes h over; after an error all its descriptors are closed, and Connect gets
// duplicates from the holder.
func Resume(o Options, h *Handover) (*Client, error) { return resumed(o, h, starter{socket: o.Socket}) }

func resumed(o Options, h *Handover, st starter) (*Client, error) {
	var l *link
	if h.missing == nil {
		var err error
		if l, err = h.link(); err != nil {
			h.Discard()
			return nil, fmt.Errorf("go on with the connection to the holder: %w", err)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		log: o.Log, starter: st, link: l, why: h.missing, next: h.next, seq: h.seq, quiet: h.quiet,
		waiting: map[*entry]chan error{}, greeting: l != nil,
	}
	has := kept
	if l == nil {
		has = queued // until it is asked
	}
	for _, e := range h.entries {
		c.entries.set(&entry{fd: int32(e.fd), key: e.key, id: e.id, state: has, earlier: true})
	}
	if l != nil {
		_ = l.send(hello) // for its version; that it is gone is noticed below
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.running.Go(func() {
		if l == nil {
			l = c.again(ctx, h.pid)
		}
		if l != nil {
			c.run(ctx, l)
		}
	})
	return c, nil
}

// link looks whether the connection is what it should be.
func (h *Handover) link() (*link, error) {
	if kind, err := unix.GetsockoptInt(h.fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("descriptor %d is no connection to a holder (%v)", h.fd, err)
	}
	if err := unix.SetNonblock(h.fd, true); err != nil {
		return nil, err
	}
	l, err := newLink(h.fd)
	if err != nil {
		return nil, err
	}
	l.pid = h.pid
	var limit unix.Rlimit
	if err := unix.Prlimit(l.pid, unix.RLIMIT_NOFILE, nil, &limit); err == nil && limit.Cur > reserve {
		l.limit = int(min(limit.Cur, maxHeld)) - reserve
	}
	return l, nil
}

// The bytes of a Handover, little endian: handoverFormat, then u32 descriptor and
// u32 pid, u64 next, u32 seq, u8 quiet, u32 number of entries, and for each u32
// descriptor, u64 id and the key as in messages.
const handoverFormat = 1

// earlierQuiet is how much quiet a version may have that only dropped without a reply.
const earlierQuiet = 8

// handedMin is the least that an entry takes.
const handedMin = 4 + 8 + 2

// MarshalBinary makes bytes of h for UnmarshalBinary in this or a later version. It
// fails only if another program could not go on with it.
func (h *Handover) MarshalBinary() ([]byte, error) {
	if h.missing != nil {
		return nil, fmt.Errorf("%w: %w", ErrIncomplete, h.missing)
	}
	b := make([]byte, 0, 32+len(h.entries)*(handedMin+32))
	b = append(b, handoverFormat)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.fd))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.pid))
	b = binary.LittleEndian.AppendUint64(b, h.next)
	b = binary.LittleEndian.AppendUint32(b, h.seq)
	b = append(b, uint8(min(h.quiet, earlierQuiet)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h.entries)))
	for _, e := range h.entries {
		b = binary.LittleEndian.AppendUint32(b, uint32(e.fd))
		b = binary.LittleEndian.AppendUint64(b, e.id)
		b = appendKey(b, e.key)
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary made. After an error h is as it was.
func (h *Handover) UnmarshalBinary(data []byte) error {
	c := &cursor{b: data}
	if c.u8() != handoverFormat {
		return errMalformed
	}
	n := Handover{fd: int(int32(c.u32())), pid: int(int32(c.u32())), next: c.u64(), seq: c.u32(), quiet: int(c.u8())}
	count := int(c.u32())
	if c.short || count > len(c.b)/handedMin || n.fd < 0 || n.next == 0 || n.quiet > earlierQuiet {
		return errMalformed
	}
	n.entries = make([]handed, count)
	last := uint64(0)
	for i := range n.entries {
		e := handed{fd: int(int32(c.u32())), id: c.u64(), key: c.key()}
		if c.short || e.fd < 0 || e.fd > maxFD || e.id <= last || e.id >= n.next {
			return errMalformed
		}
		last = e.id
		n.entries[i] = e
	}
	fds := n.FDs()
	slices.Sort(fds)
	if len(c.b) != 0 || len(slices.Compact(fds)) != count+1 {
		return errMalformed
	}
	*h = n
	return nil
}
