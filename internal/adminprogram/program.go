package adminprogram

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// logging is where a daemon logs to, in the words of libvirt: outputs like
// "2:journald 1:stderr", filters like "1:*rpc*". An error says what is wrong; one of
// a file that cannot be opened has its *fs.PathError.
type logging interface {
	Outputs() (text string, n int)
	SetOutputs(string) error
	Filters() (text string, n int)
	SetFilters(string) error
}

// Options are for New; all but Log must be set.
type Options struct {
	Logging logging
	// SetTimeout sets after how many idle seconds the daemon ends; 0 is never.
	SetTimeout func(seconds uint32) error
	// Log is told what clients change. It may be nil.
	Log *slog.Logger
}

// Program serves the admin program.
type Program struct {
	o       Options
	servers []*Server
}

var (
	_ rpc.Restorer = (*Program)(nil)
	_ rpc.Portable = (*session)(nil)
	_ rpc.Finisher = (*session)(nil)
)

// New makes a Program of a daemon without servers.
func New(o Options) *Program {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Program{o: o}
}

// Add adds a server, at the end of the list that virt-admin shows. All must be there
// before a client is; the one that serves p itself can be one of them.
func (p *Program) Add(s *Server) { p.servers = append(p.servers, s) }

// ID implements rpc.Program.
func (*Program) ID() (program, version uint32) { return ProgramNumber, Version }

// MaxArgs implements rpc.Program.
func (*Program) MaxArgs() int { return maxArgs }

// NewSession implements rpc.Program.
func (p *Program) NewSession(peer rpc.Peer) rpc.Session { return &session{p: p, peer: peer} }

// RestoreSession implements rpc.Restorer. A session has no state.
func (p *Program) RestoreSession(peer rpc.Peer, _ []byte) (rpc.Session, error) {
	return p.NewSession(peer), nil
}

