package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/testenv"
)

// got is a message as tests compare it.
type got struct {
	Header  header
	Payload string
}

var headers = cmp.AllowUnexported(header{})

// simple is the same as inbound with all of the input at hand: a second opinion.
func simple(in []byte, limit int) (list []got, err error) {
	for {
		if len(in) == 0 {
			return list, io.EOF
		}
		if len(in) < 4 {
			return list, io.ErrUnexpectedEOF
		}
		length := binary.BigEndian.Uint32(in)
		if length < 28 || length > 33_554_436 {
			return list, errFraming
		}
		if len(in) < 28 {
			return list, io.ErrUnexpectedEOF
		}
		h := parseHeader(in[4:])
		size, at, fds := int(length), 28, 0
		if h.typ == typeCallWithFDs {
			if size < 32 {
				return list, errFraming
			}
			if len(in) < 32 {
				return list, io.ErrUnexpectedEOF
			}
			at = 32
			if n := binary.BigEndian.Uint32(in[28:]); n <= 32 {
				fds = int(n)
			} else if kept := min(size, 32+limit); len(in) >= kept {
				return list, errFraming
			}
		}
		if len(in) < size+fds {
			return list, io.ErrUnexpectedEOF
		}
		payload := in[at:size]
		list = append(list, got{h, string(payload[:min(len(payload), limit)])})
		in = in[size+fds:]
	}
}

func collect(in *inbound) (list []got, err error) {
	for {
		m, err := in.next()
		if err != nil {
			return list, err
		}
		list = append(list, got{m.header, string(m.payload)})
	}
}

func testInbound(r io.Reader, limit int) *inbound {
	large := 0
	return &inbound{
		r:     r,
		limit: func(header) int { return limit },
		grow: func() error {
			if large++; large != 1 {
				panic("two large buffers")
			}
			return nil
		},
		shrunk: func() {
			if large--; large != 0 {
				panic("shrunk what was small")
			}
		},
	}
}

func testMessage(typ msgType, payload []byte) []byte {
	b := appendMessage(nil, header{program: 1, version: 2, procedure: 3, typ: typ, serial: 5, status: 6})
	b = append(b, payload...)
	finishMessage(b)
	return b
}

func streams() map[string][]byte {
	big := bytes.Repeat([]byte("0123456789"), 3000)
	fds := func(n byte, rest ...byte) []byte { return append([]byte{0, 0, 0, n}, rest...) }
	long := testMessage(typeCall, nil)
	binary.BigEndian.PutUint32(long, maxMessage+1)
	short := testMessage(typeCall, nil)
	binary.BigEndian.PutUint32(short, minMessage-1)
	return map[string][]byte{
		"nothing":            nil,
		"one":                testMessage(typeCall, []byte("abc")),
		"two":                append(testMessage(typeCall, nil), testMessage(typeReply, []byte("x"))...),
		"big":                testMessage(typeCall, big),
		"big and small":      append(append(testMessage(typeCall, big), testMessage(typeCall, []byte("y"))...), testMessage(typeCall, big)...),
		"cut":                testMessage(typeCall, big)[:20000],
		"short length":       short,
		"long length":        long,
		"no descriptors":     append(testMessage(typeCallWithFDs, fds(0, 'a')), testMessage(typeCall, nil)...),
		"descriptors":        append(append(testMessage(typeCallWithFDs, fds(3, 'a')), 0, 0, 0), testMessage(typeCall, []byte("z"))...),
		"big descriptors":    append(append(testMessage(typeCallWithFDs, append(fds(2), big...)), 0, 0), testMessage(typeCall, []byte("z"))...),
		"missing":            append(testMessage(typeCallWithFDs, fds(3, 'a')), 0, 0),
		"too many":           testMessage(typeCallWithFDs, fds(33)),
		"no number":          testMessage(typeCallWithFDs, []byte{0, 0, 0}),
		"more than a buffer": bytes.Repeat(testMessage(typeCall, make([]byte, 100)), 100),
	}
}

func TestInbound(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole":  func(r io.Reader) io.Reader { return r },
		"bytes":  iotest.OneByteReader,
		"halves": iotest.HalfReader,
		"eof":    iotest.DataErrReader,
	}
	for name, stream := range streams() {
		for _, limit := range []int{0, 1, 3, 2000, smallBuffer - minMessage, 5000, 25000, maxMessage} {
			want, wantErr := simple(stream, limit)
			for how, reader := range readers {
				in := testInbound(reader(bytes.NewReader(stream)), limit)
				list, err := collect(in)
				if diff := cmp.Diff(want, list, headers); diff != "" || !errors.Is(err, wantErr) {
					t.Errorf("%s, limit %d, in %s: %v, want %v\n%s", name, limit, how, err, wantErr, diff)
				}
			}
		}
	}
}

