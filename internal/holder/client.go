package holder

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrConnected is returned by Connect when another daemon uses the holder.
	ErrConnected = errors.New("another vmlockd is connected to the holder of its descriptors")
	// ErrFull is returned by Put when the holder is at its limit of open files.
	ErrFull = errors.New("the process that holds descriptors is at its limit of open files (RLIMIT_NOFILE, LimitNOFILE= of the service)")
	// ErrTake is returned by Connect when this process has not enough free
	// descriptors for what the holder has.
	ErrTake = errors.New("this process cannot open as many files as the holder has (RLIMIT_NOFILE, LimitNOFILE= of the service)")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the connection to the holder was closed by this process")
)

// Options are for Connect.
type Options struct {
	// Socket is the path of the holder's socket, at most 106 bytes (unix(7), and one for its name until it
	// is served), in a
	// directory where only this user can create files and that outlives the
	// daemon: a holder whose socket was removed is never found again.
	Socket string
	// Log is told when the holder ends, and when it is there again. Nil: nobody is.
	Log *slog.Logger
	// Wait makes Connect wait until a holder that it starts has answered.
	Wait bool
}

// Client is the daemon's side. Its methods may be called from many goroutines.
type Client struct {
	log     *slog.Logger
	starter starter // used by Connect, then by run

	cancel  context.CancelFunc
	running sync.WaitGroup
	answers sync.Pool // of chan error with room for one, which nobody waits for

	mu       sync.Mutex            // guards all below; held for a few microseconds at a time
	link     *link                 // nil while there is no holder
	entries  byFD                  // everything the holder has or is to have
	waiting  map[*entry]chan error // who waits in Put; the channels have room for one
	queue    []*entry              // to be sent
	drops    []uint64              // to be sent
	flying   []*entry              // sent with asked
	greeting bool                  // hello was sent, and is not answered
	inFlight bool                  // a message that wants a reply was sent, and has none
	asked    uint32                // its number
	// quiet, quietBytes and quietFDs are what was sent since, or since the last one that wanted a reply.
	quiet, quietBytes, quietFDs int

	gathering bool   // somebody is about to send what waits
	next      uint64 // the next id
	seq       uint32 // the number of the last message
	// bases are those of the last messages by their numbers, also of what could not be sent, and of more than can
	// be unanswered: one that wants a reply, and maxQuiet before and after it. 0: none.
	bases   [256]uint64
	why     error // why there is no holder
	closed  bool
	drained chan struct{} // set by Close, closed when nothing is left to be sent
	unkept  int           // how many of entries the holder refused when they were put again
	retry   *time.Timer   // puts these once more

	msg, oob []byte
	fds      []int
	request  changeRequest
}

type state uint8

const (
	queued state = iota
	flying
	kept
	forgotten // by Drop, or because its Put gave up
	refused   // by a holder that replaced the one that had it
)

// entry is one descriptor. It is the same open file as long as the entry is in
// Client.entries. There is one for each lock, so the small fields are together.
type entry struct {
	key   string
	id    uint64 // of the last time it was sent
	fd    int32
	state state
	// earlier is set if it was there when the client was made.
	earlier bool
}

// Connect connects to the holder and receives everything that it has: see Taken. If none
// runs it starts one, and does not wait for that one without Options.Wait. ErrConnected, ErrTake, the
// context's error, or whatever system call failed.
func Connect(ctx context.Context, o Options) (*Client, error) {
	return connect(ctx, o, starter{socket: o.Socket})
}

func connect(ctx context.Context, o Options, st starter) (*Client, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{log: o.Log, starter: st, waiting: map[*entry]chan error{}}
	l, hello, err := c.starter.connect(ctx, !o.Wait)
	if err != nil {
		return nil, err
	}
	if hello.version == 0 {
		c.greeting = true // it was started just now, and has nothing
	} else {
		stop := l.until(ctx)
		err = c.take(l)
		stop()
		if err != nil {
			for e := range c.entries.all() {
				_ = unix.Close(int(e.fd))
			}
			l.file.Close()
			return nil, withContext(ctx, err)
		}
	}
	c.link, c.next = l, max(hello.next, 1)
	ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.running.Go(func() { c.run(ctx, l) })
	return c, nil
}

// take receives what the holder has, which keeps it.
func (c *Client) take(l *link) error {
	return list(l, true, func(e listed, fd int) {
		c.entries.set(&entry{fd: int32(fd), key: e.key, id: e.id, state: kept, earlier: true})
	})
}

// list calls f with each of the holder's entries. fd is -1 without withFDs, and
// f's to close otherwise.
func list(l *link, withFDs bool, f func(e listed, fd int)) error {
	var after uint64
	for {
		request := listRequest{after: after, withFDs: withFDs}.append(header{op: opList}.append(nil))
		h, body, p, err := l.call(0, request, opList)
		if err != nil {
			return err
		}
		entries, err := decodeListReply(body, after)
		switch {
		case h.errno != 0:
			err = statusError(h.errno)
		case p.cut:
			err = ErrTake
		case err == nil && withFDs && len(p.fds) != len(entries) || !withFDs && len(p.fds) != 0:
			err = errMalformed
		}
		if err != nil {
			closeAll(p.fds)
			return fmt.Errorf("list what the holder has: %w", err)
		}
		if len(entries) == 0 {
			return nil
		}
		for i, e := range entries {
			if withFDs {
				f(e, p.fds[i])
			} else {
				f(e, -1)
			}
			after = e.id
		}
	}
}

