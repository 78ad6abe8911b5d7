package lockprogram

import (
	"context"
	"fmt"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// manager is what sessions need of a locking.Manager.
type manager interface {
	Register(locking.Owner) (registration, error)
	// RegisterAgain is Register in a new process of the daemon.
	RegisterAgain(o locking.Owner, start uint64) (registration, error)
	NewLockspace(ctx context.Context, path string) error
	CreateLockspace(ctx context.Context, path string) error
	CreateResource(ctx context.Context, ref locking.Ref) error
	DeleteResource(ctx context.Context, ref locking.Ref) error
}

// registration is what they need of a locking.Registration.
type registration interface {
	Owner() locking.Owner
	StartTime() uint64
	Acquire(ctx context.Context, ref locking.Ref, mode locking.Mode, autocreate bool) error
	Release(ctx context.Context, ref locking.Ref) error
	Disconnected()
	Close()
}

// realManager is a locking.Manager as a manager.
type realManager struct{ *locking.Manager }

func (m realManager) Register(o locking.Owner) (registration, error) {
	r, err := m.Manager.Register(o)
	if err != nil { // r is nil, which would make an interface that is not
		return nil, err
	}
	return r, nil
}

func (m realManager) RegisterAgain(o locking.Owner, start uint64) (registration, error) {
	r, err := m.Manager.RegisterAgain(o, start)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Program serves the lock space program. It has no state but its Manager's.
type Program struct{ manager manager }

var _ rpc.Program = (*Program)(nil)

// New makes a Program that lets clients use m.
func New(m *locking.Manager) *Program { return &Program{realManager{m}} }

// ID implements rpc.Program.
func (*Program) ID() (program, version uint32) { return ProgramNumber, Version }

// MaxArgs implements rpc.Program.
func (*Program) MaxArgs() int { return maxArgs }

// NewSession implements rpc.Program.
func (p *Program) NewSession(peer rpc.Peer) rpc.Session {
	return &session{manager: p.manager, peer: peer}
}

// session is one client's. It is used by one goroutine at a time.
type session struct {
	manager    manager
	peer       rpc.Peer
	owner      registration // nil until a successful REGISTER
	restricted bool
	limited    error // why nothing is acquired here; nil if all is well

	// What the last call named. Clients mostly release what they acquired, so
	// keeping these saves making the strings again.
	last locking.Ref
}

// Call implements rpc.Session.
func (s *session) Call(ctx context.Context, procedure int32, args *rpc.Decoder, _ *rpc.Encoder) error {
	switch procedure {
	case ProcRegister:
		return s.register(args)
	case ProcRestrict:
		return s.restrict(args)
	case ProcNew:
		return s.newLockspace(ctx, args)
	case ProcCreateLockspace:
		return s.createLockspace(ctx, args)
	case ProcCreateResource, ProcDeleteResource, ProcAcquireResource, ProcReleaseResource:
		return s.resource(ctx, procedure, args)
	default:
		return rpc.UnknownProcedure(procedure)
	}
}

// Limit implements rpc.Limited: only what gives something back is carried out.
func (s *session) Limit(why error) { s.limited = why }

// Ended implements rpc.Session.
func (s *session) Ended(cause rpc.Cause) {
	if s.owner == nil {
		return
	}
	// Anything else than the client's own doing is no reason to end a virtual
	// machine: it keeps its locks, and its process is watched.
	if cause == rpc.PeerClosed || cause == rpc.ProtocolError {
		if pid := s.peer.PID; pid > 0 && pid == s.owner.Owner().PID {
			s.owner.Disconnected()
		}
	}
	s.owner.Close()
	s.owner = nil
}

// check is what most procedures ask first. virtlockd takes an owner for
// registered when its id is not 0, and does not accept one with id 0.
func (s *session) check(flags, known uint32, function string) error {
	if unknown := flags &^ known; unknown != 0 {
		return unknownFlags(unknown, function)
	}
	if s.restricted {
		return errRestricted
	}
	if s.owner == nil {
		return errNotRegistered
	}
	return nil
}

func (s *session) register(d *rpc.Decoder) error {
	var a ownerArgs
	if !a.decode(d) {
		return rpc.ErrDecode
	}
	switch err := s.check(a.flags, 0, "virLockSpaceProtocolDispatchRegister"); {
	case err == nil || err == errNotRegistered:
	default:
		return err
	}
	if a.id == 0 {
		return errNotRegistered
	}
	owner, err := s.manager.Register(locking.Owner{
		PID: int32(a.pid), ID: a.id, Name: string(a.name), UUID: a.uuid,
	})
	if err != nil {
		return answer(ProcRegister, err)
	}
	if s.owner != nil {
		s.owner.Close()
	}
	s.owner = owner
	return nil
}

func (s *session) restrict(d *rpc.Decoder) error {
	flags := d.Uint32()
	if !d.OK() {
		return rpc.ErrDecode
	}
	if err := s.check(flags, 0, "virLockSpaceProtocolDispatchRestrict"); err != nil {
		return err
	}
	s.restricted = true
	return nil
}

func (s *session) newLockspace(ctx context.Context, d *rpc.Decoder) error {
	path := d.String(maxString)
	flags := d.Uint32()
	if !d.OK() {
		return rpc.ErrDecode
	}
	if err := s.check(flags, 0, "virLockSpaceProtocolDispatchNew"); err != nil {
		return err
	}
	return answer(ProcNew, s.manager.NewLockspace(ctx, string(path)))
}

func (s *session) createLockspace(ctx context.Context, d *rpc.Decoder) error {
	path := d.String(maxString)
	if !d.OK() {
		return rpc.ErrDecode
	}
	if s.restricted {
		return errRestricted
	}
	return answer(ProcCreateLockspace, s.manager.CreateLockspace(ctx, string(path)))
}

func (s *session) resource(ctx context.Context, procedure int32, d *rpc.Decoder) error {
	var a resourceArgs
	if !a.decode(d) {
		return rpc.ErrDecode
	}
	known, function := uint32(0), ""
	switch procedure {
	case ProcCreateResource:
		function = "virLockSpaceProtocolDispatchCreateResource"
	case ProcDeleteResource:
		function = "virLockSpaceProtocolDispatchDeleteResource"
	case ProcReleaseResource:
		function = "virLockSpaceProtocolDispatchReleaseResource"
	case ProcAcquireResource:
		function = "virLockSpaceProtocolDispatchAcquireResource"
		known = FlagShared | FlagAutocreate
	}
	if err := s.check(a.flags, known, function); err != nil {
		return err
	}
	if s.limited != nil && procedure != ProcReleaseResource {
		return rpc.NewError(rpc.CodeOperationFailed, rpc.DomainLockspace,
			fmt.Sprintf("%v: until that is over only releases are carried out", s.limited))
	}
	ref := s.ref(&a)
	var err error
	switch procedure {
	case ProcCreateResource:
		err = s.manager.CreateResource(ctx, ref)
	case ProcDeleteResource:
		err = s.manager.DeleteResource(ctx, ref)
	case ProcReleaseResource:
		err = s.owner.Release(ctx, ref)
	case ProcAcquireResource:
		mode := locking.Exclusive
		if a.flags&FlagShared != 0 {
			mode = locking.Shared
		}
		err = s.owner.Acquire(ctx, ref, mode, a.flags&FlagAutocreate != 0)
	}
	return answer(procedure, err)
}

// ref makes strings of what a names, or takes those that it made last time.
func (s *session) ref(a *resourceArgs) locking.Ref {
	if string(a.path) != s.last.Lockspace {
		s.last.Lockspace = string(a.path)
	}
	if string(a.name) != s.last.Name {
		s.last.Name = string(a.name)
	}
	ref := s.last
	if len(s.last.Name) > maxKeptName || len(s.last.Lockspace) > maxKeptName {
		s.last = locking.Ref{}
	}
	return ref
}

// maxKeptName bounds, in bytes, the names that an idle session keeps in memory.
const maxKeptName = 1024
