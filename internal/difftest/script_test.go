package difftest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// step is one request of a script.
type step struct {
	on   int // which connection
	what string
	make func(d *daemon) request
	next *step // is sent on the same connection without waiting for the answer
}

// requests are the messages of a step, in order.
func (s step) requests(d *daemon) []request {
	rs := []request{s.make(d)}
	if s.next != nil {
		rs = append(rs, s.next.requests(d)...)
	}
	return rs
}

// moved is s on another connection.
func (s step) moved(on int) step {
	s.on = on
	if s.next != nil {
		next := s.next.moved(on)
		s.next = &next
	}
	return s
}

// then is s with another step right behind it.
func (s step) then(next step) step {
	s.next = &next
	s.what += "; at once " + next.what
	return s
}

// The procedures as steps. Strings may hold $D.

func register(on int, pid int32, id uint32, flags uint32) step {
	return step{on: on, what: fmt.Sprintf("register pid %d id %d flags %#x", pid, id, flags), make: func(d *daemon) request {
		return req(lockprogram.ProcRegister, d.enc().uuid().str("vm").num(id).num(uint32(pid)).num(flags).Bytes())
	}}
}

func restrict(on int, flags uint32) step {
	return step{on: on, what: fmt.Sprintf("restrict flags %#x", flags), make: func(d *daemon) request {
		return req(lockprogram.ProcRestrict, d.enc().num(flags).Bytes())
	}}
}

func newSpace(on int, path string, flags uint32) step {
	return step{on: on, what: fmt.Sprintf("new %q flags %#x", path, flags), make: func(d *daemon) request {
		return req(lockprogram.ProcNew, d.enc().str(path).num(flags).Bytes())
	}}
}

func createSpace(on int, path string) step {
	return step{on: on, what: fmt.Sprintf("create lockspace %q", path), make: func(d *daemon) request {
		return req(lockprogram.ProcCreateLockspace, d.enc().str(path).Bytes())
	}}
}

func onResource(on int, procedure int32, space, name string, flags uint32) step {
	names := map[int32]string{4: "create", 5: "delete", 6: "acquire", 7: "release"}
	what := fmt.Sprintf("%s %q %.100q flags %#x", names[procedure], space, name, flags)
	return step{on: on, what: what, make: func(d *daemon) request {
		return req(procedure, d.enc().str(space).str(name).num(flags).Bytes())
	}}
}

func create(on int, space, name string) step {
	return onResource(on, lockprogram.ProcCreateResource, space, name, 0)
}

func remove(on int, space, name string) step {
	return onResource(on, lockprogram.ProcDeleteResource, space, name, 0)
}

func acquire(on int, space, name string, flags uint32) step {
	return onResource(on, lockprogram.ProcAcquireResource, space, name, flags)
}

func release(on int, space, name string) step {
	return onResource(on, lockprogram.ProcReleaseResource, space, name, 0)
}

// with changes the message of a step.
func (s step) with(what string, change func(*request)) step {
	inner := s.make
	return step{on: s.on, what: s.what + ", " + what, make: func(d *daemon) request {
		r := inner(d)
		change(&r)
		return r
	}}
}

// players are connections to both daemons. One that was closed is made again
// when it is next used.
type players struct {
	t            *testing.T
	theirs, ours *daemon
	conns        map[int][2]*conn
	log          []string // the last steps
	last         []string // the kinds of the last answers
}

func newPlayers(t *testing.T) *players {
	theirs, ours := both(t)
	return &players{t: t, theirs: theirs, ours: ours, conns: map[int][2]*conn{}}
}

func (p *players) pair(on int) [2]*conn {
	p.t.Helper()
	pair, ok := p.conns[on]
	if !ok || pair[0].closed || pair[1].closed {
		p.drop(on)
		pair = [2]*conn{p.theirs.dial(p.t), p.ours.dial(p.t)}
		p.conns[on] = pair
	}
	return pair
}

// drop closes a connection.
func (p *players) drop(on int) {
	for _, c := range p.conns[on] {
		if c != nil {
			c.c.Close()
		}
	}
	delete(p.conns, on)
}