// Taken gives the key and the descriptor of everything that the holder had when
// this client connected, and that was not dropped since, in the order in which it
// was put; a key can occur several times. The descriptors are duplicates of the
// holder's (the same open file descriptions, close-on-exec), and are held on until
// Drop.
func (c *Client) Taken() iter.Seq2[string, int] {
	c.mu.Lock()
	list := make([]handed, 0, c.entries.count)
	for e := range c.entries.all() {
		if e.earlier {
			list = append(list, handed{fd: int(e.fd), id: e.id, key: e.key})
		}
	}
	c.mu.Unlock()
	// If the holder has ended meanwhile the ids are new ones, in the same order.
	slices.SortFunc(list, byID)
	return func(yield func(string, int) bool) {
		for _, e := range list {
			if !yield(e.key, e.fd) {
				return
			}
		}
	}
}

// Put gives the holder a duplicate of fd. When it returns nil the holder has it, or has
// it in its socket and room for it: both outlive this process. Until Drop(fd) the caller
// keeps fd open: it is given to the next holder if this one ends. While there is no holder
// Put waits for the next one.
//
// After an error fd may be closed; the holder has no duplicate, or closes the one
// it has as soon as it can. So what must end at once, such as a lock, is ended
// explicitly and not by closing. Errors: the context's, wrapped with the reason
// why there is no holder; ErrFull; ErrClosed; unix.ETOOMANYREFS when another
// process of this user has too many descriptors in flight (unix(7)); unix.EINVAL
// for a key longer than MaxKey, unix.EBADF for what is no descriptor and unix.EEXIST
// for an fd that was put already.
func (c *Client) Put(ctx context.Context, key string, fd int) error {
	if len(key) > MaxKey {
		return fmt.Errorf("a key of %d bytes: %w", len(key), unix.EINVAL)
	}
	if fd < 0 || fd > maxFD {
		return fmt.Errorf("descriptor %d: %w", fd, unix.EBADF)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	done, ok := c.answers.Get().(chan error)
	if !ok {
		done = make(chan error, 1)
	}
	e := &entry{fd: int32(fd), key: key}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	if c.entries.get(fd) != nil {
		c.mu.Unlock()
		return fmt.Errorf("descriptor %d was put already: %w", fd, unix.EEXIST)
	}
	c.entries.set(e)
	c.waiting[e] = done
	c.queue = append(c.queue, e)
	c.lockedGather()
	c.mu.Unlock()

	select {
	case err := <-done:
		c.answers.Put(done) // nobody sends a second one
		return err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case err := <-done:
		return err
	default:
	}
	c.lockedForget(e)
	c.lockedPump()
	if c.link == nil {
		return fmt.Errorf("there is no process to hold descriptors (%w): %w", c.why, ctx.Err())
	}
	return fmt.Errorf("the process that holds descriptors (%d) has not answered: %w", c.link.pid, ctx.Err())
}

// lockedRoomy says whether the holder is sure to have room for all that it was sent. What it closes
// takes room as well for a while, of which it does not tell: hence half. A holder of version 1 loses what is
// behind a hello that it cannot answer any more. One that has refused something has less room than it said.
func (c *Client) lockedRoomy() bool {
	return !c.greeting && !c.link.full && c.entries.count <= c.link.limit/2
}

// Drop makes the holder close its duplicate of fd, a while later. It must be
// called before fd is closed, and does not wait. What was not put is ignored.
func (c *Client) Drop(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries.get(fd); e != nil {
		c.lockedForget(e)
		c.lockedGather()
	}
}

// lockedForget ends the use of e.fd by the client.
func (c *Client) lockedForget(e *entry) {
	c.entries.remove(e)
	delete(c.waiting, e)
	switch e.state {
	case queued:
		if i := slices.Index(c.queue, e); i >= 0 { // not in the queue while there is no holder
			c.queue = slices.Delete(c.queue, i, i+1)
		}
	case kept:
		if c.link != nil { // the next holder is asked what it has, and drops what it should not
			c.drops = append(c.drops, e.id)
		}
	case refused:
		c.unkept--
	}
	e.state = forgotten
}

// Status is what the client knows of the holder.
type Status struct {
	PID    int // of the holder; 0 while there is none
	Held   int // descriptors that it has, or has in its socket, and was not told to drop
	Unkept int // descriptors that it should have and does not, as it is new or at its limit
}

// Status may be called at any time.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{}
	if c.link != nil {
		s.PID = c.link.pid
	}
	for e := range c.entries.all() {
		switch {
		case e.state == kept, e.state == flying && c.waiting[e] == nil && c.link != nil && c.lockedRoomy():
			s.Held++
		case c.waiting[e] == nil: // has been held
			s.Unkept++
		}
	}
	return s
}

// closeTimeout bounds how long Close waits for a holder that does not answer. A variable
// for tests.
var closeTimeout = time.Second

// Close ends the connection; Put calls under way fail with ErrClosed. The holder
// keeps what it has, and this process its descriptors. What was dropped before is
// dropped, if the holder answers within a second; otherwise the next client has to.
func (c *Client) Close() error {
	if c.settle() {
		c.end()
	}
	return nil
}

// settle lets nothing new begin, and waits for what was dropped to be sent. It
// reports false if the client was closed before.
func (c *Client) settle() bool {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.closed = true
	if c.retry != nil {
		c.retry.Stop()
	}
	for e, done := range c.waiting {
		c.lockedForget(e)
		done <- ErrClosed
	}
	drained := make(chan struct{})
	c.drained = drained
	c.lockedPump() // which forgets c.drained if there is nothing to wait for
	c.mu.Unlock()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	}
	return true
}

// end cuts the link after settle.
func (c *Client) end() {
	c.mu.Lock()
	c.lockedCut(ErrClosed)
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
}
