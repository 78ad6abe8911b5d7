package holder

import (
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// idleTime is how long a holder that holds nothing waits for a daemon. A
	// restart of the daemon takes less, so that it finds the holder still there.
	idleTime = 3 * time.Second
	// maxConns bounds connections, of which one can be a daemon's. The oldest one
	// that has not said who it is makes place for a new one.
	maxConns = 8
	// reserve is how many descriptors the holder needs for itself: the three
	// standard ones, the listener, connections, and what the runtime opens.
	reserve = 32
)

// server is the holder process. One goroutine does everything; only closing
// descriptors, which can take as long as the server of a network file system
// likes, has others.
type server struct {
	listener int // non-blocking
	limit    int // descriptors held at most
	version  uint16
	idle     time.Duration
	free     func() // gives memory back; takes a few milliseconds
	nap      func() // lets messages come together

	conns  []*conn
	daemon *conn // the one that said hello, or nil
	store  store
	rcv    *receiver

	// mu is held from before a message is received until what came with it is in the store: for the goroutine
	// that handles signals there is nothing in between.
	mu      sync.Mutex
	closing atomic.Int64 // descriptors being closed, or in dropped: they still count

	dropped []int // to be closed at the end of the turn, or when room is needed
	stuck   int   // how many of closing are not waited for
	calm    bool  // the last message of the turn wanted no reply

	polls    []unix.PollFd
	out, oob []byte
	fds      []int
	change   changeRequest
	deadline time.Time // of the idle time; zero while there is a reason to stay
	messages int       // with descriptors, since memory was given back
}

const (
	// tidyFrom is how many messages leave enough behind for it to be worth a collection.
	tidyFrom = 100
	// calm is how long nothing must come before it.
	calm = time.Second
	// maxTurn is how many messages of a connection are handled before the others'.
	maxTurn = 256
	// closeTries is how many milliseconds a message that finds no room waits for descriptors to be closed.
	closeTries = 100
)

// conn is a connection. fd is -1 once it was closed.
type conn struct {
	fd  int
	pid int32
}

func newServer(listener, limit int) *server {
	return &server{listener: listener, limit: limit, version: version, idle: idleTime, free: debug.FreeOSMemory, nap: nap, rcv: newReceiver(),
		store: store{next: 1}}
}

// serve returns when nobody has needed the holder for a while.
func (s *server) serve() error {
	for {
		timeout := s.timeout()
		if timeout == 0 {
			return nil
		}
		if err := s.turn(timeout); err != nil {
			return err
		}
	}
}

