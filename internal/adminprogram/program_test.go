package adminprogram

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// fakeClients is what a Server is about.
type fakeClients struct {
	list []rpc.Connection
	most int
	gone []uint64 // who was disconnected
}

func (f *fakeClients) Connections() []rpc.Connection { return f.list }

func (f *fakeClients) Connection(id uint64) (rpc.Connection, bool) {
	for _, c := range f.list {
		if c.ID == id {
			return c, true
		}
	}
	return rpc.Connection{}, false
}

func (f *fakeClients) Disconnect(id uint64) bool {
	f.gone = append(f.gone, id)
	return true
}

func (f *fakeClients) SetMaxClients(n int) { f.most = n }

func (f *fakeClients) Stats() rpc.Stats {
	return rpc.Stats{Clients: len(f.list), MaxClients: f.most}
}

type fakeLogging struct{ outputs, filters string }

func (f *fakeLogging) Outputs() (string, int) { return f.outputs, len(strings.Fields(f.outputs)) }
func (f *fakeLogging) Filters() (string, int) { return f.filters, len(strings.Fields(f.filters)) }

func (f *fakeLogging) SetOutputs(text string) error {
	switch text {
	case "bad":
		return errors.New("Malformed format for log output 'bad'")
	case "nowhere":
		return &fs.PathError{Op: "open", Path: "/nosuch/x", Err: syscall.ENOENT}
	}
	f.outputs = text
	return nil
}

func (f *fakeLogging) SetFilters(text string) error {
	if text == "bad" {
		return errors.New("Malformed format for filter 'bad'")
	}
	f.filters = text
	return nil
}

// world is a Program with all that is behind it.
type world struct {
	p       *Program
	locks   *fakeClients
	admin   *fakeClients
	logging *fakeLogging
	timeout uint32
	log     bytes.Buffer
}