// run does one step on both, and says what was done before when they differ.
func (p *players) run(s step) bool {
	p.t.Helper()
	pair := p.pair(s.on)
	var got [2]outcome
	for _, c := range pair {
		c.send(s.requests(c.d)...)
	}
	for i, c := range pair {
		got[i] = c.collect()
	}
	p.last = got[0].kinds()
	const kept = 40
	p.log = append(p.log[max(0, len(p.log)-kept+1):], fmt.Sprintf("%d: %s -> %s", s.on, s.what, brief(got[0])))
	if !compare(p.t, s.what, got[0], got[1]) {
		p.t.Logf("before that:\n%s", strings.Join(p.log, "\n"))
		return false
	}
	return true
}

// kinds are OK, code and domain of errors, and what else became of a step.
func (o outcome) kinds() (kinds []string) {
	for _, r := range o.Replies {
		if r.Error.Code == 0 {
			kinds = append(kinds, "OK")
		} else {
			kinds = append(kinds, fmt.Sprintf("%d/%d", r.Error.Code, r.Error.Domain))
		}
	}
	if o.Closed {
		return append(kinds, "closed")
	}
	if kinds == nil {
		return []string{"no answer"}
	}
	return kinds
}

func brief(o outcome) string {
	if o.Closed {
		return "closed"
	}
	if len(o.Replies) == 0 {
		return "no answer"
	}
	if e := o.Replies[0].Error; e.Code != 0 {
		return fmt.Sprintf("%d/%d %.120s", e.Code, e.Domain, e.Message)
	}
	return "OK"
}

const long = 65536

