// Package remote carries a dlm.Kernel over connections, so that one test process can be a program on each of several
// nodes. It is for labs: whoever can connect has the server's privileges over the DLM.
//
// Each device is a connection of its own. When a connection ends, its device is closed in the node, so the end of the
// client is the death of its processes there. Only what was detached stays open, until it is attached again or the server
// ends.
package remote

import (
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/internal/abi"
)

// hello opens a connection and says what it is for.
type hello struct {
	What      string // "control", "minor", "changed", "lockspace" or "attach"
	Lockspace string
	Minor     uint32
	FD        int // of the server, to attach
}

// kinds of frames
const (
	kindWrite  = iota // to the server; answered with the same ID
	kindClose         // likewise
	kindDetach        // likewise; the answer's N is a descriptor of the server
	kindResult        // from the server; so is the answer to hello
)

type frame struct {
	ID     uint64
	Kind   int
	Data   []byte
	N      int
	Failed failure
}

// failure is an error that survives the way. The zero failure is none.
type failure struct {
	Errno    syscall.Errno
	Sentinel int // index in sentinels, plus 1
	Text     string
}

var sentinels = []error{os.ErrClosed, dlm.ErrNoModule, dlm.ErrNoDevice, dlm.ErrPrivilege, dlm.ErrNoLockspace, dlm.ErrNoHandover, dlm.ErrNoState}

func fail(err error) (f failure) {
	if err == nil {
		return f
	}
	f.Text = err.Error()
	for i, s := range sentinels {
		if errors.Is(err, s) {
			f.Sentinel = i + 1
			return f
		}
	}
	errors.As(err, &f.Errno)
	return f
}

func (f failure) err() error {
	switch {
	case f.Sentinel > 0 && f.Sentinel <= len(sentinels):
		return sentinels[f.Sentinel-1]
	case f.Errno != 0:
		return f.Errno
	case f.Text != "":
		return errors.New(f.Text)
	}
	return nil
}

// Serve gives k to everyone who connects to l, until l is closed. It then closes all devices that are still open and
// waits for them.
func Serve(l net.Listener, k dlm.Kernel) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = map[net.Conn]struct{}{}
	)
	defer func() {
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		mu.Lock()
		conns[c] = struct{}{}
		mu.Unlock()
		wg.Go(func() {
			serve(c, k)
			mu.Lock()
			delete(conns, c)
			mu.Unlock()
		})
	}
}

func serve(c net.Conn, k dlm.Kernel) {
	defer c.Close()
	in := gob.NewDecoder(c)
	out := &sender{enc: gob.NewEncoder(c)}
	var h hello
	if in.Decode(&h) != nil {
		return
	}
	var (
		dev  dlm.Device
		n    uint32
		text []byte
		err  error
	)
	switch h.What {
	case "minor":
		n, err = k.Minor(h.Lockspace)
	case "changed":
		err = dlm.ErrNoState
		if mk, ok := k.(dlm.MembersKernel); ok {
			var at time.Time
			if at, err = mk.MembersChanged(h.Lockspace); err == nil {
				text, err = at.MarshalBinary()
			}
		}
	case "control":
		dev, err = k.Control()
	case "lockspace":
		dev, err = k.Lockspace(h.Lockspace, h.Minor)
	case "attach":
		err = dlm.ErrNoHandover
		if hk, ok := k.(dlm.HandoverKernel); ok {
			dev, err = hk.Attach(h.Lockspace, h.Minor, h.FD)
		}
	default:
		err = fmt.Errorf("remote: no such thing: %q", h.What)
	}
	out.send(frame{Kind: kindResult, N: int(n), Data: text, Failed: fail(err)})
	if err != nil || dev == nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer dev.Close()
	allRead := make(chan struct{})
	if h.What != "control" {
		wg.Go(func() {
			defer close(allRead)
			var buf [abi.ResultMax]byte
			for {
				n, err := dev.Read(buf[:])
				out.send(frame{Kind: kindResult, Data: buf[:n], Failed: fail(err)})
				if err != nil {
					return
				}
			}
		})
	}
	for {
		var f frame
		if in.Decode(&f) != nil {
			return
		}
		switch f.Kind {
		case kindWrite:
			wg.Go(func() {
				n, err := dev.Write(f.Data)
				out.send(frame{ID: f.ID, Kind: kindWrite, N: n, Failed: fail(err)})
			})
		case kindClose:
			wg.Go(func() {
				err := dev.Close()
				out.send(frame{ID: f.ID, Kind: kindClose, Failed: fail(err)})
			})
		case kindDetach:
			wg.Go(func() {
				fd, err := -1, error(dlm.ErrNoHandover)
				if hd, ok := dev.(dlm.HandoverDevice); ok {
					fd, err = hd.Detach()
				}
				if err == nil {
					<-allRead
				}
				out.send(frame{ID: f.ID, Kind: kindDetach, N: fd, Failed: fail(err)})
			})
		}
	}
}

type sender struct {
	mu  sync.Mutex // guards enc
	enc *gob.Encoder
}

// send drops what cannot be sent: the other side is gone then, and reading finds out.
func (s *sender) send(f frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.enc.Encode(f)
}
