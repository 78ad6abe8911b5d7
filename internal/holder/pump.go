package holder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// firstPause and longestPause are between tries to get a holder.
	firstPause   = 20 * time.Millisecond
	longestPause = time.Second
	// refusedPause is how long after a new holder refused a descriptor, for it is
	// at its limit, the descriptor is put again.
	refusedPause = time.Second
	// maxQuiet and maxQuietBytes bound the messages that want no reply between two that
	// want one. As many may follow while a reply is awaited, so that all of them must fit into the
	// socket while the holder is kept from running; the kernel counts 1 KiB more for each.
	maxQuiet      = 64
	maxQuietBytes = 2 * maxMessage
	// maxQuietFDs bounds their descriptors: with it at most five messages full of them are in flight.
	maxQuietFDs = maxFDs
)

// lockedGather lets who is about to run add to what waits, and sends all of it: many share
// a message. When nobody else has anything to do it costs next to nothing. It unlocks mu
// meanwhile.
func (c *Client) lockedGather() {
	if c.gathering {
		return
	}
	c.gathering = true
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	c.gathering = false
	c.lockedPump()
}

// lockedPump sends what waits. A message that the holder is sure to carry out wants no
// reply, and the next one may follow at once. There is one at a time that wants one.
func (c *Client) lockedPump() {
	c.lockedSend()
	if c.drained == nil || c.link != nil && (c.inFlight || c.greeting) {
		return
	}
	if c.link != nil && c.quiet > 0 && c.link.version >= toldOf {
		c.lockedAsk() // whether all of it was carried out
		return
	}
	close(c.drained) // everything was sent, or there is no holder
	c.drained = nil
}

func (c *Client) lockedSend() {
	limit := maxFDs
	for c.link != nil && len(c.drops)+len(c.queue) > 0 {
		quiet := c.lockedQuiet()
		if c.inFlight && !quiet {
			return
		}
		batch := c.lockedBatch(limit, quiet)
		err := send(c.link.fd, c.msg, c.oob)
		switch {
		case err == nil:
			c.drops = slices.Delete(c.drops, 0, len(c.request.drops))
			c.lockedSent(batch, quiet)
			n := copy(c.queue, c.queue[len(batch):])
			clear(c.queue[n:])
			c.queue = c.queue[:n]
		case len(batch) == 0 || err != unix.EBADF && err != unix.ETOOMANYREFS && err != unix.EINVAL:
			c.lockedCut(fmt.Errorf("send to it: %w", err))
			return
		case len(batch) > 1:
			limit = 1 // one of them is to blame, and the others shall not suffer
		default:
			bad := c.queue[0] // and not batch[0], which is the next one after Delete
			c.queue = slices.Delete(c.queue, 0, 1)
			c.lockedFail(bad, fmt.Errorf("pass descriptor %d to the holder: %w", bad.fd, err))
		}
	}
}

// lockedQuiet says whether the next message needs no reply.
func (c *Client) lockedQuiet() bool {
	return c.quiet < maxQuiet && c.quietBytes < maxQuietBytes && c.quietFDs < maxQuietFDs && (len(c.queue) == 0 || c.lockedSure())
}

// lockedSure says whether what is in the holder's socket is sure to be held, or else told
// of: then nobody needs to wait for a reply.
func (c *Client) lockedSure() bool { return c.link.version >= toldOf && c.lockedRoomy() }

// lockedBatch makes the next message, with limit descriptors at most, and
// returns the part of the queue that it brings.
func (c *Client) lockedBatch(limit int, quiet bool) []*entry {
	r := &c.request
	r.base = c.next
	r.drops = c.drops[:min(len(c.drops), maxDrops)]
	size := changeFixed + 8*len(r.drops)
	r.puts, c.fds = r.puts[:0], c.fds[:0]
	for _, e := range c.queue[:min(len(c.queue), limit)] {
		if size += 2 + len(e.key); size > maxMessage {
			break
		}
		e.id = c.next + uint64(len(r.puts))
		r.puts = append(r.puts, e.key)
		c.fds = append(c.fds, int(e.fd))
	}
	c.next += uint64(len(r.puts))
	c.seq++
	c.bases[c.seq%uint32(len(c.bases))] = r.base
	c.msg = r.append(header{op: opChange, quiet: quiet, seq: c.seq}.append(c.msg[:0]))
	c.oob = appendRights(c.oob[:0], c.fds)
	return c.queue[:len(r.puts)]
}