func script(pids []int32) []step {
	a, b := pids[0], pids[1]
	return []step{
		acquire(0, "", "$D/d0", 0), // nobody is registered
		newSpace(0, "", 0),
		newSpace(0, "$D/x", 0),
		restrict(0, 0),
		create(0, "/nope", "x"),
		release(0, "", "$D/d0"),
		register(0, a, 0, 0),
		acquire(0, "", "$D/d0", 0),
		register(0, a, 1, 0x80),
		createSpace(0, "$D/early"), // needs no registration
		createSpace(0, "$D/deep/er"),
		createSpace(0, "$D/d0"), // a file
		register(0, a, 1, 0),
		register(0, a, 0, 0), // fails, and keeps the owner
		acquire(0, "", "$D/d0", 4),
		acquire(0, "", "$D/d0", 0x9000000f),
		newSpace(0, "", 0),
		newSpace(0, "", 2),
		newSpace(0, "/x", 2),
		onResource(0, 4, "", "/x", 2), onResource(0, 5, "", "/x", 1), onResource(0, 7, "", "/x", 2),
		restrict(0, 2),

		// The default lockspace.
		acquire(0, "", "$D/d0", 0),
		acquire(0, "", "$D/d0", 0),
		acquire(0, "", "$D/d0", 1),
		create(0, "", "$D/d0"),
		remove(0, "", "$D/d0"),
		acquire(0, "/nope", "$D/d0", 0), create(0, "/nope", "x"), remove(0, "/nope", "x"), release(0, "/nope", "x"),
		release(0, "", "$D/nothing"),
		remove(0, "", "$D/nothing"),
		create(0, "", "/nonexistent/a"),
		acquire(0, "", "$D/nothing", 0), acquire(0, "", "$D", 0), acquire(0, "", "$D/d0/x", 0),
		acquire(0, "", "relative", 0), acquire(0, "", "", 0), release(0, "", ""),

		// Another owner.
		register(1, b, 2, 0),
		release(1, "", "$D/d0"), acquire(1, "", "$D/d0", 0), acquire(1, "", "$D/d0", 1),
		release(0, "", "$D/d0"), acquire(1, "", "$D/d0", 0), release(1, "", "$D/d0"), release(1, "", "$D/d0"),
		// The owner is the pid alone: another connection and id may release.
		acquire(0, "", "$D/d0", 0), register(2, a, 99, 0), release(2, "", "$D/d0"),
		// Registering again makes it another owner.
		acquire(2, "", "$D/d1", 0), register(2, b, 1, 0), release(2, "", "$D/d1"), release(0, "", "$D/d1"),

		// Shared.
		acquire(0, "", "$D/d2", 1), acquire(1, "", "$D/d2", 1), acquire(1, "", "$D/d2", 0),
		acquire(0, "", "$D/d2", 1), release(0, "", "$D/d2"), release(1, "", "$D/d2"), release(1, "", "$D/d2"),
		acquire(1, "", "$D/d2", 0), release(0, "", "$D/d2"), acquire(1, "", "$D/d2", 0), release(1, "", "$D/d2"),

		// Lockspaces.
		newSpace(0, "$D/ls", 0), newSpace(0, "$D/ls", 0), createSpace(0, "$D/ls"), createSpace(0, ""),
		newSpace(0, "$D/early", 0), createSpace(0, "$D/d0/x"),
		createSpace(0, "$D/ls"), create(0, "$D/ls", "r1"), create(0, "$D/ls", "r1"),
		acquire(0, "$D/ls", "r1", 0), create(0, "$D/ls", "r1"), remove(0, "$D/ls", "r1"), release(1, "$D/ls", "r1"),
		release(0, "$D/ls", "r1"), remove(0, "$D/ls", "r1"), acquire(0, "$D/ls", "r1", 0),
		acquire(0, "$D/ls", "r2", 2), acquire(0, "$D/ls", "r2", 0), release(0, "$D/ls", "r2"), acquire(0, "$D/ls", "r2", 0),
		acquire(0, "$D/ls", "", 2), remove(0, "$D/ls", ""), create(0, "$D/ls", ""), acquire(0, "$D/ls", ".", 0),
		acquire(0, "$D/ls", "r3", 3), acquire(0, "$D/ls", "r3", 1), acquire(1, "$D/ls", "r3", 3), acquire(1, "$D/ls", "r3", 2),
		release(0, "$D/ls", "r3"), release(0, "$D/ls", "r3"), release(1, "$D/ls", "r3"), acquire(1, "$D/ls", "r3", 0),
		// The first to acquire decides on autocreation.
		create(0, "$D/ls", "r4"), acquire(0, "$D/ls", "r4", 1), acquire(0, "$D/ls", "r4", 3),
		release(0, "$D/ls", "r4"), release(0, "$D/ls", "r4"), acquire(0, "$D/ls", "r4", 0), release(0, "$D/ls", "r4"),

		// Names.
		acquire(0, "$D/ls", strings.Repeat("n", 300), 2), create(0, "$D/ls", strings.Repeat("n", 300)),
		remove(0, "$D/ls", strings.Repeat("n", 300)), release(0, "$D/ls", strings.Repeat("n", 5000)),
		create(0, "", strings.Repeat("n", long)), create(0, "", strings.Repeat("n", long+1)),
		release(0, strings.Repeat("p", long), strings.Repeat("n", long)),
		acquire(0, "$D/ls", "\xff\xfe", 2), release(0, "$D/ls", "\xff\xfe"), acquire(0, "$D/ls", "%s%n", 0),
		create(0, "$D/ls", "cut\x00off"), acquire(0, "$D/ls", "cut", 0), release(0, "$D/ls\x00x", "cut\x00y"),
		remove(0, "$D/ls", "cut"), create(0, "", "\x00/x"),

		// Restricted: everything is refused but what is wrong before that.
		restrict(1, 0), register(1, b, 1, 0), register(1, b, 0, 0), register(1, b, 1, 9), restrict(1, 0), restrict(1, 1),
		newSpace(1, "", 0), createSpace(1, ""), createSpace(1, "$D/ls"), create(1, "/nope", "x"), remove(1, "", "x"),
		acquire(1, "", "$D/d3", 0), acquire(1, "", "$D/d3", 8), release(1, "", "$D/d3"),
		restrict(1, 0).with("cut short", func(r *request) { r.payload = nil }),
	}
}

