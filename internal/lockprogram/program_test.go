package lockprogram

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeManager answers everything with err, and notes what it was asked.
type fakeManager struct {
	err         error
	registerErr error

	mu    sync.Mutex // guards asked: a session's end comes from the server's goroutine
	asked []string
}

type fakeRegistration struct {
	m     *fakeManager
	info  locking.Owner
	start uint64
}

func (g *fakeRegistration) StartTime() uint64 { return g.start }

func (m *fakeManager) note(format string, args ...any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, fmt.Sprintf(format, args...))
	return m.err
}

func (m *fakeManager) Register(o locking.Owner) (registration, error) {
	m.note("register %d %d %s", o.PID, o.ID, o.Name)
	if m.registerErr != nil {
		return nil, m.registerErr
	}
	return &fakeRegistration{m: m, info: o}, nil
}

func (m *fakeManager) RegisterAgain(o locking.Owner, start uint64) (registration, error) {
	g, err := m.Register(o)
	if err == nil {
		g.(*fakeRegistration).start = start
	}
	return g, err
}

func (m *fakeManager) NewLockspace(_ context.Context, path string) error {
	return m.note("new %q", path)
}

func (m *fakeManager) CreateLockspace(_ context.Context, path string) error {
	return m.note("create lockspace %q", path)
}

func (m *fakeManager) CreateResource(_ context.Context, ref locking.Ref) error {
	return m.note("create %v", ref)
}

func (m *fakeManager) DeleteResource(_ context.Context, ref locking.Ref) error {
	return m.note("delete %v", ref)
}

func (r *fakeRegistration) Owner() locking.Owner { return r.info }

func (r *fakeRegistration) Acquire(_ context.Context, ref locking.Ref, mode locking.Mode, autocreate bool) error {
	return r.m.note("%d acquire %v %v %v", r.info.PID, ref, mode, autocreate)
}

func (r *fakeRegistration) Release(_ context.Context, ref locking.Ref) error {
	return r.m.note("%d release %v", r.info.PID, ref)
}

func (r *fakeRegistration) Disconnected() { r.m.note("%d disconnected", r.info.PID) }
func (r *fakeRegistration) Close()        { r.m.note("%d close", r.info.PID) }

func encode(a rpc.Marshaler) []byte {
	e := rpc.NewEncoder(nil)
	a.EncodeXDR(e)
	return e.Bytes()
}

func call(s rpc.Session, procedure int32, args []byte) error {
	return s.Call(context.Background(), procedure, rpc.NewDecoder(args), rpc.NewEncoder(nil))
}

// procedures has well-formed arguments for every procedure, with these flags.
func procedures(flags uint32) map[int32]rpc.Marshaler {
	ref := locking.Ref{Lockspace: "/space", Name: "name"}
	return map[int32]rpc.Marshaler{
		ProcRegister:        &registerCall{owner: locking.Owner{PID: 7, ID: 1, Name: "vm"}, flags: flags},
		ProcRestrict:        &flagsCall{flags: flags},
		ProcNew:             &newCall{path: "/space", flags: flags},
		ProcCreateResource:  &resourceCall{ref: ref, flags: flags},
		ProcDeleteResource:  &resourceCall{ref: ref, flags: flags},
		ProcAcquireResource: &resourceCall{ref: ref, flags: flags},
		ProcReleaseResource: &resourceCall{ref: ref, flags: flags},
		ProcCreateLockspace: pathCall("/space"),
	}
}

func wantError(t *testing.T, what string, err error, code rpc.Code, domain rpc.Domain, message string) *rpc.Error {
	t.Helper()
	var e *rpc.Error
	if !errors.As(err, &e) {
		t.Fatalf("%s: got %v, want error %d/%d", what, err, code, domain)
	}
	if e.Code != code || e.Domain != domain || e.Message != message {
		t.Errorf("%s: got %d/%d %q, want %d/%d %q", what, e.Code, e.Domain, e.Message, code, domain, message)
	}
	return e
}

const (
	notRegistered = "Requested operation is not valid: lock owner details have not been registered"
	restricted    = "operation forbidden: lock manager connection has been restricted"
	undecodable   = "Unable to decode message payload"
)

