package lockprogram

import (
	"errors"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

var (
	_ rpc.Portable = (*session)(nil)
	_ rpc.Restorer = (*Program)(nil)
)

// Export implements rpc.Portable. The state is XDR: whether the session is
// restricted, whether an owner is registered, and if so when its process started
// and the arguments of its REGISTER.
func (s *session) Export() ([]byte, error) {
	if s.owner == nil {
		e := rpc.NewEncoder(nil)
		e.Bool(s.restricted)
		e.Bool(false)
		return e.Bytes(), nil
	}
	return Session(s.restricted, s.owner.Owner(), s.owner.StartTime()).State, nil
}

// Session is the state of a session in which an owner is registered, whose process started
// then (locking.Process.StartTime), or is not there if that is 0.
func Session(restricted bool, owner locking.Owner, start uint64) rpc.SessionState {
	e := rpc.NewEncoder(nil)
	e.Bool(restricted)
	e.Bool(true)
	e.Uint32(uint32(start >> 32))
	e.Uint32(uint32(start))
	call := registerCall{owner: owner}
	call.EncodeXDR(e)
	return rpc.SessionState{Program: ProgramNumber, Version: Version, State: e.Bytes()}
}

// RestoreSession implements rpc.Restorer. It registers the owner again. When the
// owner has ended meanwhile the session is as good as any whose owner has: it
// gets nothing.
func (p *Program) RestoreSession(peer rpc.Peer, state []byte) (rpc.Session, error) {
	d := rpc.NewDecoder(state)
	s := &session{manager: p.manager, peer: peer}
	s.restricted = d.Bool()
	if d.Bool() {
		start := uint64(d.Uint32())<<32 | uint64(d.Uint32())
		var a ownerArgs
		if !a.decode(d) {
			return nil, errBadState
		}
		owner, err := p.manager.RegisterAgain(locking.Owner{
			PID: int32(a.pid), ID: a.id, Name: string(a.name), UUID: a.uuid,
		}, start)
		if err != nil {
			return nil, err
		}
		s.owner = owner
	}
	if !d.OK() {
		return nil, errBadState
	}
	return s, nil
}

var errBadState = errors.New("the state of a lock session is cut short")
