package holder

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// serveHere is a holder in this process. What it returns ends it like a kill.
func serveHere(t testing.TB, path string, change func(*server)) (kill func()) {
	t.Helper()
	_ = unix.Unlink(path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, maxConns); err != nil {
		t.Fatal(err)
	}
	s := newServer(fd, 1000)
	change(s)
	var g sync.WaitGroup
	stop := make(chan struct{})
	g.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.turn(10)
			}
		}
	})
	var once sync.Once
	kill = func() {
		once.Do(func() {
			close(stop)
			g.Wait()
			s.abandon()
		})
	}
	t.Cleanup(kill)
	return kill
}

// abandon closes everything, as the end of a process does.
func (s *server) abandon() {
	for _, c := range s.conns {
		s.close(c)
	}
	for _, e := range s.store.list {
		if e.fd >= 0 {
			_ = unix.Close(int(e.fd))
		}
	}
	_ = unix.Close(s.listener)
	s.closeDropped()
	for s.closing.Load() > 0 {
		_, _ = unix.Poll(nil, 1)
	}
}

func TestVersions(t *testing.T) {
	t.Run("holder of a later version", func(t *testing.T) {
		path := socket(t)
		defer serveHere(t, path, func(s *server) { s.version = version + 5 })()
		c := start(t, path)
		put(t, c, "k", temp(t))
		c.Close()
	})
	t.Run("holder of the first version", func(t *testing.T) {
		// It says nothing of what it could not keep, if no reply is wanted.
		path := socket(t)
		defer serveHere(t, path, func(s *server) { s.version = 1 })()
		c := start(t, path)
		for range 3 {
			put(t, c, "k", temp(t))
			eventually(t, "it is answered", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return !c.inFlight
			})
			if c.quiet != 0 {
				t.Errorf("no reply was wanted")
			}
		}
		c.Close()
	})
	t.Run("daemon of a later version", func(t *testing.T) {
		path := socket(t)
		defer serveHere(t, path, func(*server) {})()
		l := dialled(t, path)
		// Its HELLO is longer, and it tries an operation of its own.
		request := helloRequest{version: version + 5}.append(header{op: opHello}.append(nil))
		_, body, _, err := l.call(0, append(request, 1, 2, 3, 4), opHello)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := decodeHelloReply(body); err != nil || r.version != version {
			t.Errorf("%+v, %v", r, err)
		}
		h, _, _, err := l.call(7, header{op: 200, seq: 7}.append(nil), 200)
		if err != nil || !errors.Is(statusError(h.errno), unix.EOPNOTSUPP) {
			t.Errorf("an unknown operation: %+v, %v", h, err)
		}
		if _, _, _, err := l.call(8, listRequest{}.append(header{op: opList, seq: 8}.append(nil)), opList); err != nil {
			t.Errorf("a known operation after it: %v", err)
		}
	})
	t.Run("longer reply to hello", func(t *testing.T) {
		b := helloReply{version: 9, next: 4}.append(nil)
		if r, err := decodeHelloReply(&cursor{b: append(b, 1, 2, 3)}); err != nil || r.next != 4 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestStrangersAreNotServed(t *testing.T) {
	path := socket(t)
	defer serveHere(t, path, func(*server) {})()
	c := start(t, path)
	put(t, c, "k", temp(t))
	for _, m := range [][]byte{
		{0}, []byte("GET / HTTP/1.1\r\n"), make([]byte, maxMessage), make([]byte, 3*maxMessage),
		helloRequest{version: 0}.append(header{op: opHello}.append(nil)),
		listRequest{withFDs: true}.append(header{op: opList}.append(nil)),
		changeRequest{base: 100, drops: []uint64{1}}.append(header{op: opChange}.append(nil)),
	} {
		l := dialled(t, path)
		if _, _, p, err := l.call(0, m, opList); err == nil {
			t.Errorf("%.20q was answered: %q", m, p.data)
		}
		l.file.Close()
	}
	if s := c.Status(); s.Held != 1 || s.PID != os.Getpid() {
		t.Errorf("the daemon's connection: %+v", s)
	}
	// More silent ones than there may be connections.
	var silent []int
	for range 3 * maxConns {
		fd, err := dial(path)
		if err == unix.EAGAIN || errors.Is(err, unix.EAGAIN) {
			continue // the backlog is full for a moment
		}
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, fd)
	}
	put(t, c, "beside them", temp(t))
	closeAll(silent)
	c.Close()
}

// FuzzServer sends any message with any number of descriptors to a holder in
// which something is held. It must not crash, and must not lose or keep one
// descriptor more than it says.
func FuzzServer(f *testing.F) {
	f.Add([]byte{}, uint8(0))
	f.Add(changeRequest{base: 10, drops: []uint64{1, 2}, puts: []string{"a", "b"}}.append(header{op: opChange}.append(nil)), uint8(2))
	f.Add(changeRequest{base: 10, puts: []string{"a"}}.append(header{op: opChange}.append(nil)), uint8(9))
	f.Add(changeRequest{base: 1, puts: []string{"a"}}.append(header{op: opChange, quiet: true}.append(nil)), uint8(1))
	f.Add(listRequest{withFDs: true}.append(header{op: opList}.append(nil)), uint8(1))
	f.Add(helloRequest{version: 3}.append(header{op: opHello}.append(nil)), uint8(3))
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, message []byte, fds uint8) {
		if len(message) > maxMessage {
			return
		}
		before := count(t, os.Getpid())
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		s := newServer(-1, 5)
		s.daemon = &conn{fd: ends[1]}
		s.conns = []*conn{s.daemon}
		for i := range 3 {
			fd, err := unix.Dup(null)
			if err != nil {
				t.Fatal(err)
			}
			s.store.add(uint64(i+1), "k", fd)
		}
		given := slices.Repeat([]int{null}, min(int(fds), maxFDs))
		if err := send(ends[0], message, appendRights(nil, given)); err != nil {
			t.Fatal(err)
		}
		testenv.Bounded(t, 100, len(message), func() { s.serveOne(s.daemon) })
		if s.store.live > s.limit {
			t.Errorf("%d are held of at most %d", s.store.live, s.limit)
		}
		// The sum at the end proves that each was closed once.
		_ = unix.Close(ends[0])
		s.listener, err = unix.Dup(null)
		if err != nil {
			t.Fatal(err)
		}
		s.abandon()
		if after := count(t, os.Getpid()); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}

// pair is a connection of s, and its other end.
func pair(t testing.TB, s *server) (ours int, theirs *conn) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs = &conn{fd: ends[1]}
	s.conns = append(s.conns, theirs)
	return ends[0], theirs
}

