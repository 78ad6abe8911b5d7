package holder

import "golang.org/x/sys/unix"

// acknowledged handles a reply.
func (c *Client) acknowledged(p packet) error {
	closeAll(p.fds)
	h, body, err := decodeHeader(p.data)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.link == nil: // it was cut meanwhile
		return c.why
	case h.op == opHello && c.greeting:
		err = c.lockedGreeted(h, body)
	case h.op == opChange && c.inFlight && h.seq == c.asked:
		err = c.lockedAnswered(h, body)
	case h.op == opChange && h.errno != 0 && c.seq-h.seq < uint32(len(c.bases)):
		err = c.lockedNotKept(h, body)
	default:
		err = errMalformed
	}
	if err == nil {
		c.lockedPump()
	}
	return err
}

// lockedGreeted handles what a holder says first.
func (c *Client) lockedGreeted(h header, body *cursor) error {
	hello, err := greeted(h, body)
	if err != nil {
		return err
	}
	c.greeting = false
	c.link.version = min(version, hello.version)
	if c.link.limit == 0 {
		c.link.limit = int(hello.limit)
	}
	return nil
}

// lockedAnswered handles the reply to what flies.
func (c *Client) lockedAnswered(h header, body *cursor) error {
	r, err := decodeChangeReply(body, len(c.flying))
	if err != nil {
		return err
	}
	for i, e := range c.flying {
		switch {
		case i >= int(r.kept) && e.state == flying:
			c.lockedFail(e, statusError(max(h.errno, unix.EPERM)))
		case i < int(r.kept) && e.state == forgotten:
			c.drops = append(c.drops, e.id)
		case e.state == flying:
			c.lockedKept(e)
		}
	}
	c.link.full = int(r.kept) < len(c.flying) || c.link.full && (c.unkept > 0 || len(c.queue) > 0)
	clear(c.flying)
	c.flying = c.flying[:0]
	c.inFlight = false
	return nil
}

// lockedNotKept handles what the holder says of a message that wanted no reply, as it
// could not keep all that came with it.
func (c *Client) lockedNotKept(h header, body *cursor) error {
	r, err := decodeChangeReply(body, maxFDs)
	base := c.bases[h.seq%uint32(len(c.bases))]
	if err != nil || base == 0 {
		return errMalformed
	}
	first, end := base+uint64(r.kept), c.next
	if h.seq != c.seq {
		// The next message, whatever it was, has another base, or the same one if it brought nothing.
		end = c.bases[(h.seq+1)%uint32(len(c.bases))]
	}
	c.link.full = true
	var lost []*entry
	for e := range c.entries.all() {
		if e.state == kept && first <= e.id && e.id < end {
			lost = append(lost, e)
		}
	}
	for _, e := range lost {
		c.lockedFail(e, statusError(h.errno))
	}
	return nil
}

func (c *Client) lockedKept(e *entry) {
	e.state = kept
	if done := c.waiting[e]; done != nil {
		done <- nil
		delete(c.waiting, e)
	}
}