// framing is about messages, well-formed or not. Each step is on a connection
// of its own, which then has to answer a registration.
func framing(pid int32) []step {
	base := func() step { return register(0, pid, 1, 0) }
	var steps []step
	add := func(what string, change func(*request)) {
		steps = append(steps, base().with(what, change))
	}
	add("unknown program", func(r *request) { r.program = 0x1234 })
	add("program and version 0", func(r *request) { r.program, r.version = 0, 0 })
	add("unknown version", func(r *request) { r.version = 7 })
	add("unknown version and bad status", func(r *request) { r.version, r.status = 2, 1 })
	for _, status := range []uint32{1, 2, 3, 99, 0xffffffff} {
		add(fmt.Sprintf("status %d", status), func(r *request) { r.status = status })
		add(fmt.Sprintf("status %d, unknown procedure", status), func(r *request) { r.status, r.procedure = status, 9 })
	}
	for _, procedure := range []int32{0, 9, -1, 1 << 30} {
		add(fmt.Sprintf("procedure %d", procedure), func(r *request) { r.procedure = procedure })
	}
	for _, typ := range []uint32{1, 2, 3, 5, 6, 7, 0xffffffff} {
		add(fmt.Sprintf("type %d", typ), func(r *request) { r.typ = typ })
		add(fmt.Sprintf("type %d, unknown program", typ), func(r *request) { r.typ, r.program = typ, 5 })
		add(fmt.Sprintf("type %d, status 1", typ), func(r *request) { r.typ, r.status = typ, 1 })
		add(fmt.Sprintf("type %d, no payload", typ), func(r *request) { r.typ, r.payload = typ, nil })
	}
	for _, n := range []int{0, 1, 2, 3, 32, 33, 1000, 0x40000000} {
		withFDs := func(r *request) {
			r.typ = 4
			r.payload = append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, r.payload...)
			if n <= 32 {
				r.fds = n
			}
		}
		add(fmt.Sprintf("%d descriptors", n), withFDs)
		if n >= 1 && n <= 32 {
			// virtlockd sends the descriptors back behind an error from its RPC layer,
			// each with a byte that is in no message.
			continue
		}
		add(fmt.Sprintf("%d descriptors, unknown program", n), func(r *request) { withFDs(r); r.program = 9 })
		add(fmt.Sprintf("%d descriptors, status 1", n), func(r *request) { withFDs(r); r.status = 1 })
	}
	add("no number of descriptors", func(r *request) { r.typ, r.payload = 4, nil })
	add("half a number of descriptors", func(r *request) { r.typ, r.payload = 4, r.payload[:3] })
	whole := len((&daemon{}).enc().uuid().str("vm").num(1).num(1).num(0).Bytes())
	for n := range whole {
		add(fmt.Sprintf("%d bytes of payload", n), func(r *request) { r.payload = r.payload[:n] })
	}
	for _, n := range []int{1, 3, 1000, 5000, 140_000, 1_000_000} {
		add(fmt.Sprintf("%d bytes too many", n), func(r *request) { r.zeros = n })
		add(fmt.Sprintf("%d bytes too many, unknown program", n), func(r *request) {
			r.zeros, r.program = n, 5
		})
	}
	add("the longest message", func(r *request) { r.zeros = 33_554_436 - 28 - len(r.payload) })
	for _, length := range []uint32{1, 3, 4, 24, 27, 33_554_437, 0x7fffffff, 0x80000000, 0xffffffff} {
		add(fmt.Sprintf("length %d", length), func(r *request) { r.length = length })
	}
	for _, n := range []uint32{3, long, long + 1, 0x7fffffff, 0xfffffffd, 0xffffffff} {
		add(fmt.Sprintf("a name of %d bytes that are not there", n), func(r *request) {
			r.payload = append(append(r.payload[:16:16], byte(n>>24), byte(n>>16), byte(n>>8), byte(n)), "vm"...)
		})
	}
	add("padding of ones", func(r *request) {
		copy(r.payload[16+4+2:], "\x01\x02")
	})
	const keepalive = 0x6b656570
	for _, procedure := range []int32{0, 1, 2, 3} {
		ping := func(r *request) { *r = request{program: keepalive, version: 1, procedure: procedure, typ: 2} }
		what := fmt.Sprintf("keepalive %d", procedure)
		add(what, ping)
		add(what+", status 1", func(r *request) { ping(r); r.status = 1 })
		add(what+", payload", func(r *request) { ping(r); r.payload = []byte("payload") })
		add(what+", version 2", func(r *request) { ping(r); r.version = 2 })
		add(what+", a call", func(r *request) { ping(r); r.typ = 0 })
		add(what+", a reply", func(r *request) { ping(r); r.typ = 1 })
	}
	return steps
}

func TestAgainstVirtlockd(t *testing.T) {
	p := newPlayers(t)
	pids := children(t, 2)
	for _, s := range script(pids) {
		p.run(s)
	}
	p.sameFiles()
	t.Run("framing", func(t *testing.T) {
		p.t = t
		for _, s := range framing(pids[0]) {
			p.drop(0)
			p.run(s)
			p.run(register(0, pids[0], 1, 0).with("after "+s.what, func(*request) {}))
		}
	})
}
