package rpc

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
)

// spareCost is the descriptors that one connection needs: its own, and one to
// watch the process it registers.
const spareCost = 2

// spares are descriptors that are kept open for the time when all others are
// used up.
type spares struct {
	taken chan struct{} // one for each connection that uses them

	mu    sync.Mutex // guards files
	files []*os.File
}

func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// fill opens as many as are missing and can be opened.
func (s *spares) fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.files) < (cap(s.taken)-len(s.taken))*spareCost {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		s.files = append(s.files, f)
	}
}

// give closes as many as one connection needs; false if there are no more.
func (s *spares) give() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) < spareCost || len(s.taken) == cap(s.taken) {
		return false
	}
	for range spareCost {
		last := len(s.files) - 1
		s.files[last].Close()
		s.files = s.files[:last]
	}
	return true
}

func (s *spares) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		f.Close()
	}
	s.files = nil
}

// warnOfDescriptors tells when descriptors are about to run out. The kernel
// gives out the lowest free number, so that of a new connection is about how
// many are in use.
func (s *Server) warnOfDescriptors(c *net.UnixConn) {
	raw, err := c.SyscallConn()
	if err != nil || s.descriptors == 0 {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if uint64(fd) < s.descriptors-s.descriptors/5 {
			return
		}
		s.scarce.do(func(int) {
			s.log.Warn("descriptors are running out: raise LimitNOFILE of the service", "in_use", fd, "limit", s.descriptors)
		})
	})
}