// lockedSent notes that the message with seq, which brought batch, is in the socket.
func (c *Client) lockedSent(batch []*entry, quiet bool) {
	if quiet {
		c.quiet++
		c.quietBytes += len(c.msg)
		c.quietFDs += len(batch)
		for _, e := range batch {
			c.lockedKept(e)
		}
		return
	}
	c.quiet, c.quietBytes, c.quietFDs = 0, 0, 0
	c.inFlight, c.asked = true, c.seq
	c.flying = append(c.flying[:0], batch...)
	for _, e := range batch {
		e.state = flying
		if done := c.waiting[e]; done != nil && c.lockedRoomy() {
			done <- nil // it outlives this process, and there is room for it
			delete(c.waiting, e)
		}
	}
}

// lockedAsk sends a message of which nothing is wanted but the reply.
func (c *Client) lockedAsk() {
	batch := c.lockedBatch(0, false)
	if err := send(c.link.fd, c.msg, nil); err != nil {
		c.lockedCut(fmt.Errorf("send to it: %w", err))
		return
	}
	c.lockedSent(batch, false)
}

// lockedFail ends the wait for e, or puts it aside if nobody waits.
func (c *Client) lockedFail(e *entry, err error) {
	if done := c.waiting[e]; done != nil {
		c.entries.remove(e)
		delete(c.waiting, e)
		e.state = forgotten
		done <- err
		return
	}
	e.state = refused
	c.unkept++
	if c.unkept == 1 && !c.closed {
		c.log.Error("a lock would not survive the daemon's death now: its descriptor is not held; it is tried again",
			"key", e.key, "reason", err)
		c.retry = time.AfterFunc(refusedPause, c.putRefused)
	}
}

func (c *Client) putRefused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	for e := range c.entries.all() {
		if e.state == refused {
			e.state = queued
			c.queue = append(c.queue, e)
		}
	}
	c.unkept = 0
	c.lockedPump()
}

// lockedCut ends the use of the link. All that was not acknowledged waits for the next one.
func (c *Client) lockedCut(why error) {
	if c.link == nil {
		return
	}
	c.link.file.Close()
	c.link, c.why, c.inFlight, c.greeting = nil, why, false, false
	c.quiet, c.quietBytes, c.quietFDs = 0, 0, 0
	clear(c.bases[:])
	c.flying, c.drops, c.queue = nil, nil, nil // resume makes them anew from entries
	c.lockedPump()
}

// run receives what the holder says, and gets the next holder when one ends.
func (c *Client) run(ctx context.Context, l *link) {
	for {
		err := c.receive(l)
		c.mu.Lock()
		c.lockedCut(err)
		err, closed := c.why, c.closed
		c.mu.Unlock()
		if closed {
			reap(l.pid)
			return
		}
		c.log.Error("the process that holds descriptors is gone; a new one gets them", "pid", l.pid, "reason", err)
		old := l.pid
		if l = c.again(ctx, old); l == nil {
			return
		}
		c.log.Info("descriptors are held again", "pid", l.pid)
		if l.pid != old {
			reap(old)
		}
	}
}

func (c *Client) receive(l *link) error {
	for {
		p, err := l.receive()
		if err == nil {
			err = c.acknowledged(p)
		}
		if err != nil {
			return err
		}
	}
}

// again connects until it works or ctx ends.
func (c *Client) again(ctx context.Context, old int) *link {
	pause := firstPause
	told := ""
	for {
		reap(old)
		reap(c.starter.child)
		l, err := c.resume(ctx)
		if err == nil {
			return l
		}
		c.mu.Lock()
		c.why = err
		c.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			c.log.Error("there is no process to hold descriptors, so no lock can be granted", "reason", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, longestPause)
	}
}

// resume connects and brings the holder to what it should have. A new one has
// nothing; but if only the connection was lost, it has what it had.
func (c *Client) resume(ctx context.Context) (*link, error) {
	l, hello, err := c.starter.connect(ctx, false)
	if err != nil {
		return nil, err
	}
	stop := l.until(ctx)
	has := map[uint64]bool{}
	err = list(l, false, func(e listed, _ int) { has[e.id] = true })
	stop()
	if err != nil {
		l.file.Close()
		return nil, withContext(ctx, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.file.Close()
		return nil, errors.Join(ErrClosed, ctx.Err())
	}
	c.link, c.why = l, nil
	c.next = max(c.next, hello.next)
	c.queue, c.drops, c.unkept = nil, nil, 0
	for e := range c.entries.all() {
		if has[e.id] {
			delete(has, e.id)
			c.lockedKept(e)
			continue
		}
		e.state = queued
		c.queue = append(c.queue, e)
	}
	// Held ones first: the locks of running machines, in the order of before.
	slices.SortFunc(c.queue, func(a, b *entry) int {
		if held := c.waiting[a] == nil; held != (c.waiting[b] == nil) {
			if held {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.id, b.id)
	})
	for id := range has {
		c.drops = append(c.drops, id)
	}
	c.lockedPump()
	return l, nil
}
