package holder

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What many messages have left over is given back when none has come for a while,
// once; a holder that was asked for little, or for nothing, sleeps until it is.
func TestTidy(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(-1, 1000)
	freed := 0
	s.free = func() { freed++ }
	s.daemon = &conn{fd: ends[1]}
	s.conns = []*conn{s.daemon}
	t.Cleanup(func() {
		s.abandon()
		unix.Close(ends[0])
	})
	drop := changeRequest{base: 1, drops: []uint64{7}}.append(header{op: opChange, quiet: true}.append(nil))
	for range 2 {
		for n := range tidyFrom {
			if got := s.timeout(); got != -1 {
				t.Fatalf("waits for %d ms after %d messages", got, n)
			}
			if err := send(ends[0], drop, nil); err != nil {
				t.Fatal(err)
			}
			if err := s.turn(-1); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.timeout(); got != 1000 {
			t.Fatalf("waits for %d ms after %d messages", got, tidyFrom)
		}
		freed = 0
		for range 3 {
			if err := s.turn(0); err != nil {
				t.Fatal(err)
			}
		}
		if freed != 1 || s.daemon == nil {
			t.Errorf("gave memory back %d times; daemon %v", freed, s.daemon)
		}
	}
}