func newWorld() *world {
	w := &world{
		locks: &fakeClients{most: 100, list: []rpc.Connection{
			{ID: 3, Peer: rpc.Peer{PID: 30, UID: 0, GID: 0}, Since: time.Unix(1000, 999)},
			{ID: 1 << 40, Peer: rpc.Peer{PID: 31, UID: 4294967294, GID: 4294967293}, Since: time.Unix(2000, 0)},
		}},
		admin:   &fakeClients{most: 10, list: []rpc.Connection{{ID: 7, Peer: rpc.Peer{PID: 70}, Since: time.Unix(3000, 0)}}},
		logging: &fakeLogging{outputs: "2:stderr"},
	}
	w.p = New(Options{
		Logging:    w.logging,
		SetTimeout: func(s uint32) error { w.timeout = s; return nil },
		Log:        slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	w.p.Add(&Server{Name: "admin", Clients: w.admin, MaxUnauth: 10})
	w.p.Add(&Server{Name: "virtlockd", Clients: w.locks, MaxUnauth: 100, MayDisconnect: func(c rpc.Connection) error {
		if c.Peer.PID == 30 {
			return errors.New("somebody depends on it")
		}
		return nil
	}})
	return w
}

// state is all that clients can change.
func (w *world) state() string {
	s := fmt.Sprint(w.locks.most, w.locks.gone, w.admin.most, w.admin.gone, *w.logging, w.timeout)
	for _, srv := range w.p.servers {
		s += fmt.Sprint(srv.Limits())
	}
	return s
}

// args makes arguments: numbers of 4 bytes, uint64 of 8, texts.
func args(list ...any) []byte {
	e := rpc.NewEncoder(nil)
	for _, a := range list {
		switch a := a.(type) {
		case int:
			e.Uint32(uint32(a))
		case uint64:
			e.Uint64(a)
		case string:
			e.String(a)
		case []any:
			e.Uint32(uint32(len(a)))
			for _, p := range a {
				e.Opaque(args(p.([]any)...))
			}
		}
	}
	return e.Bytes()
}

// p is a parameter of type uint, and ps an array of parameters.
func p(field string, v int) any { return []any{field, int(typeUint), v} }
func ps(list ...any) []any      { return append([]any{}, list...) }

func (w *world) call(procedure int32, arguments []byte) (result []byte, err error) {
	e := rpc.NewEncoder(nil)
	s := w.p.NewSession(rpc.Peer{PID: 70})
	err = s.Call(context.Background(), procedure, rpc.NewDecoder(arguments), e)
	return e.Bytes(), err
}

// client is what names a client.
func client(server string, id uint64, rest ...any) []any {
	return append([]any{server, id, uint64(0), 0}, rest...)
}

// TestResults: what each procedure answers, byte by byte as virtlockd has it.
func TestResults(t *testing.T) {
	w := newWorld()
	pool := []any{6}
	for _, field := range []string{"minWorkers", "maxWorkers", "nWorkers", "freeWorkers", "prioWorkers", "jobQueueDepth"} {
		pool = append(pool, field, 2, 0)
	}
	for _, k := range []struct {
		name      string
		procedure int32
		args      []any
		want      []any
	}{
		{"open", ProcConnectOpen, []any{0}, nil},
		{"version", ProcGetLibVersion, nil, []any{uint64(9000000)}},
		{"servers", ProcListServers, []any{1, 0}, []any{2, "admin", "virtlockd", 2}},
		{"number of servers", ProcListServers, []any{0, 0}, []any{0, 2}},
		{"server", ProcLookupServer, []any{"virtlockd", 0}, []any{"virtlockd"}},
		{"server, with flags that nobody looks at", ProcLookupServer, []any{"virtlockd", 1}, []any{"virtlockd"}},
		{"pool", ProcGetThreadpool, []any{"virtlockd", 0}, pool},
		{"pool as it is", ProcSetThreadpool, []any{"admin", ps(p("minWorkers", 0), p("maxWorkers", 0), p("prioWorkers", 0)), 0}, nil},
		{"no change of the pool", ProcSetThreadpool, []any{"admin", ps(), 0}, nil},
		{"clients", ProcListClients, []any{"virtlockd", 1, 0}, []any{2, "virtlockd", uint64(3), uint64(1000), 0, "virtlockd", uint64(1 << 40), uint64(2000), 0, 2}},
		{"number of clients", ProcListClients, []any{"virtlockd", 0, 0}, []any{0, 2}},
		{"client", ProcLookupClient, []any{"admin", uint64(7), 0}, []any{"admin", uint64(7), uint64(3000), 0}},
		{"who root is", ProcClientInfo, client("virtlockd", 3, 0), []any{6, "readonly", 6, 0, "unix_user_id", 1, 0, "unix_user_name", 7, "root", "unix_group_id", 1, 0, "unix_group_name", 7, "root", "unix_process_id", 1, 30}},
		{"who has no name", ProcClientInfo, client("virtlockd", 1<<40, 0), []any{4, "readonly", 6, 0, "unix_user_id", 1, -2, "unix_group_id", 1, -3, "unix_process_id", 1, 31}},
		{"limits", ProcGetClientLimits, []any{"virtlockd", 0}, []any{4, "nclients_max", 2, 100, "nclients", 2, 2, "nclients_unauth_max", 2, 100, "nclients_unauth", 2, 0}},
		{"outputs", ProcGetLoggingOutputs, []any{0}, []any{"2:stderr", 1}},
		{"no filters", ProcGetLoggingFilters, []any{0}, []any{0, 0}},
		{"set filters", ProcSetLoggingFilters, []any{1, "1:rpc 2:x", 0}, nil},
		{"filters", ProcGetLoggingFilters, []any{0}, []any{1, "1:rpc 2:x", 2}},
		{"no filters any more", ProcSetLoggingFilters, []any{0, 0}, nil},
		{"set outputs", ProcSetLoggingOutputs, []any{1, "3:stderr", 0}, nil},
		{"outputs that were set", ProcGetLoggingOutputs, []any{0}, []any{"3:stderr", 1}},
		{"timeout", ProcSetDaemonTimeout, []any{77, 0}, nil},
		{"both limits", ProcSetClientLimits, []any{"virtlockd", ps(p("nclients_max", 50), p("nclients_unauth_max", 20)), 0}, nil},
		{"both limits that were set", ProcGetClientLimits, []any{"virtlockd", 0}, []any{4, "nclients_max", 2, 50, "nclients", 2, 2, "nclients_unauth_max", 2, 20, "nclients_unauth", 2, 0}},
		{"one limit", ProcSetClientLimits, []any{"virtlockd", ps(p("nclients_unauth_max", 0)), 0}, nil},
		{"the other one", ProcSetClientLimits, []any{"virtlockd", ps(p("nclients_max", 1)), 0}, nil},
		{"limits that were set", ProcGetClientLimits, []any{"virtlockd", 0}, []any{4, "nclients_max", 2, 1, "nclients", 2, 2, "nclients_unauth_max", 2, 0, "nclients_unauth", 2, 0}},
		{"no change of limits", ProcSetClientLimits, []any{"virtlockd", ps(), 0}, nil},
		{"disconnect", ProcClientClose, client("virtlockd", 1<<40, 0), nil},
	} {
		got, err := w.call(k.procedure, args(k.args...))
		if err != nil {
			t.Errorf("%s: %v", k.name, err)
			continue
		}
		if d := cmp.Diff(args(k.want...), got); d != "" {
			t.Errorf("%s:\n%s", k.name, d)
		}
	}
	if w.timeout != 77 || w.locks.most != 1 || len(w.locks.gone) != 1 || w.locks.gone[0] != 1<<40 || w.admin.gone != nil || w.admin.most != 10 {
		t.Errorf("it came to %s", w.state())
	}
	for _, want := range []string{"client=1099511627776 client_pid=31", "max_clients=50 max_unauth_clients=20", "seconds=77", `filters="1:rpc 2:x"`, "by_pid=70"} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, w.log.String())
		}
	}
}

