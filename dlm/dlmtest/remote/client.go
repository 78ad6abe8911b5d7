package remote

import (
	"encoding/gob"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
)

// Kernel is the kernel of the server that dial connects to.
func Kernel(dial func() (net.Conn, error)) dlm.Kernel { return &client{dial} }

type client struct {
	dial func() (net.Conn, error)
}

// ask connects, says what for, and returns the server's answer.
func (c *client) ask(h hello) (*device, frame, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, frame{}, err
	}
	d := &device{conn: conn, out: &sender{enc: gob.NewEncoder(conn)}, answers: map[uint64]chan frame{}, done: make(chan struct{})}
	d.readable.L = &d.mu
	in := gob.NewDecoder(conn)
	var f frame
	if err := d.out.enc.Encode(h); err != nil {
		conn.Close()
		return nil, frame{}, fmt.Errorf("remote: %w", err)
	}
	if err := in.Decode(&f); err != nil {
		conn.Close()
		return nil, frame{}, fmt.Errorf("remote: %w", err)
	}
	if err := f.Failed.err(); err != nil {
		conn.Close()
		return nil, frame{}, err
	}
	if h.What == "minor" || h.What == "changed" {
		conn.Close()
		return nil, f, nil
	}
	go d.receive(in)
	return d, f, nil
}

func (c *client) Control() (dlm.Device, error) {
	d, _, err := c.ask(hello{What: "control"})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (c *client) Minor(lockspace string) (uint32, error) {
	_, f, err := c.ask(hello{What: "minor", Lockspace: lockspace})
	return uint32(f.N), err
}

func (c *client) MembersChanged(lockspace string) (at time.Time, err error) {
	_, f, err := c.ask(hello{What: "changed", Lockspace: lockspace})
	if err != nil {
		return at, err
	}
	return at, at.UnmarshalBinary(f.Data)
}

func (c *client) Lockspace(lockspace string, minor uint32) (dlm.Device, error) {
	d, _, err := c.ask(hello{What: "lockspace", Lockspace: lockspace, Minor: minor})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (c *client) Attach(lockspace string, minor uint32, fd int) (dlm.Device, error) {
	d, _, err := c.ask(hello{What: "attach", Lockspace: lockspace, Minor: minor, FD: fd})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// device is an open device of the server. What the connection cannot do any more fails with ESHUTDOWN.
type device struct {
	conn net.Conn
	out  *sender
	done chan struct{} // closed when nothing is received any more

	mu       sync.Mutex // guards what follows
	readable sync.Cond
	results  []frame
	answers  map[uint64]chan frame
	last     uint64
	closed   bool
	detached bool // and closed
	lost     bool
}

func (d *device) receive(in *gob.Decoder) {
	defer close(d.done)
	for {
		var f frame
		err := in.Decode(&f)
		d.mu.Lock()
		switch {
		case err != nil:
			d.lost = true
			for _, c := range d.answers {
				close(c)
			}
			d.answers = nil
			d.readable.Broadcast()
			d.mu.Unlock()
			return
		case f.Kind == kindResult:
			d.results = append(d.results, f)
			d.readable.Signal()
		default:
			if c := d.answers[f.ID]; c != nil {
				c <- f
				delete(d.answers, f.ID)
			}
		}
		d.mu.Unlock()
	}
}

func (d *device) call(f frame) (int, error) {
	d.mu.Lock()
	if d.lost {
		d.mu.Unlock()
		return 0, syscall.ESHUTDOWN
	}
	d.last++
	f.ID = d.last
	c := make(chan frame, 1)
	d.answers[f.ID] = c
	d.mu.Unlock()
	d.out.send(f)
	f, ok := <-c
	if !ok {
		return 0, syscall.ESHUTDOWN
	}
	return f.N, f.Failed.err()
}

func (d *device) Write(request []byte) (int, error) {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed {
		return 0, os.ErrClosed
	}
	return d.call(frame{Kind: kindWrite, Data: request})
}

func (d *device) Read(buf []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.results) == 0 && !d.closed && !d.lost {
		d.readable.Wait()
	}
	switch {
	case d.closed && (!d.detached || len(d.results) == 0):
		return 0, os.ErrClosed
	case len(d.results) == 0:
		return 0, syscall.ESHUTDOWN
	}
	f := d.results[0]
	d.results = d.results[1:]
	return copy(buf, f.Data), f.Failed.err()
}

func (d *device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return os.ErrClosed
	}
	d.closed = true
	d.readable.Broadcast()
	d.mu.Unlock()
	_, err := d.call(frame{Kind: kindClose})
	d.conn.Close()
	<-d.done
	if err == syscall.ESHUTDOWN {
		return nil // the server is gone, and has closed it
	}
	return err
}

// Detach leaves the device open in the server. What the server has read comes before its answer, and is read here first.
func (d *device) Detach() (int, error) {
	fd, err := d.call(frame{Kind: kindDetach})
	if err != nil {
		return -1, err
	}
	d.mu.Lock()
	d.closed, d.detached = true, true
	d.readable.Broadcast()
	d.mu.Unlock()
	d.conn.Close()
	<-d.done
	return fd, nil
}
