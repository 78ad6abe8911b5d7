package difftest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// apart does a step on both, and wants the answers to have these codes; 0 is OK,
// and -1 that the connection was closed.
func (p *players) apart(s step, theirs, ours rpc.Code) {
	p.t.Helper()
	for i, c := range p.pair(s.on) {
		want := []rpc.Code{theirs, ours}[i]
		o := c.do(s.make(c.d))
		got := rpc.Code(-1)
		if !o.Closed && len(o.Replies) == 1 {
			got = o.Replies[0].Error.Code
		}
		if got != want {
			p.t.Errorf("%s on %s: code %d, want %d (%s)", s.what, c.d.name, got, want, brief(o))
		}
	}
}

// TestBetterThanVirtlockd goes through what vmlockd does otherwise on purpose,
// and shows that virtlockd does it.
func TestBetterThanVirtlockd(t *testing.T) {
	p := newPlayers(t)
	pids := children(t, 2)
	a, b := pids[0], pids[1]
	for _, d := range []*daemon{p.theirs, p.ours} {
		must(t, os.Mkdir(filepath.Join(d.dir, "ls"), 0o700))
		must(t, os.Symlink("d0", filepath.Join(d.dir, "symlink")))
		must(t, os.Link(filepath.Join(d.dir, "d0"), filepath.Join(d.dir, "hardlink")))
		must(t, os.WriteFile(filepath.Join(d.dir, "ls", "r"), nil, 0o600))
	}
	p.run(register(0, a, 1, 0))
	p.run(register(1, b, 1, 0))
	p.run(createSpace(0, "$D/ls"))
	p.run(createSpace(0, "$D"))

	// One file under several names is one resource.
	p.run(acquire(0, "", "$D/d0", 0))
	for _, name := range []string{"$D//d0", "$D/./d0", "$D/symlink", "$D/hardlink"} {
		p.apart(acquire(1, "", name, 0), 0, rpc.CodeResourceBusy)
	}
	p.run(acquire(0, "$D/ls", "r", 0))
	p.apart(acquire(1, "$D", "ls/r", 0), 0, rpc.CodeResourceBusy)
	p.apart(acquire(1, "", "$D/ls/r", 0), 0, rpc.CodeResourceBusy)

	// A name does not lead out of its lockspace.
	for _, name := range []string{"../d1", "..", "x/../../d1", "../ls/r"} {
		p.apart(acquire(0, "$D/ls", name, 0), map[string]rpc.Code{
			"../d1": 0, "..": rpc.CodeSystem, "x/../../d1": rpc.CodeSystem, "../ls/r": 0,
		}[name], rpc.CodeInvalidArg)
		p.apart(create(0, "$D/ls", name), map[string]rpc.Code{
			"../d1": rpc.CodeResourceBusy, "..": rpc.CodeSystem, "x/../../d1": rpc.CodeSystem, "../ls/r": rpc.CodeResourceBusy,
		}[name], rpc.CodeInvalidArg)
	}
	p.apart(remove(0, "$D/ls", "../d3"), 0, rpc.CodeInvalidArg)

	// A byte that should have brought a descriptor and did not: virtlockd closes.
	// Here descriptors are not received at all, so nobody can tell.
	p.apart(register(2, a, 1, 0).with("a descriptor that does not come", func(r *request) {
		r.typ = 4
		// The byte that is taken for it is the first of a second message's length.
		r.payload = append([]byte{0, 0, 0, 1}, r.payload...)
		r.length = uint32(28 + len(r.payload))
		r.payload = append(r.payload, 'x')
	}), -1, 0)

	// A lockspace that is no directory. This comes last: virtlockd crashes when
	// the connection that made it is closed.
	p.apart(newSpace(0, "$D/plain", 0), 0, rpc.CodeInternal)
}

// TestLateAnswers is about clients that do not wait.
func TestLateAnswers(t *testing.T) {
	p := newPlayers(t)
	a := children(t, 1)[0]

	// Calls that are sent together are answered in order, also when the client
	// has shut down its side.
	for _, c := range p.pair(0) {
		var all []byte
		want := []uint32{}
		for i := range uint32(20) {
			s := []step{register(0, a, 1, 0), acquire(0, "", "$D/d0", 0), release(0, "", "$D/d0"), acquire(0, "/unknown", "", 0)}[i%4]
			all = append(all, s.make(c.d).bytes(i)...)
			want = append(want, i)
		}
		c.write(all)
		must(t, c.c.CloseWrite())
		for _, serial := range want {
			r, ok := c.read()
			if !ok || r.Serial != serial || (r.Status != 0) != (serial%4 == 3) {
				t.Errorf("%s: call %d: got serial %d, status %d, %v", c.d.name, serial, r.Serial, r.Status, r.Error.Message)
			}
		}
		if _, ok := c.read(); ok {
			t.Errorf("%s: more answers than calls", c.d.name)
		}
	}

	// An acquire is carried out although the client leaves at once.
	for _, c := range p.pair(1) {
		c.ok(register(1, a, 1, 0))
		c.write(acquire(1, "", "$D/d1", 0).make(c.d).bytes(2))
		must(t, c.c.Close())
	}
	p.drop(1)
	p.run(register(2, a, 1, 0))
	for _, c := range p.pair(2) {
		eventually(t, c.d.name+" has carried out the acquire", func() bool {
			o := c.do(release(2, "", "$D/d1").make(c.d))
			return len(o.Replies) == 1 && o.Replies[0].Status == 0
		})
	}

	// A message that comes byte by byte.
	for _, c := range p.pair(3) {
		for _, b := range register(3, a, 1, 0).make(c.d).bytes(5) {
			c.write([]byte{b})
		}
		if r, ok := c.read(); !ok || r.Status != 0 || r.Serial != 5 {
			t.Errorf("%s: %+v", c.d.name, r)
		}
	}
}