// TestOrderOfChecks has every later reason to refuse present as well: the first
// one in the order must win.
func TestOrderOfChecks(t *testing.T) {
	m := &fakeManager{err: &locking.Error{Kind: locking.KindBusy, Ref: locking.Ref{Name: "name"}}}
	fresh := func() *session { return (&Program{m}).NewSession(rpc.Peer{PID: 7}).(*session) }
	owner := locking.Owner{PID: 7, ID: 1}

	for procedure := range procedures(0) {
		s := fresh()
		s.restricted = true
		wantError(t, fmt.Sprintf("procedure %d without arguments", procedure),
			call(s, procedure, nil), rpc.CodeRPC, rpc.DomainRPC, undecodable)
		args := encode(procedures(0)[procedure])
		wantError(t, fmt.Sprintf("procedure %d with a byte too few", procedure),
			call(s, procedure, args[:len(args)-1]), rpc.CodeRPC, rpc.DomainRPC, undecodable)

		if procedure != ProcCreateLockspace { // has no flags
			args := encode(procedures(0x80000004)[procedure])
			err := call(s, procedure, args)
			var e *rpc.Error
			if !errors.As(err, &e) || e.Code != rpc.CodeInvalidArg || e.Domain != rpc.DomainRPC ||
				e.Str2 != "flags" || e.Int1 != 0 || e.Int2 != 0 {
				t.Errorf("procedure %d with unknown flags: %+v", procedure, err)
			}
		}
		wantError(t, fmt.Sprintf("procedure %d restricted", procedure),
			call(s, procedure, encode(procedures(0)[procedure])), rpc.CodeOperationDenied, rpc.DomainRPC, restricted)

		s = fresh()
		err := call(s, procedure, encode(procedures(0)[procedure]))
		switch procedure {
		case ProcRegister:
			if err != nil {
				t.Errorf("register: %v", err)
			}
		case ProcCreateLockspace:
			wantError(t, "create lockspace without an owner", err, rpc.CodeResourceBusy, rpc.DomainLockspace,
				"resource busy: Lockspace resource 'name' is locked")
		default:
			wantError(t, fmt.Sprintf("procedure %d without an owner", procedure), err,
				rpc.CodeOperationInvalid, rpc.DomainRPC, notRegistered)
		}

		s = fresh()
		s.owner = &fakeRegistration{m: m, info: owner}
		err = call(s, procedure, encode(procedures(0)[procedure]))
		switch procedure {
		case ProcRegister, ProcRestrict:
			if err != nil {
				t.Errorf("procedure %d: %v", procedure, err)
			}
		default:
			wantError(t, fmt.Sprintf("procedure %d", procedure), err, rpc.CodeResourceBusy, rpc.DomainLockspace,
				"resource busy: Lockspace resource 'name' is locked")
		}
	}
	for _, procedure := range []int32{0, 9, -1, math.MaxInt32, math.MinInt32} {
		s := fresh()
		s.restricted = true
		wantError(t, "unknown", call(s, procedure, nil), rpc.CodeRPC, rpc.DomainRPC,
			fmt.Sprintf("unknown procedure: %d", procedure))
	}
}

func TestErrors(t *testing.T) {
	ref := locking.Ref{Lockspace: "/space", Name: "name"}
	tests := []struct {
		procedure int32
		err       error
		code      rpc.Code
		domain    rpc.Domain
		message   string
		int1      int32
	}{
		{ProcAcquireResource, &locking.Error{Kind: locking.KindBusy, Ref: ref},
			87, 51, "resource busy: Lockspace resource 'name' is locked", -1},
		{ProcReleaseResource, &locking.Error{Kind: locking.KindNotLocked, Ref: ref},
			87, 51, "resource busy: Lockspace resource 'name' is not locked", -1},
		{ProcReleaseResource, &locking.Error{Kind: locking.KindNotOwner, Ref: ref, PID: -5},
			1, 51, "internal error: owner -5 does not hold the resource lock", -1},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindNoLockspace, Ref: ref},
			1, 7, "internal error: Lockspace for path /space does not exist", -1},
		{ProcNew, &locking.Error{Kind: locking.KindLockspaceExists, Ref: locking.Ref{Lockspace: "/space"}},
			1, 7, "internal error: Lockspace for path /space already exists", -1},
		{ProcNew, &locking.Error{Kind: locking.KindDefaultLockspace},
			55, 7, "Requested operation is not valid: the default lockspace already exists", -1},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindSystem, Op: "acquire", Ref: ref, Err: fmt.Errorf("open: %w", syscall.ENOENT)},
			38, 51, "Unable to acquire 'name': open: no such file or directory", 2},
		{ProcDeleteResource, &locking.Error{Kind: locking.KindSystem, Op: "delete resource", Ref: ref, Err: syscall.EISDIR},
			38, 51, "Unable to delete resource 'name': is a directory", 21},
		{ProcCreateResource, &locking.Error{Kind: locking.KindSystem, Op: "create resource", Ref: ref, Err: syscall.EACCES},
			38, 0, "Unable to create resource 'name': permission denied", 13},
		{ProcCreateLockspace, &locking.Error{Kind: locking.KindSystem, Op: "create lockspace", Ref: locking.Ref{Lockspace: "/f/x"}, Err: syscall.ENOTDIR},
			38, 51, "Unable to create lockspace '/f/x': not a directory", 20},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindSystem, Op: "acquire", Ref: ref, Err: errors.New("no idea")},
			38, 51, "Unable to acquire 'name': no idea", -1},
		{ProcNew, &locking.Error{Kind: locking.KindInvalid, Op: "create lockspace", Ref: locking.Ref{Lockspace: "/f"}, Err: errors.New("no directory")},
			1, 51, "internal error: Unable to create lockspace '/f': no directory", -1},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindInvalid, Op: "acquire", Ref: ref, Err: errors.New("bad")},
			8, 51, "invalid argument: Unable to acquire 'name': bad", -1},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindUnavailable, Op: "acquire", Ref: ref, Err: fmt.Errorf("no answer: %w", context.DeadlineExceeded)},
			68, 51, "Timed out during operation: Unable to acquire 'name': no answer: context deadline exceeded", -1},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindUnavailable, Op: "acquire", Ref: ref, Err: errors.New("no quorum")},
			9, 51, "operation failed: Unable to acquire 'name': no quorum", -1},
		{ProcAcquireResource, &locking.Error{Kind: locking.KindOwnerGone, Ref: ref, PID: 7},
			55, 51, "Requested operation is not valid: Lockspace resource 'name' was not locked: its owner, process 7, has ended", -1},
		{ProcAcquireResource, errors.New("else"), 1, 51, "internal error: else", -1},
	}
	for _, test := range tests {
		m := &fakeManager{err: test.err}
		s := &session{manager: m, owner: &fakeRegistration{m: m, info: locking.Owner{PID: 7}}}
		err := call(s, test.procedure, encode(procedures(0)[test.procedure]))
		e := wantError(t, test.message, err, test.code, test.domain, test.message)
		if e.Int1 != test.int1 || e.Int2 != -1 {
			t.Errorf("%s: int1 %d, int2 %d", test.message, e.Int1, e.Int2)
		}
	}
}

