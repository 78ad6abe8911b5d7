package lockprogram

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// FuzzProcedures gives every procedure any arguments, to a session in any
// state. A call that is refused must not have reached the manager, one that is
// not must have the arguments that the manager was asked with.
func FuzzProcedures(f *testing.F) {
	for procedure, args := range procedures(0) {
		for state := range uint8(4) {
			f.Add(procedure, state, encode(args))
		}
	}
	for procedure, args := range procedures(3) {
		f.Add(procedure, uint8(1), encode(args))
	}
	f.Fuzz(func(t *testing.T, procedure int32, state uint8, args []byte) {
		m := &fakeManager{}
		s := &session{manager: m, peer: rpc.Peer{PID: 3}, restricted: state&2 != 0}
		if state&1 != 0 {
			s.owner = &fakeRegistration{m: m, info: locking.Owner{PID: 3, ID: 1}}
		}
		before := append([]byte(nil), args...)
		result := rpc.NewEncoder(nil)
		var err error
		testenv.Bounded(t, 10, len(args), func() { err = s.Call(context.Background(), procedure, rpc.NewDecoder(args), result) })
		if string(before) != string(args) {
			t.Fatal("the arguments were changed")
		}
		if len(result.Bytes()) != 0 {
			t.Fatal("no procedure has a result")
		}
		var e *rpc.Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("not an answer: %v", err)
		}
		asked := strings.Join(m.asked, "; ")
		if err != nil {
			if asked != "" {
				t.Fatalf("refused with %v, after the manager was asked to %s", err, asked)
			}
			return
		}
		if procedure == ProcRestrict {
			return
		}
		// Whatever was accepted is encoded again, and must come to the same.
		d := rpc.NewDecoder(before)
		var again rpc.Marshaler
		var a resourceArgs
		var o ownerArgs
		switch procedure {
		case ProcRegister:
			o.decode(d)
			again = &registerCall{locking.Owner{PID: int32(o.pid), ID: o.id, Name: string(o.name), UUID: o.uuid}, o.flags}
		case ProcNew:
			again = &newCall{string(d.String(maxString)), d.Uint32()}
		case ProcCreateLockspace:
			again = pathCall(d.String(maxString))
		default:
			a.decode(d)
			again = &resourceCall{locking.Ref{Lockspace: string(a.path), Name: string(a.name)}, a.flags}
		}
		m.asked = nil
		s = &session{manager: m, peer: rpc.Peer{PID: 3}}
		s.owner = &fakeRegistration{m: m, info: locking.Owner{PID: 3, ID: 1}}
		if err := call(s, procedure, encode(again)); err != nil {
			t.Fatal(err)
		}
		// A registration closes the one that was there.
		if got := strings.TrimSuffix(strings.Join(m.asked, "; "), "; 3 close"); got != strings.TrimSuffix(asked, "; 3 close") {
			t.Fatalf("asked to %q, and then to %q", asked, got)
		}
	})
}

func FuzzRestoreSession(f *testing.F) {
	s := &session{owner: &fakeRegistration{info: locking.Owner{PID: 4, ID: 5, Name: "vm"}}}
	state, err := s.Export()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, state []byte) {
		var s rpc.Session
		var err error
		testenv.Bounded(t, 100, len(state), func() { s, err = (&Program{&fakeManager{}}).RestoreSession(rpc.Peer{}, state) })
		if err != nil {
			return
		}
		if _, err := s.(rpc.Portable).Export(); err != nil {
			t.Fatal(err)
		}
	})
}
