package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/vmlockd/vmlockd/internal/adminprogram"
	"github.com/vmlockd/vmlockd/internal/logs"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// The names of the servers of virtlockd (src/locking/lock_daemon.c).
const (
	adminServerName = "admin"
	lockServerName  = "virtlockd"
)

// admin serves virt-admin, on a socket of its own.
type admin struct {
	socket   string // path
	again    *os.File
	listener *net.UnixListener
	server   *rpc.Server
	own      *adminprogram.Server
	locks    *adminprogram.Server
}

// startAdmin serves the admin program. Locks are served without it if its socket
// cannot be made: an upgrade must not fail for that.
func (i *instance) startAdmin(from *state) {
	path := i.cfg.AdminPath()
	l, err := i.listenAdmin(from, path)
	if err == nil {
		err = i.serveAdmin(l, path, from.adminState())
	}
	if err != nil {
		from.adminState().close()
		i.log.Error("there is no admin socket, so virt-admin does not work; locks are served", "reason", err)
	}
}

// listenAdmin goes on with the earlier program's listener, or with systemd's, or makes one.
func (i *instance) listenAdmin(from *state, path string) (*net.UnixListener, error) {
	if from.adminState() == nil && i.given.admin != nil {
		if err := isAt(i.given.admin, path); err != nil {
			return nil, err
		}
		return i.adminListener()
	}
	return from.listenAdmin(path)
}

// serveAdmin serves the admin program on l, which listens at path, with the
// connections and limits of an earlier instance if there was one. It owns l.
func (i *instance) serveAdmin(l *net.UnixListener, path string, from *adminState) error {
	a := &admin{socket: path, listener: l}
	var err error
	if a.again, err = l.File(); err != nil {
		l.Close()
		return err
	}
	program := adminprogram.New(adminprogram.Options{Logging: logging{i.log}, SetTimeout: i.setTimeout, Log: i.log})
	a.server = rpc.NewServer(rpc.Options{
		Programs: []rpc.Program{program}, MaxClients: from.limits(adminServerName).clients(i.cfg.AdminMaxClients),
		LastID: from.lastID(), Allow: sameUser, Log: i.log.With("server", adminServerName),
	})
	a.own = &adminprogram.Server{
		Name: adminServerName, Clients: a.server,
		MaxUnauth: from.limits(adminServerName).unauth(i.cfg.AdminMaxClients),
	}
	most := from.limits(lockServerName).clients(i.cfg.MaxClients)
	i.server.SetMaxClients(most)
	a.locks = &adminprogram.Server{
		Name: lockServerName, Clients: i.server, MayDisconnect: i.mayDisconnect,
		MaxUnauth: from.limits(lockServerName).unauth(i.cfg.MaxClients),
	}
	program.Add(a.own)
	program.Add(a.locks)
	if err := a.server.Adopt(from.connections()); err != nil {
		i.log.Warn("not every connection of virt-admin could be kept across the restart", "reason", err)
	}
	if i.given.admin != nil {
		l.SetUnlinkOnClose(false) // its file is systemd's
	}
	i.admin.Store(a)
	i.serving.Go(func() {
		if err := a.server.Serve(context.Background(), l); err != nil && !errors.Is(err, rpc.ErrServerClosed) {
			i.log.Error("the admin socket is not served any more; locks are", "reason", err)
		}
	})
	return nil
}

// sameUser is whom virtlockd serves its admin program: root for the system's daemon, and
// of a session's nobody but its user.
func sameUser(p rpc.Peer) bool { return int64(p.UID) == int64(os.Geteuid()) }

// setTimeout sets after which time an idle daemon ends; 0 is never.
func (i *instance) setTimeout(seconds uint32) error {
	i.idle.set(time.Duration(seconds) * time.Second)
	return nil
}

// mayDisconnect is nil if nobody depends on a connection of libvirt. Closing that of a
// virtual machine with locks would end it with virtlockd.
func (i *instance) mayDisconnect(c rpc.Connection) error {
	name, locks := "", 0
	for _, h := range i.holders() {
		if h.Owner.PID == c.Peer.PID {
			name = h.Owner.Name
			locks++
		}
	}
	if locks == 0 {
		return nil
	}
	return fmt.Errorf("it is the connection of virtual machine %s (pid %d), which holds %d locks and would not be safe without it; "+
		"shut that virtual machine down, or use 'vmlockctl release --force'", name, c.Peer.PID, locks)
}

// stopAdmin ends the admin socket for good.
func (i *instance) stopAdmin() {
	a := i.admin.Swap(nil)
	if a == nil {
		return
	}
	i.within("the admin socket", a.server.Shutdown)
	a.again.Close()
}

// handOverAdmin is stopAdmin, and returns what a next program that knows this version
// of the state needs to go on with it.
func (i *instance) handOverAdmin(ctx context.Context, version int) *adminState {
	a := i.admin.Load()
	if a == nil {
		return nil
	}
	if version < stateAdmin {
		i.stopAdmin()
		return nil
	}
	i.admin.Store(nil)
	a.listener.SetUnlinkOnClose(false)
	list, err := a.server.Handover(ctx)
	if err != nil {
		i.log.Warn("not every connection of virt-admin can be kept across the restart", "reason", err)
	}
	return &adminState{
		Socket: a.socket, LastID: a.server.LastID(), listener: a.again, handovers: list,
		Limits: map[string]limits{
			adminServerName: limitsOf(a.own, i.cfg.AdminMaxClients),
			lockServerName:  limitsOf(a.locks, i.cfg.MaxClients),
		},
	}
}

// logging is a logger for the admin program.
type logging struct{ log *slog.Logger }

func (l logging) Outputs() (string, int)       { return logs.Outputs(l.log) }
func (l logging) SetOutputs(text string) error { return logs.SetOutputs(l.log, text) }
func (l logging) Filters() (string, int)       { return logs.Filters(l.log) }
func (l logging) SetFilters(text string) error { return logs.SetFilters(l.log, text) }