// TestRefusals: which errors there are, in virtlockd's words; and nothing has changed.
func TestRefusals(t *testing.T) {
	many := make([]any, 33)
	for i := range many {
		many[i] = p(fmt.Sprintf("f%d", i), 0)
	}
	long := strings.Repeat("x", maxField+1)
	decode := "Unable to decode message payload"
	flags := func(function string) string { return "unsupported flags (0x1) in function " + function }
	for _, k := range []struct {
		procedure int32
		args      []any
		code      rpc.Code
		domain    rpc.Domain
		message   string
	}{
		{0, nil, 39, 7, "unknown procedure: 0"},
		{20, nil, 39, 7, "unknown procedure: 20"},
		{-1, nil, 39, 7, "unknown procedure: -1"},
		{ProcConnectOpen, nil, 39, 7, decode},
		{ProcConnectOpen, []any{1}, 8, 62, flags("adminDispatchConnectOpen")},
		{ProcListServers, []any{1}, 39, 7, decode},
		{ProcListServers, []any{1, 1}, 8, 62, flags("adminConnectListServers")},
		{ProcLookupServer, []any{"x", 1}, 95, 7, "Server not found: No server named 'x'"},
		{ProcGetThreadpool, []any{"x", 1}, 95, 7, "Server not found: No server named 'x'"},
		{ProcGetThreadpool, []any{"admin", 1}, 8, 62, flags("adminServerGetThreadPoolParameters")},
		{ProcSetThreadpool, []any{"x", ps(), 1}, 95, 62, "Server not found: no server with matching name 'x' found"},
		{ProcSetThreadpool, []any{"x", many, 0}, 39, 7, decode},
		{ProcSetThreadpool, []any{"admin", ps([]any{"minWorkers", 9, 0}), 0}, 39, 7, decode},
		{ProcSetThreadpool, []any{"admin", ps([]any{"minWorkers", 0, 0}), 0}, 39, 7, decode},
		{ProcSetThreadpool, []any{"admin", ps(p(long, 1)), 1}, 1, 0, "internal error: parameter " + long + " too big for destination"},
		{ProcSetThreadpool, []any{"admin", ps(p("foo", 1)), 1}, 8, 62, flags("adminServerSetThreadPoolParameters")},
		{ProcSetThreadpool, []any{"admin", ps(p("foo", 1)), 0}, 74, 0, "argument unsupported: parameter 'foo' not supported"},
		{ProcSetThreadpool, []any{"admin", ps(p("nWorkers", 1)), 0}, 74, 0, "argument unsupported: parameter 'nWorkers' not supported"},
		{ProcSetThreadpool, []any{"admin", ps([]any{"minWorkers", 1, 1}), 0}, 8, 0, "invalid argument: invalid type 'int' for parameter 'minWorkers', expected 'uint'"},
		{ProcSetThreadpool, []any{"admin", ps([]any{"minWorkers", 7, "x"}), 0}, 8, 0, "invalid argument: invalid type 'string' for parameter 'minWorkers', expected 'uint'"},
		{ProcSetThreadpool, []any{"admin", ps([]any{"minWorkers", 5, uint64(0)}), 0}, 8, 0, "invalid argument: invalid type 'double' for parameter 'minWorkers', expected 'uint'"},
		{ProcSetThreadpool, []any{"admin", ps(p("minWorkers", 0), p("minWorkers", 0)), 0}, 8, 0, "invalid argument: parameter 'minWorkers' occurs multiple times"},
		{ProcSetThreadpool, []any{"admin", ps(p("minWorkers", 1)), 0}, 8, 0, "invalid argument: minWorkers cannot be larger than maxWorkers"},
		{ProcSetThreadpool, []any{"admin", ps(p("maxWorkers", 1)), 0}, 8, 0, "invalid argument: maxWorkers must not be switched from zero to non-zero and vice versa"},
		{ProcSetThreadpool, []any{"admin", ps(p("prioWorkers", 1)), 0}, 8, 0, "invalid argument: prioWorkers must be 0: vmlockd has no pool of threads, every connection is served by itself"},
		{ProcListClients, []any{"x", 1, 1}, 95, 7, "Server not found: No server named 'x'"},
		{ProcListClients, []any{"admin", 1, 1}, 8, 62, flags("adminServerListClients")},
		{ProcLookupClient, []any{"x", uint64(7), 0}, 95, 7, "Server not found: No server named 'x'"},
		{ProcLookupClient, []any{"admin", uint64(9), 1}, 8, 62, flags("adminServerLookupClient")},
		{ProcLookupClient, []any{"admin", uint64(1 << 60), 0}, 96, 7, "Client not found: No client with matching ID '1152921504606846976'"},
		{ProcClientInfo, client("x", 7, 0), 95, 62, "Server not found: no server with matching name 'x' found"},
		{ProcClientInfo, client("admin", 9, 1), 96, 62, "Client not found: no client with matching id '9' found"},
		{ProcClientInfo, client("admin", 7, 1), 8, 62, flags("adminClientGetInfo")},
		{ProcClientInfo, client("admin", 7), 39, 7, decode},
		{ProcClientClose, client("x", 7, 1), 95, 7, "Server not found: No server named 'x'"},
		{ProcClientClose, client("admin", 9, 1), 96, 7, "Client not found: No client with matching ID '9'"},
		{ProcClientClose, client("admin", 7, 1), 8, 62, flags("adminClientClose")},
		{ProcClientClose, client("virtlockd", 3, 0), 55, 62, "Requested operation is not valid: client '3' is not disconnected: somebody depends on it"},
		{ProcGetClientLimits, []any{"x", 1}, 95, 7, "Server not found: No server named 'x'"},
		{ProcGetClientLimits, []any{"admin", 1}, 8, 62, flags("adminServerGetClientLimits")},
		{ProcSetClientLimits, []any{"x", ps(), 1}, 95, 62, "Server not found: no server with matching name 'x' found"},
		{ProcSetClientLimits, []any{"admin", ps(), 1}, 8, 62, flags("adminServerSetClientLimits")},
		{ProcSetClientLimits, []any{"admin", many, 0}, 39, 7, decode},
		{ProcSetClientLimits, []any{"admin", ps(p("nclients", 1)), 0}, 74, 0, "argument unsupported: parameter 'nclients' not supported"},
		{ProcSetClientLimits, []any{"admin", ps([]any{"nclients_max", 4, uint64(9)}), 0}, 8, 0, "invalid argument: invalid type 'ullong' for parameter 'nclients_max', expected 'uint'"},
		{ProcSetClientLimits, []any{"admin", ps(p("nclients_max", 9)), 0}, 8, 7, "invalid argument: The overall maximum number of clients waiting for authentication must not be less than the overall maximum number of clients"},
		{ProcSetClientLimits, []any{"admin", ps(p("nclients_max", 0), p("nclients_unauth_max", 0)), 0}, 8, 7, "invalid argument: the maximum number of clients is 1 to 1000000 here, and not 0"},
		{ProcSetClientLimits, []any{"admin", ps(p("nclients_max", -1)), 0}, 8, 7, "invalid argument: the maximum number of clients is 1 to 1000000 here, and not 4294967295"},
		{ProcGetLoggingOutputs, []any{1}, 8, 62, flags("adminConnectGetLoggingOutputs")},
		{ProcGetLoggingFilters, []any{1}, 8, 62, flags("adminConnectGetLoggingFilters")},
		{ProcSetLoggingOutputs, []any{1, "x", 1}, 8, 62, flags("adminConnectSetLoggingOutputs")},
		{ProcSetLoggingOutputs, []any{1, "bad", 0}, 8, 0, "invalid argument: Malformed format for log output 'bad'"},
		{ProcSetLoggingOutputs, []any{1, "nowhere", 0}, 38, 0, "failed to open /nosuch/x: No such file or directory"},
		{ProcSetLoggingOutputs, []any{1, strings.Repeat("x", maxArgs+1), 0}, 39, 7, decode},
		{ProcSetLoggingFilters, []any{1, "x", 1}, 8, 62, flags("adminConnectSetLoggingFilters")},
		{ProcSetLoggingFilters, []any{1, "bad", 0}, 8, 0, "invalid argument: Malformed format for filter 'bad'"},
		{ProcUpdateTLSFiles, []any{"virtlockd", 0}, 1, 7, "internal error: no tls service found, unable to update tls files"},
		{ProcUpdateTLSFiles, []any{"virtlockd", 1}, 8, 62, flags("adminServerUpdateTlsFiles")},
		{ProcUpdateTLSFiles, []any{"x", 1}, 95, 7, "Server not found: No server named 'x'"},
		{ProcSetDaemonTimeout, []any{1, 1}, 8, 62, flags("adminConnectSetDaemonTimeout")},
		{ProcSetDaemonTimeout, []any{1}, 39, 7, decode},
	} {
		w := newWorld()
		before := w.state()
		got, err := w.call(k.procedure, args(k.args...))
		var e *rpc.Error
		if !errors.As(err, &e) || e.Code != k.code || e.Domain != k.domain || e.Message != k.message {
			t.Errorf("procedure %d, %v: %#v, want %d/%d %q", k.procedure, k.args, err, k.code, k.domain, k.message)
		}
		if len(got) > 0 || w.state() != before || w.log.Len() > 0 {
			t.Errorf("procedure %d, %v: refused, with the result %q; %s became %s, and the log says %q", k.procedure, k.args, got, before, w.state(), w.log.String())
		}
	}
}