func TestWhatTheManagerIsAsked(t *testing.T) {
	m := &fakeManager{}
	s := (&Program{m}).NewSession(rpc.Peer{PID: 7})
	for _, step := range []struct {
		procedure int32
		args      rpc.Marshaler
	}{
		{ProcCreateLockspace, pathCall("/c")},
		{ProcRegister, &registerCall{owner: locking.Owner{PID: -3, ID: 9, Name: "a\x00b"}}},
		{ProcNew, &newCall{path: "/n"}},
		{ProcCreateResource, &resourceCall{ref: locking.Ref{Name: "x"}}},
		{ProcAcquireResource, &resourceCall{ref: locking.Ref{Name: "x"}}},
		{ProcAcquireResource, &resourceCall{ref: locking.Ref{Lockspace: "/n", Name: "y"}, flags: FlagShared | FlagAutocreate}},
		{ProcAcquireResource, &resourceCall{ref: locking.Ref{Lockspace: "/n", Name: "\xff"}, flags: FlagShared}},
		{ProcReleaseResource, &resourceCall{ref: locking.Ref{Lockspace: "/n\x00m", Name: "y"}}},
		{ProcDeleteResource, &resourceCall{ref: locking.Ref{Name: "x"}}},
		{ProcRegister, &registerCall{owner: locking.Owner{PID: 8, ID: 1, Name: "second"}}},
		{ProcReleaseResource, &resourceCall{ref: locking.Ref{Name: "z"}}},
	} {
		if err := call(s, step.procedure, encode(step.args)); err != nil {
			t.Errorf("procedure %d: %v", step.procedure, err)
		}
	}
	want := []string{
		`create lockspace "/c"`,
		`register -3 9 a`,
		`new "/n"`,
		`create { x}`,
		`-3 acquire { x} exclusive false`,
		`-3 acquire {/n y} shared true`,
		"-3 acquire {/n \xff} shared false",
		`-3 release {/n y}`,
		`delete { x}`,
		`register 8 1 second`,
		`-3 close`,
		`8 release { z}`,
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if diff := cmp.Diff(want, m.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestFailedRegisterKeepsTheOwner(t *testing.T) {
	m := &fakeManager{}
	s := (&Program{m}).NewSession(rpc.Peer{PID: 7})
	register := func(o locking.Owner) error {
		return call(s, ProcRegister, encode(&registerCall{owner: o}))
	}
	if err := register(locking.Owner{PID: 5, ID: 1}); err != nil {
		t.Fatal(err)
	}
	wantError(t, "id 0", register(locking.Owner{PID: 6}), rpc.CodeOperationInvalid, rpc.DomainRPC, notRegistered)
	m.registerErr = &locking.Error{Kind: locking.KindSystem, Op: "watch process 6 of owner", Err: syscall.EMFILE}
	wantError(t, "no descriptors", register(locking.Owner{PID: 6, ID: 1}), rpc.CodeSystem, rpc.DomainLockspace,
		"Unable to watch process 6 of owner '': too many open files")
	if got := s.(*session).owner.Owner().PID; got != 5 {
		t.Errorf("the owner is %d", got)
	}
}

func TestEnded(t *testing.T) {
	tests := []struct {
		peer, owner int32
		cause       rpc.Cause
		want        []string
	}{
		{7, 7, rpc.PeerClosed, []string{"7 disconnected", "7 close"}},
		{7, 7, rpc.ProtocolError, []string{"7 disconnected", "7 close"}},
		{7, 7, rpc.PeerStuck, []string{"7 close"}},
		{7, 7, rpc.ServerStopped, []string{"7 close"}},
		{7, 7, rpc.Failed, []string{"7 close"}},
		{7, 7, rpc.Dismissed, []string{"7 close"}},
		{7, 8, rpc.PeerClosed, []string{"8 close"}},
		{0, 0, rpc.PeerClosed, []string{"0 close"}},
		{7, -7, rpc.PeerClosed, []string{"-7 close"}},
	}
	for _, test := range tests {
		m := &fakeManager{}
		s := &session{manager: m, peer: rpc.Peer{PID: test.peer}, restricted: true}
		s.owner = &fakeRegistration{m: m, info: locking.Owner{PID: test.owner}}
		s.Ended(test.cause)
		if diff := cmp.Diff(test.want, m.asked); diff != "" {
			t.Errorf("peer %d, owner %d, %v (-want +got):\n%s", test.peer, test.owner, test.cause, diff)
		}
	}
	m := &fakeManager{}
	(&Program{m}).NewSession(rpc.Peer{PID: 7}).Ended(rpc.PeerClosed)
	if len(m.asked) != 0 {
		t.Errorf("a session without an owner asked %v", m.asked)
	}
}

func TestSessionIsRestored(t *testing.T) {
	m := &fakeManager{}
	p := &Program{m}
	owner := locking.Owner{PID: -9, ID: 4, Name: "vm", UUID: [16]byte{1, 2, 3}}
	for _, want := range []*session{
		{manager: m, peer: rpc.Peer{PID: 3}},
		{manager: m, peer: rpc.Peer{PID: 3}, owner: &fakeRegistration{m: m, info: owner}},
		{manager: m, peer: rpc.Peer{PID: 3}, owner: &fakeRegistration{m: m, info: owner, start: 5<<32 + 6}, restricted: true},
	} {
		state, err := want.Export()
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.RestoreSession(rpc.Peer{PID: 3}, state)
		if err != nil {
			t.Fatal(err)
		}
		g := got.(*session)
		if g.restricted != want.restricted || (g.owner == nil) != (want.owner == nil) ||
			g.owner != nil && (g.owner.Owner() != want.owner.Owner() || g.owner.StartTime() != want.owner.StartTime()) {
			t.Errorf("restored %+v, want %+v", g, want)
		}
		for n := range len(state) {
			if _, err := p.RestoreSession(rpc.Peer{}, state[:n]); err == nil {
				t.Errorf("%d of %d bytes of state were enough", n, len(state))
			}
		}
	}
}

// serve runs a server with p, and returns its socket.
func serve(t testing.TB, p *Program) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.Options{Programs: []rpc.Program{p}})
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, rpc.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

func dial(t testing.TB, path string) *Client {
	t.Helper()
	c, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClientAgainstServer(t *testing.T) {
	ctx := context.Background()
	m := &fakeManager{}
	path := serve(t, &Program{m})
	c := dial(t, path)
	ref := locking.Ref{Lockspace: "/s", Name: "n"}
	for _, f := range []func() error{
		func() error { return c.CreateLockspace(ctx, "/s") },
		func() error { return c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "me"}) },
		func() error { return c.NewLockspace(ctx, "/t") },
		func() error { return c.CreateResource(ctx, ref) },
		func() error { return c.Acquire(ctx, ref, FlagShared) },
		func() error { return c.Release(ctx, ref) },
		func() error { return c.DeleteResource(ctx, ref) },
		func() error { return c.Ping(ctx) },
		func() error { return c.Restrict(ctx) },
		func() error { return c.Ping(ctx) },
	} {
		if err := f(); err != nil {
			t.Error(err)
		}
	}
	wantError(t, "restricted", c.Acquire(ctx, ref, 0), rpc.CodeOperationDenied, rpc.DomainRPC, restricted)
	if peer, err := c.Peer(); err != nil || peer.PID != int32(os.Getpid()) {
		t.Errorf("peer %+v, %v", peer, err)
	}
	pid := os.Getpid()
	want := []string{
		`create lockspace "/s"`,
		fmt.Sprintf("register %d 1 me", pid),
		`new "/t"`,
		`create {/s n}`,
		fmt.Sprintf("%d acquire {/s n} shared false", pid),
		fmt.Sprintf("%d release {/s n}", pid),
		`delete {/s n}`,
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if diff := cmp.Diff(want, m.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}
