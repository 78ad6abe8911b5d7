// Package remote passes a corosync.System over a connection, so that one test process can be a process of several
// nodes. It changes nothing, and is for tests: it trusts the other side.
//
// Each connection to corosync has one connection of its own, on which there are JSON values: requests to the server,
// and from it replies, one for each request, and events.
package remote

import (
	"encoding/json"
	"errors"
	"net"
	"sync"

	"github.com/vmlockd/vmlockd/corosync"
)

// message is whatever goes over the connection.
type message struct {
	// From the client.
	Op    string `json:",omitempty"` // "cpg", "quorum", "cmap" first, and then "send", "get", "keys", "close"
	Name  string `json:",omitempty"` // group, key or prefix
	Limit int    `json:",omitempty"`

	// From the server.
	Reply   bool                 `json:",omitempty"`
	Err     string               `json:",omitempty"`
	Code    int                  `json:",omitempty"`
	Self    corosync.Member      `json:",omitzero"`
	Max     int                  `json:",omitempty"`
	Text    string               `json:",omitempty"`
	Number  *uint64              `json:",omitempty"`
	Keys    []string             `json:",omitempty"`
	Message *corosync.Message    `json:",omitempty"`
	View    *corosync.Membership `json:",omitempty"`
	Ring    *corosync.Ring       `json:",omitempty"`

	// Both ways.
	Data []byte `json:",omitempty"`
}

var sentinels = []error{
	corosync.ErrNoLibrary, corosync.ErrNotRunning, corosync.ErrAccess, corosync.ErrTryAgain, corosync.ErrNoKey, corosync.ErrMember, corosync.ErrInvalid,
}

func (m *message) setError(err error) {
	if err == nil {
		return
	}
	m.Err = err.Error()
	var code corosync.LibraryError
	if errors.As(err, &code) {
		m.Code = int(code)
	}
	for i, s := range sentinels {
		if errors.Is(err, s) {
			m.Code = -1 - i
		}
	}
}

func (m *message) err() error {
	switch {
	case m.Err == "":
		return nil
	case m.Code < 0 && -m.Code <= len(sentinels):
		return sentinels[-1-m.Code]
	case m.Code > 0:
		return corosync.LibraryError(m.Code)
	}
	return errors.New(m.Err)
}

// Serve gives a System to whoever connects, until the listener ends; then it waits for the connections' ends.
func Serve(l net.Listener, sys corosync.System) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer conn.Close()
			serve(conn, sys)
		})
	}
}

func serve(conn net.Conn, sys corosync.System) {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	var first message
	if in.Decode(&first) != nil {
		return
	}
	deliver := func(ev corosync.Event) {
		var m message
		switch ev := ev.(type) {
		case corosync.Message:
			m.Message = &ev
		case corosync.Membership:
			m.View = &ev
		case corosync.Ring:
			m.Ring = &ev
		}
		_ = out.Encode(m)
	}
	reply := message{Reply: true}
	var c corosync.Conn
	var err error
	switch first.Op {
	case "cpg":
		var g corosync.CPG
		if g, err = sys.OpenCPG(first.Name, deliver); err == nil {
			c, reply.Max = g, g.MaxMessage()
		}
	case "quorum":
		c, err = sys.OpenQuorum(deliver)
	case "cmap":
		serveMap(in, out, sys)
		return
	default:
		return
	}
	reply.setError(err)
	if err == nil {
		reply.Self = c.Self()
	}
	if out.Encode(reply) != nil || err != nil {
		return
	}
	closed := false
	defer func() {
		if !closed {
			_ = c.Close()
		}
	}()

	requests, done := make(chan message), make(chan struct{})
	defer close(done)
	go func() {
		defer close(requests)
		for {
			var m message
			if in.Decode(&m) != nil {
				return
			}
			select {
			case requests <- m:
			case <-done:
				return
			}
		}
	}()
	for {
		select {
		case _, ok := <-c.Ready():
			if err := c.Dispatch(); err != nil || !ok {
				return // which the other side takes for the end of corosync
			}
		case m, ok := <-requests:
			if !ok {
				return
			}
			reply := message{Reply: true}
			switch m.Op {
			case "send":
				reply.setError(c.(corosync.CPG).Send(m.Data))
			case "close":
				closed = true
				reply.setError(c.Close())
			}
			if out.Encode(reply) != nil || m.Op == "close" {
				return
			}
		}
	}
}

func serveMap(in *json.Decoder, out *json.Encoder, sys corosync.System) {
	m, err := sys.OpenCmap()
	reply := message{Reply: true}
	reply.setError(err)
	if out.Encode(reply) != nil || err != nil {
		return
	}
	defer m.Close()
	for {
		var req message
		if in.Decode(&req) != nil || req.Op == "close" {
			return
		}
		reply := message{Reply: true}
		switch req.Op {
		case "get":
			v, err := m.Get(req.Name)
			reply.setError(err)
			if n, ok := v.Uint(); ok {
				reply.Number = &n
			}
			reply.Text = v.String()
		case "keys":
			reply.Keys, err = m.Keys(req.Name, req.Limit)
			reply.setError(err)
		}
		if out.Encode(reply) != nil {
			return
		}
	}
}
