package remote

import (
	"encoding/json"
	"net"
	"sync"

	"github.com/vmlockd/vmlockd/corosync"
)

// System is the System that is served where dial leads to.
func System(dial func() (net.Conn, error)) corosync.System { return system(dial) }

type system func() (net.Conn, error)

// conn is the client's side of a connection.
type conn struct {
	conn    net.Conn
	out     *json.Encoder
	self    corosync.Member
	max     int
	deliver func(corosync.Event)
	ready   chan struct{}
	replies chan message
	done    chan struct{}

	mu     sync.Mutex // guards the rest
	events []corosync.Event
	broken bool
}

func (s system) open(op, name string, deliver func(corosync.Event)) (*conn, error) {
	nc, err := s()
	if err != nil {
		return nil, corosync.ErrNotRunning
	}
	c := &conn{
		conn: nc, out: json.NewEncoder(nc), deliver: deliver, ready: make(chan struct{}, 1), replies: make(chan message, 1), done: make(chan struct{}),
	}
	go c.read()
	reply, err := c.ask(message{Op: op, Name: name})
	if err != nil {
		c.end()
		return nil, err
	}
	c.self, c.max = reply.Self, reply.Max
	return c, nil
}

func (c *conn) read() {
	defer close(c.done)
	defer close(c.replies)
	in := json.NewDecoder(c.conn)
	for {
		var m message
		err := in.Decode(&m)
		if err == nil && m.Reply {
			c.replies <- m
			continue
		}
		c.mu.Lock()
		switch {
		case err != nil:
			c.broken = true
		case m.Message != nil:
			c.events = append(c.events, *m.Message)
		case m.View != nil:
			c.events = append(c.events, *m.View)
		case m.Ring != nil:
			c.events = append(c.events, *m.Ring)
		}
		c.mu.Unlock()
		c.wake()
		if err != nil {
			return
		}
	}
}

func (c *conn) wake() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

func (c *conn) ask(m message) (message, error) {
	if err := c.out.Encode(m); err != nil {
		return message{}, corosync.ErrNotRunning
	}
	reply, ok := <-c.replies
	if !ok {
		return message{}, corosync.ErrNotRunning
	}
	return reply, reply.err()
}

func (c *conn) end() {
	_ = c.conn.Close()
	<-c.done
}

func (c *conn) Ready() <-chan struct{} { return c.ready }
func (c *conn) Self() corosync.Member  { return c.self }
func (c *conn) MaxMessage() int        { return c.max }

func (c *conn) Dispatch() error {
	c.mu.Lock()
	events, broken := c.events, c.broken
	c.events = nil
	c.mu.Unlock()
	for _, ev := range events {
		c.deliver(ev)
	}
	if broken {
		return corosync.ErrNotRunning
	}
	return nil
}

func (c *conn) Send(data []byte) error {
	_, err := c.ask(message{Op: "send", Data: data})
	return err
}

func (c *conn) Close() error {
	_, err := c.ask(message{Op: "close"})
	c.end()
	return err
}

// OpenCPG implements corosync.System.
func (s system) OpenCPG(group string, deliver func(corosync.Event)) (corosync.CPG, error) {
	c, err := s.open("cpg", group, deliver)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// OpenQuorum implements corosync.System.
func (s system) OpenQuorum(deliver func(corosync.Event)) (corosync.Conn, error) {
	c, err := s.open("quorum", "", deliver)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// OpenCmap implements corosync.System.
func (s system) OpenCmap() (corosync.Map, error) {
	c, err := s.open("cmap", "", nil)
	if err != nil {
		return nil, err
	}
	return cmap{c}, nil
}

type cmap struct{ c *conn }

func (m cmap) Get(key string) (corosync.Value, error) {
	reply, err := m.c.ask(message{Op: "get", Name: key})
	if reply.Number != nil {
		return corosync.UintValue(*reply.Number), err
	}
	return corosync.TextValue(reply.Text), err
}

func (m cmap) Keys(prefix string, limit int) ([]string, error) {
	reply, err := m.c.ask(message{Op: "keys", Name: prefix, Limit: limit})
	return reply.Keys, err
}

func (m cmap) Close() error {
	err := m.c.out.Encode(message{Op: "close"})
	m.c.end()
	return err
}
