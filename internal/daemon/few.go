package daemon

import (
	"net"
	"sync"
)

// few is a listener that has only so many connections at once; others wait in
// the backlog.
type few struct {
	net.Listener
	places chan struct{}
	once   sync.Once
	closed chan struct{}
}

func newFew(l net.Listener, n int) *few {
	return &few{Listener: l, places: make(chan struct{}, n), closed: make(chan struct{})}
}

func (f *few) Accept() (net.Conn, error) {
	select {
	case f.places <- struct{}{}:
	case <-f.closed:
		return nil, net.ErrClosed
	}
	c, err := f.Listener.Accept()
	if err != nil {
		<-f.places
		return nil, err
	}
	return &oneOfFew{Conn: c, leave: func() { <-f.places }}, nil
}

// Close ends Accept, and leaves connections alone.
func (f *few) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Listener.Close()
}

type oneOfFew struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (c *oneOfFew) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.leave)
	return err
}