// What is in the socket counts as held when the holder is asked to end, and when the next daemon says
// hello before it was received, as that may be served first.
func TestNotReceivedCounts(t *testing.T) {
	listener, err := unix.Dup(temp(t))
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(listener, 5)
	defer s.abandon()
	first, one := pair(t, s)
	second, two := pair(t, s)
	defer unix.Close(second)
	if err := send(first, hello, nil); err != nil || !s.serveOne(one) || s.daemon != one || s.needed() {
		t.Errorf("after the first hello: %v, daemon %v, needed %v", err, s.daemon, s.needed())
	}
	message := changeRequest{base: 1, puts: []string{"k"}}.append(header{op: opChange, quiet: true}.append(nil))
	if err := send(first, message, appendRights(nil, []int{temp(t)})); err != nil || !s.needed() {
		t.Errorf("with something in its socket: %v, needed %v", err, s.needed())
	}
	_ = unix.Close(first)
	if err := send(second, hello, nil); err != nil || !s.serveOne(two) || s.daemon != two || s.store.live != 1 || !s.needed() {
		t.Errorf("after the second hello: %v, daemon %v, %d held", err, s.daemon, s.store.live)
	}
}

// FuzzReplies reads any bytes as what a holder says.
func FuzzReplies(f *testing.F) {
	f.Add(helloReply{version: 1, pid: 5, next: 9}.append(header{op: opHello}.append(nil)))
	f.Add(changeReply{kept: 1}.append(header{op: opChange, seq: 1}.append(nil)))
	f.Add(changeReply{kept: 0}.append(header{op: opChange, errno: unix.EMFILE, seq: 2}.append(nil)))
	f.Add(changeReply{kept: 3}.append(header{op: opChange, errno: unix.EMFILE, seq: 1}.append(nil)))
	f.Add(appendListed(appendListed(header{op: opList}.append(nil), listed{1, "a"}), listed{2, strings.Repeat("k", MaxKey)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, c, err := decodeHeader(b)
		if err != nil {
			return
		}
		rest := c.b
		_, _ = decodeHelloReply(&cursor{b: rest})
		if r, err := decodeChangeReply(&cursor{b: rest}, 4); err == nil && r.kept > 4 {
			t.Errorf("%+v", r)
		}
		var list []listed
		testenv.Bounded(t, 100, len(b), func() { list, err = decodeListReply(&cursor{b: rest}, 3) })
		if err != nil {
			return
		}
		var again []byte
		last := uint64(3)
		for _, l := range list {
			if l.id <= last || len(l.key) > MaxKey {
				t.Fatalf("%+v", list)
			}
			last = l.id
			again = appendListed(again, l)
		}
		if string(again) != string(rest) {
			t.Errorf("%q was read as %q", rest, again)
		}
		// Whatever comes, the client's state stays sound.
		flies := &entry{fd: 3, state: flying, id: 8}
		held := &entry{fd: 4, state: kept, id: 9}
		cl := &Client{
			waiting: map[*entry]chan error{flies: make(chan error, 1)}, link: &link{limit: 10, version: version},
			closed: true, greeting: true, inFlight: true, asked: 1, seq: 2, next: 10, flying: []*entry{flies},
		}
		cl.bases[1], cl.bases[2] = 8, 9
		cl.entries.set(flies)
		cl.entries.set(held)
		_ = cl.acknowledged(packet{data: b})
		refusals := 0
		for e := range cl.entries.all() {
			if e.state == refused {
				refusals++
			}
		}
		if refusals != cl.unkept || cl.inFlight != (flies.state == flying) {
			t.Errorf("%d refused, %d counted; in flight %v, %v", refusals, cl.unkept, cl.inFlight, flies.state)
		}
	})
}

func TestStore(t *testing.T) {
	s := store{next: 1}
	for i := range 1000 {
		s.add(uint64(i+1), "k", i)
	}
	for i := range 1000 {
		if i%7 == 0 {
			continue
		}
		if fd := s.drop(uint64(i + 1)); fd != i {
			t.Fatalf("drop of %d: %d", i+1, fd)
		}
		if fd := s.drop(uint64(i + 1)); fd != -1 {
			t.Fatalf("second drop of %d: %d", i+1, fd)
		}
	}
	if s.live != 143 || len(s.list) > 2*s.live+64 || s.drop(0) != -1 || s.drop(5000) != -1 {
		t.Errorf("%d live of %d", s.live, len(s.list))
	}
	if i := s.after(1); s.list[i].id <= 1 {
		t.Errorf("after 1: %+v", s.list[i])
	}
}