func (p *Program) server(name string) *Server {
	for _, s := range p.servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// session is one client's. virtlockd has no state of one either: what works after
// CONNECT_OPEN works before it.
type session struct {
	p      *Program
	peer   rpc.Peer
	closed bool
}

// Ended implements rpc.Session.
func (*session) Ended(rpc.Cause) {}

// Finished implements rpc.Finisher.
func (s *session) Finished() bool { return s.closed }

// Export implements rpc.Portable.
func (*session) Export() ([]byte, error) { return nil, nil }

// Call implements rpc.Session.
func (s *session) Call(_ context.Context, procedure int32, d *rpc.Decoder, e *rpc.Encoder) error {
	switch procedure {
	case ProcConnectOpen, ProcConnectClose, ProcGetLibVersion, ProcListServers, ProcSetDaemonTimeout:
		return s.daemon(procedure, d, e)
	case ProcGetLoggingOutputs, ProcGetLoggingFilters, ProcSetLoggingOutputs, ProcSetLoggingFilters:
		return s.logging(procedure, d, e)
	case ProcLookupServer, ProcGetThreadpool, ProcGetClientLimits, ProcUpdateTLSFiles, ProcSetThreadpool, ProcSetClientLimits:
		return s.server(procedure, d, e)
	case ProcListClients, ProcLookupClient:
		return s.clients(procedure, d, e)
	case ProcClientInfo, ProcClientClose:
		return s.client(procedure, d, e)
	default:
		return rpc.UnknownProcedure(procedure)
	}
}

// daemon is about the daemon as a whole.
func (s *session) daemon(procedure int32, d *rpc.Decoder, e *rpc.Encoder) error {
	switch procedure {
	case ProcConnectOpen:
		flags := d.Uint32()
		if !d.OK() {
			return rpc.ErrDecode
		}
		return checkFlags(flags, "adminDispatchConnectOpen")
	case ProcConnectClose:
		s.closed = true
	case ProcGetLibVersion:
		e.Uint64(libVersion)
	case ProcListServers:
		wanted, flags := d.Bool(), d.Uint32()
		if !d.OK() {
			return rpc.ErrDecode
		}
		if err := checkFlags(flags, "adminConnectListServers"); err != nil {
			return err
		}
		list := s.p.servers
		if !wanted {
			list = nil
		}
		e.Uint32(uint32(len(list)))
		for _, srv := range list {
			e.String(srv.Name)
		}
		e.Uint32(uint32(len(s.p.servers)))
	case ProcSetDaemonTimeout:
		seconds, flags := d.Uint32(), d.Uint32()
		if !d.OK() {
			return rpc.ErrDecode
		}
		if err := checkFlags(flags, "adminConnectSetDaemonTimeout"); err != nil {
			return err
		}
		if err := answer(s.p.o.SetTimeout(seconds)); err != nil {
			return err
		}
		s.changed("the time after which an idle daemon ends", "seconds", seconds)
	}
	return nil
}

func (s *session) logging(procedure int32, d *rpc.Decoder, e *rpc.Encoder) error {
	text := ""
	if procedure == ProcSetLoggingOutputs || procedure == ProcSetLoggingFilters {
		text = d.OptionalString(maxArgs)
	}
	flags := d.Uint32()
	if !d.OK() {
		return rpc.ErrDecode
	}
	l := s.p.o.Logging
	switch procedure {
	case ProcGetLoggingOutputs:
		if err := checkFlags(flags, "adminConnectGetLoggingOutputs"); err != nil {
			return err
		}
		outputs, n := l.Outputs()
		e.String(outputs)
		e.Uint32(uint32(n))
	case ProcGetLoggingFilters:
		if err := checkFlags(flags, "adminConnectGetLoggingFilters"); err != nil {
			return err
		}
		filters, n := l.Filters()
		e.OptionalString(filters)
		e.Uint32(uint32(n))
	case ProcSetLoggingOutputs:
		if err := checkFlags(flags, "adminConnectSetLoggingOutputs"); err != nil {
			return err
		}
		if err := answer(l.SetOutputs(text)); err != nil {
			return err
		}
		s.changed("the outputs of the log", "outputs", text)
	case ProcSetLoggingFilters:
		if err := checkFlags(flags, "adminConnectSetLoggingFilters"); err != nil {
			return err
		}
		if err := answer(l.SetFilters(text)); err != nil {
			return err
		}
		s.changed("the filters of the log", "filters", text)
	}
	return nil
}

// server is about one server.
func (s *session) server(procedure int32, d *rpc.Decoder, e *rpc.Encoder) error {
	name := string(d.String(maxArgs))
	var params []param
	set := procedure == ProcSetThreadpool || procedure == ProcSetClientLimits
	if set {
		var ok bool
		if params, ok = decodeParams(d); !ok {
			return rpc.ErrDecode
		}
	}
	flags := d.Uint32()
	if !d.OK() {
		return rpc.ErrDecode
	}
	srv := s.p.server(name)
	switch {
	case srv == nil && set:
		return noMatchingServer(name)
	case srv == nil:
		return noServer(name)
	}
	if err := checkFields(params); err != nil {
		return err
	}
	switch procedure {
	case ProcLookupServer: // which does not look at its flags
		e.String(srv.Name)
		return nil
	case ProcGetThreadpool:
		if err := checkFlags(flags, "adminServerGetThreadPoolParameters"); err != nil {
			return err
		}
		threadpool(e)
		return nil
	case ProcGetClientLimits:
		if err := checkFlags(flags, "adminServerGetClientLimits"); err != nil {
			return err
		}
		srv.info(e)
		return nil
	case ProcSetThreadpool:
		if err := checkFlags(flags, "adminServerSetThreadPoolParameters"); err != nil {
			return err
		}
		return setThreadpool(params)
	case ProcSetClientLimits:
		if err := checkFlags(flags, "adminServerSetClientLimits"); err != nil {
			return err
		}
		if err := srv.setLimits(params); err != nil {
			return err
		}
		most, unauth := srv.Limits()
		s.changed("the limits of clients", "server", srv.Name, "max_clients", most, "max_unauth_clients", unauth)
		return nil
	default: // ProcUpdateTLSFiles
		if err := checkFlags(flags, "adminServerUpdateTlsFiles"); err != nil {
			return err
		}
		return rpc.NewError(rpc.CodeInternal, rpc.DomainRPC, "no tls service found, unable to update tls files")
	}
}

// clients finds those of a server.
func (s *session) clients(procedure int32, d *rpc.Decoder, e *rpc.Encoder) error {
	name := string(d.String(maxArgs))
	var id uint64
	var wanted bool
	if procedure == ProcListClients {
		wanted = d.Bool()
	} else {
		id = d.Uint64()
	}
	flags := d.Uint32()
	if !d.OK() {
		return rpc.ErrDecode
	}
	srv := s.p.server(name)
	if srv == nil {
		return noServer(name)
	}
	if procedure == ProcLookupClient {
		if err := checkFlags(flags, "adminServerLookupClient"); err != nil {
			return err
		}
		c, ok := srv.Clients.Connection(id)
		if !ok {
			return noClient(id)
		}
		srv.encodeClient(e, c)
		return nil
	}
	if err := checkFlags(flags, "adminServerListClients"); err != nil {
		return err
	}
	list := srv.Clients.Connections()
	n := len(list)
	if !wanted {
		list = nil
	}
	if len(list) > maxClientList {
		return rpc.NewError(rpc.CodeInternal, rpc.DomainRPC, fmt.Sprintf("Too many clients '%d' for limit '%d'", n, maxClientList))
	}
	e.Uint32(uint32(len(list)))
	for _, c := range list {
		srv.encodeClient(e, c)
	}
	e.Uint32(uint32(n))
	return nil
}

// client is about one client of a server.
func (s *session) client(procedure int32, d *rpc.Decoder, e *rpc.Encoder) error {
	var a clientArgs
	a.decode(d)
	flags := d.Uint32()
	if !d.OK() {
		return rpc.ErrDecode
	}
	srv := s.p.server(a.server)
	if srv == nil && procedure == ProcClientInfo {
		return noMatchingServer(a.server)
	}
	if srv == nil {
		return noServer(a.server)
	}
	c, ok := srv.Clients.Connection(a.id)
	switch {
	case !ok && procedure == ProcClientInfo:
		return noMatchingClient(a.id)
	case !ok:
		return noClient(a.id)
	case procedure == ProcClientInfo:
		if err := checkFlags(flags, "adminClientGetInfo"); err != nil {
			return err
		}
		encodeInfo(e, c)
		return nil
	}
	if err := checkFlags(flags, "adminClientClose"); err != nil {
		return err
	}
	if srv.MayDisconnect != nil {
		if err := srv.MayDisconnect(c); err != nil {
			return rpc.NewError(rpc.CodeOperationInvalid, rpc.DomainAdmin, fmt.Sprintf("client '%d' is not disconnected: %v", c.ID, err))
		}
	}
	s.changed("a client's connection: it is closed", "server", srv.Name, "client", c.ID, "client_pid", c.Peer.PID)
	if !srv.Clients.Disconnect(c.ID) {
		return noClient(a.id)
	}
	return nil
}

// changed tells the log what an operator has done.
func (s *session) changed(what string, args ...any) {
	s.p.o.Log.Info("an operator changed "+what, append(args, "by_uid", s.peer.UID, "by_pid", s.peer.PID)...)
}