func TestErrnoIsTold(t *testing.T) {
	_, err := newWorld().call(ProcSetLoggingOutputs, args(1, "nowhere", 0))
	var e *rpc.Error
	if !errors.As(err, &e) || e.Int1 != int32(syscall.ENOENT) || e.Int2 != -1 || e.Str1 != "%s" {
		t.Errorf("%#v", err)
	}
	_, err = newWorld().call(ProcConnectOpen, args(5))
	if !errors.As(err, &e) || e.Int1 != 0 || e.Str1 != "adminDispatchConnectOpen" || e.Str2 != "flags" {
		t.Errorf("%#v", err)
	}
}

// TestTooManyClients: a list that the client would not take is an error, and their
// number is told.
func TestTooManyClients(t *testing.T) {
	w := newWorld()
	w.locks.list = make([]rpc.Connection, maxClientList)
	if got, err := w.call(ProcListClients, args("virtlockd", 1, 0)); err != nil || len(got) != 4+maxClientList*(16+8+8+4)+4 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	w.locks.list = append(w.locks.list, rpc.Connection{})
	if _, err := w.call(ProcListClients, args("virtlockd", 1, 0)); err == nil || !strings.Contains(err.Error(), "Too many clients '16385' for limit '16384'") {
		t.Error(err)
	}
	if got, err := w.call(ProcListClients, args("virtlockd", 0, 0)); err != nil || !bytes.Equal(got, args(0, maxClientList+1)) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSessionEnds(t *testing.T) {
	w := newWorld()
	s := w.p.NewSession(rpc.Peer{}).(*session)
	for _, procedure := range []int32{ProcGetLibVersion, ProcConnectClose} {
		if s.Finished() {
			t.Error("finished too early")
		}
		if err := s.Call(context.Background(), procedure, rpc.NewDecoder(nil), rpc.NewEncoder(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if !s.Finished() {
		t.Error("not finished")
	}
	state, err := s.Export()
	if err != nil {
		t.Fatal(err)
	}
	next, err := w.p.RestoreSession(rpc.Peer{PID: 5}, state)
	if err != nil || next.(*session).peer.PID != 5 || next.(*session).Finished() {
		t.Errorf("%+v, %v", next, err)
	}
}

// FuzzProcedures gives every procedure any arguments. What is refused must have
// changed nothing, and what is not is answered within bounds.
func FuzzProcedures(f *testing.F) {
	for procedure := range int32(21) {
		f.Add(procedure, args("virtlockd", 0))
		f.Add(procedure, args("virtlockd", 1, 0))
		f.Add(procedure, args("admin", uint64(7), 0))
		f.Add(procedure, args("virtlockd", ps(p("nclients_max", 50), p("nclients_unauth_max", 20)), 0))
		f.Add(procedure, args("virtlockd", ps(p("minWorkers", 0), []any{"maxWorkers", 7, "x"}), 0))
		f.Add(procedure, args(client("virtlockd", 1<<40, 0)...))
		f.Add(procedure, args(1, "1:stderr", 0))
	}
	f.Fuzz(func(t *testing.T, procedure int32, in []byte) {
		w := newWorld()
		before, state := bytes.Clone(in), w.state()
		var got []byte
		var err error
		testenv.Bounded(t, 100, len(in), func() { got, err = w.call(procedure, in) })
		if !bytes.Equal(before, in) {
			t.Fatal("the arguments were changed")
		}
		if len(got) > 1000+len(in) {
			t.Fatalf("%d bytes", len(got))
		}
		if err == nil {
			return
		}
		var e *rpc.Error
		if !errors.As(err, &e) || e.Code == 0 || len(e.Message) > len(in)+1000 {
			t.Fatalf("not an answer: %#v", err)
		}
		if len(got) > 0 || w.state() != state {
			t.Fatalf("refused with %v, and %s became %s", err, state, w.state())
		}
	})
}