// turn waits for what there is to do, at most timeout milliseconds if that is not
// negative, and does it.
func (s *server) turn(timeout int) error {
	s.polls = append(s.polls[:0], unix.PollFd{Fd: int32(s.listener), Events: unix.POLLIN})
	for _, c := range s.conns {
		s.polls = append(s.polls, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
	}
	n, err := unix.Poll(s.polls, timeout)
	if err != nil && err != unix.EINTR {
		return err
	}
	if n <= 0 {
		if err == nil && s.messages >= tidyFrom {
			s.messages = 0
			s.free()
		}
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.conns { // to which nothing is added, and from which nothing is removed, here
		if s.polls[i+1].Revents != 0 {
			s.serveSome(c)
		}
	}
	if s.polls[0].Revents != 0 {
		s.accept()
	}
	s.conns = slices.DeleteFunc(s.conns, func(c *conn) bool { return c.fd < 0 })
	return nil
}

// serveSome handles what came, and closes what it dropped. A daemon that wants no reply can wait: what it
// sends is as safe in the socket. To be woken by each message would cost it, and the
// host, more than all the rest.
func (s *server) serveSome(c *conn) {
	s.calm = false
	for n := 0; n < maxTurn && s.serveOne(c); n++ {
	}
	s.closeDropped()
	if s.calm {
		s.nap()
	}
}

// closeDropped lets another goroutine close what was dropped.
func (s *server) closeDropped() {
	if len(s.dropped) == 0 {
		return
	}
	drop := slices.Clone(s.dropped)
	s.dropped = s.dropped[:0]
	go func() {
		for _, fd := range drop {
			_ = unix.Close(fd)
			s.closing.Add(-1)
		}
	}()
	// Usually it is done when this returns, without another thread.
	runtime.Gosched()
}

// nap sleeps for half a millisecond without a word to the runtime, which would start its
// monitor anew when the call ends. The other goroutines wait meanwhile.
func nap() {
	pause := unix.NsecToTimespec(int64(500 * time.Microsecond))
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
}

// timeout is for poll(2): -1 as long as there is a reason to stay and nothing to
// tidy, 0 when the idle time is over.
func (s *server) timeout() int {
	if s.daemon != nil || s.store.live > 0 {
		s.deadline = time.Time{}
		if s.messages >= tidyFrom {
			return int(calm / time.Millisecond)
		}
		return -1
	}
	now := time.Now()
	if s.deadline.IsZero() {
		s.deadline = now.Add(s.idle)
	}
	return max(0, int((s.deadline.Sub(now)+time.Millisecond-1)/time.Millisecond))
}

func (s *server) accept() {
	fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		// The reserve makes EMFILE impossible. ENFILE and ENOMEM pass, and until
		// then poll comes back here: not without a pause.
		if err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOMEM || err == unix.ENOBUFS {
			_, _ = unix.Poll(nil, 10)
		}
		return
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(cred.Uid) != unix.Geteuid() {
		_ = unix.Close(fd)
		return
	}
	prepare(fd)
	if len(s.conns) >= maxConns {
		i := slices.IndexFunc(s.conns, func(c *conn) bool { return c != s.daemon })
		s.close(s.conns[i])
	}
	s.conns = append(s.conns, &conn{fd: fd, pid: cred.Pid})
}

// close ends a connection. What its daemon gave stays.
func (s *server) close(c *conn) {
	if s.daemon == c {
		s.daemon = nil
	}
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
}

// needed says whether something is held, or the daemon has sent what was not received: that counts as held. It
// is called with mu held, by the goroutine that handles signals.
func (s *server) needed() bool {
	if s.store.live > 0 || s.daemon == nil {
		return s.store.live > 0
	}
	p := []unix.PollFd{{Fd: int32(s.daemon.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLIN != 0
}

// serveOne handles one message, if there is one, and says whether there was.
func (s *server) serveOne(c *conn) bool {
	if c.fd < 0 {
		return false
	}
	p, err := s.rcv.receive(c.fd)
	if err == unix.EAGAIN {
		return false
	}
	if err != nil {
		s.close(c)
		return false
	}
	if err := s.handle(c, p); err != nil {
		s.close(c)
	}
	return true
}

// handle takes over the descriptors of p.
func (s *server) handle(c *conn, p packet) error {
	h, body, err := decodeHeader(p.data)
	if err == nil && h.op == opChange && c == s.daemon {
		return s.handleChange(c, h, body, p)
	}
	closeAll(p.fds) // nothing else brings any
	if err != nil {
		return err
	}
	h.errno = 0
	switch {
	case h.op == opHello:
		return s.hello(c, h, body)
	case c != s.daemon:
		return errMalformed
	case h.op == opList:
		return s.handleList(c, h, body)
	}
	h.errno = unix.EOPNOTSUPP
	return reply(c, h.append(s.out[:0]), nil)
}

// reply sends one. That the daemon is gone is no error: what it sent before is still to be
// received, and its end is behind that.
func reply(c *conn, data, oob []byte) error {
	err := send(c.fd, data, oob)
	if err == unix.EPIPE || err == unix.ECONNRESET {
		return nil
	}
	return err
}

func (s *server) hello(c *conn, h header, body *cursor) error {
	if _, err := decodeHelloRequest(body); err != nil {
		return err
	}
	// A daemon that was killed may have left messages, and its end is behind
	// them: they count.
	for old := s.daemon; old != nil && old != c && s.serveOne(old); {
	}
	us := helloReply{version: s.version, pid: int32(unix.Getpid()), held: uint32(s.store.live),
		limit: uint32(s.limit), next: s.store.next}
	if s.daemon != nil && s.daemon != c {
		h.errno, us.pid = unix.EBUSY, s.daemon.pid
	} else {
		s.daemon = c
	}
	err := reply(c, us.append(h.append(s.out[:0])), nil)
	if h.errno != 0 {
		s.close(c)
	}
	return err
}

func (s *server) handleChange(c *conn, h header, body *cursor, p packet) error {
	s.messages++
	r := &s.change
	if err := decodeChangeRequest(body, r); err != nil || r.base < s.store.next && len(r.puts) > 0 ||
		len(p.fds) > len(r.puts) || len(p.fds) < len(r.puts) && !p.cut {
		closeAll(p.fds)
		return errMalformed
	}
	for _, id := range r.drops {
		if fd := s.store.drop(id); fd >= 0 {
			s.dropped = append(s.dropped, fd)
			s.closing.Add(1)
		}
	}
	kept := s.roomFor(len(p.fds))
	for i, fd := range p.fds[:kept] {
		s.store.add(r.base+uint64(i), r.puts[i], fd)
	}
	closeAll(p.fds[kept:]) // the daemon has them open, so that this does not wait
	h.errno = 0
	if kept < len(r.puts) {
		h.errno = unix.EMFILE
	}
	s.calm = h.quiet
	if h.quiet && h.errno == 0 {
		return nil
	}
	h.quiet = false
	s.out = changeReply{kept: uint16(kept)}.append(h.append(s.out[:0]))
	return reply(c, s.out, nil)
}

// roomFor is how many of n descriptors more can be held. A turn can drop more than there is room for: it waits
// for the end of these, but not again for what took too long.
func (s *server) roomFor(n int) int {
	for tries := 0; ; tries++ {
		closing := int(s.closing.Load())
		s.stuck = min(s.stuck, closing)
		room := max(0, s.limit-s.store.live-closing)
		switch {
		case room >= n:
			return n
		case tries == 0:
			s.closeDropped()
		case closing == s.stuck:
			return room
		case tries > closeTries:
			s.stuck = closing
			return room
		default:
			_, _ = unix.Poll(nil, 1)
		}
	}
}

func (s *server) handleList(c *conn, h header, body *cursor) error {
	r, err := decodeListRequest(body)
	if err != nil {
		return err
	}
	s.out = h.append(s.out[:0])
	s.fds = s.fds[:0]
	for _, e := range s.store.list[s.store.after(r.after):] {
		if e.fd < 0 {
			continue
		}
		if len(s.fds) == maxFDs || len(s.out)+10+len(e.key) > maxMessage {
			break
		}
		s.out = appendListed(s.out, listed{id: e.id, key: e.key})
		s.fds = append(s.fds, int(e.fd))
	}
	if r.withFDs {
		s.oob = appendRights(s.oob[:0], s.fds)
		err = reply(c, s.out, s.oob)
	} else {
		err = reply(c, s.out, nil)
	}
	if err == unix.ETOOMANYREFS {
		h.errno = unix.ETOOMANYREFS
		err = reply(c, h.append(s.out[:0]), nil)
	}
	return err
}