var errPause = errors.New("pause")

// pausing fails once after every n bytes.
type pausing struct {
	r       io.Reader
	n, left int
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.left == 0 {
		p.left = p.n
		return 0, errPause
	}
	n, err := p.r.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, err
}

// TestInboundGoesOn: after an error of the reader nothing is lost, neither here
// nor when another inbound goes on with what is pending.
func TestInboundGoesOn(t *testing.T) {
	if testenv.WithRace {
		t.Skip("every stream cut at every place, in one goroutine; 'make unit' does it without the race detector")
	}
	for name, stream := range streams() {
		for _, limit := range []int{0, 3, 5000, maxMessage} {
			want, wantErr := simple(stream, limit)
			for _, n := range []int{1, 7, 1000, 10000} {
				for _, handOver := range []bool{false, true} {
					if n == 1 && len(stream) > 1000 && handOver {
						continue // slow, and nothing new
					}
					r := &pausing{bytes.NewReader(stream), n, n}
					in := testInbound(r, limit)
					var list []got
					for {
						l, err := collect(in)
						list = append(list, l...)
						if errors.Is(err, errPause) {
							if handOver {
								pending := bytes.Clone(in.pending())
								in = testInbound(r, limit)
								if err := in.preload(pending); err != nil {
									t.Fatal(err)
								}
							}
							continue
						}
						if diff := cmp.Diff(want, list, headers); diff != "" || !errors.Is(err, wantErr) {
							t.Errorf("%s, limit %d, a pause every %d bytes, handed over: %v: %v, want %v\n%s",
								name, limit, n, handOver, err, wantErr, diff)
						}
						break
					}
				}
			}
		}
	}
}

// endless is a message that says it is as long as may be, and brings n bytes.
func endless(n int) io.Reader {
	b := testMessage(typeCall, nil)
	binary.BigEndian.PutUint32(b, maxMessage)
	return io.MultiReader(bytes.NewReader(b), io.LimitReader(zeros{}, int64(n)))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestInboundTakesNoMoreMemoryThanArrived(t *testing.T) {
	for _, n := range []int{0, 100, 5000, 100_000, 1_000_000, 3_000_000} {
		in := testInbound(endless(n), maxMessage)
		if _, err := in.next(); err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		if len(in.buf) > max(2*(n+minMessage), smallBuffer) {
			t.Errorf("%d bytes for a message of which %d bytes have come", len(in.buf), n)
		}
	}
	// And no more than anybody looks at.
	in := testInbound(endless(maxMessage-minMessage), 131_000)
	m, err := in.next()
	if err != nil || len(m.payload) != 131_000 || len(in.buf) > 2*131_000 {
		t.Errorf("%v, %d bytes in a buffer of %d", err, len(m.payload), len(in.buf))
	}
	if _, err := in.next(); err != io.EOF || len(in.buf) != smallBuffer {
		t.Errorf("%v, and %d bytes are kept", err, len(in.buf))
	}
}

func TestInboundAllocatesNothing(t *testing.T) {
	stream := bytes.Repeat(testMessage(typeCall, make([]byte, 100)), 1000)
	r := bytes.NewReader(stream)
	in := testInbound(r, 1000)
	if n := testing.AllocsPerRun(500, func() {
		if _, err := in.next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a message", n)
	}
}

func FuzzInbound(f *testing.F) {
	for _, stream := range streams() {
		f.Add(stream[:min(len(stream), 10000)], uint16(50), uint16(100))
		f.Add(stream[:min(len(stream), 10000)], uint16(5000), uint16(3))
	}
	f.Fuzz(func(t *testing.T, stream []byte, limit, pause uint16) {
		want, wantErr := simple(stream, int(limit))
		r := &pausing{bytes.NewReader(stream), int(pause) + 1, int(pause) + 1}
		in := testInbound(r, int(limit))
		var list []got
		for {
			l, err := collect(in)
			list = append(list, l...)
			// A client that says much and sends little gets little.
			if len(in.buf) > max(2*(len(stream)+minMessage), smallBuffer) {
				t.Fatalf("a buffer of %d bytes for %d that have come", len(in.buf), len(stream))
			}
			if errors.Is(err, errPause) {
				continue
			}
			if diff := cmp.Diff(want, list, headers); diff != "" || !errors.Is(err, wantErr) {
				t.Fatalf("%v, want %v\n%s", err, wantErr, diff)
			}
			return
		}
	})
}
