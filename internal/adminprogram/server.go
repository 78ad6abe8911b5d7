package adminprogram

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// MaxMaxClients is the highest limit of clients that can be set.
const MaxMaxClients = 1_000_000

// clients is what is needed of an rpc.Server.
type clients interface {
	Connections() []rpc.Connection
	Connection(id uint64) (rpc.Connection, bool)
	Disconnect(id uint64) bool
	SetMaxClients(int)
	Stats() rpc.Stats
}

var _ clients = (*rpc.Server)(nil)

// Server is one of the servers of a daemon.
type Server struct {
	// Name is what virt-admin calls it.
	Name string
	// Clients are those of an rpc.Server.
	Clients clients
	// MayDisconnect is nil, or says why a client must not be disconnected.
	MayDisconnect func(rpc.Connection) error
	// MaxUnauth is the limit of clients that have connected and not shown yet who
	// they are, of which there are none: the kernel says it of each. It can be set,
	// as with virtlockd, and has no effect. 0 is a limit.
	MaxUnauth uint32

	mu sync.Mutex // guards MaxUnauth once the server is added, and changes of both limits
}

// Limits returns the limits of clients, and of those that are not authenticated.
func (s *Server) Limits() (clients int, unauth uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Clients.Stats().MaxClients, s.MaxUnauth
}

func (s *Server) info(e *rpc.Encoder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.Clients.Stats()
	w := writeParams(e, 4)
	w.uint(limitClients, uint32(stats.MaxClients))
	w.uint("nclients", uint32(stats.Clients))
	w.uint(limitUnauth, s.MaxUnauth)
	w.uint("nclients_unauth", 0)
}

const (
	limitClients = "nclients_max"        // VIR_SERVER_CLIENTS_MAX
	limitUnauth  = "nclients_unauth_max" // VIR_SERVER_CLIENTS_UNAUTH_MAX
)

// setLimits changes what the parameters name.
func (s *Server) setLimits(list []param) error {
	if err := validate(list, limitClients, limitUnauth); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	most, unauth := uint32(s.Clients.Stats().MaxClients), s.MaxUnauth
	given := false
	for _, p := range list {
		switch p.field {
		case limitClients:
			most, given = p.value, true
		case limitUnauth:
			unauth = p.value
		}
	}
	if most < unauth {
		// The words are virtlockd's, which say the opposite of what is checked.
		return invalid(rpc.DomainRPC, "The overall maximum number of clients waiting for authentication must not be less than the overall maximum number of clients")
	}
	if given && (most < 1 || most > MaxMaxClients) {
		return invalid(rpc.DomainRPC, "the maximum number of clients is 1 to %d here, and not %d", MaxMaxClients, most)
	}
	s.MaxUnauth = unauth
	if given {
		s.Clients.SetMaxClients(int(most))
	}
	return nil
}

// checkFields checks that names of parameters fit in libvirt's structure.
func checkFields(list []param) error {
	for _, p := range list {
		if len(p.field) > maxField {
			return rpc.NewError(rpc.CodeInternal, rpc.DomainNone, fmt.Sprintf("parameter %s too big for destination", p.field))
		}
	}
	return nil
}

// validate checks that each parameter is one of fields, an unsigned number, and
// there once, as virTypedParamsValidate does.
func validate(list []param, fields ...string) error {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, func(a, b param) int { return strings.Compare(a.field, b.field) })
	for i, p := range sorted {
		switch {
		case !slices.Contains(fields, p.field):
			return rpc.NewError(rpc.CodeArgUnsupported, rpc.DomainNone, fmt.Sprintf("parameter '%s' not supported", p.field))
		case i > 0 && sorted[i-1].field == p.field:
			return invalid(rpc.DomainNone, "parameter '%s' occurs multiple times", p.field)
		case p.kind != typeUint:
			return invalid(rpc.DomainNone, "invalid type '%s' for parameter '%s', expected 'uint'", typeNames[p.kind], p.field)
		}
	}
	return nil
}

// The parameters of a pool of threads. Calls are carried out on their connections
// here, and in the main loop there, so all of them are 0 in both daemons.
const (
	poolMin  = "minWorkers"
	poolMax  = "maxWorkers"
	poolPrio = "prioWorkers"
)

func threadpool(e *rpc.Encoder) {
	w := writeParams(e, 6)
	for _, field := range []string{poolMin, poolMax, "nWorkers", "freeWorkers", poolPrio, "jobQueueDepth"} {
		w.uint(field, 0)
	}
}

// setThreadpool accepts what changes nothing.
func setThreadpool(list []param) error {
	if err := validate(list, poolMin, poolMax, poolPrio); err != nil {
		return err
	}
	value := map[string]uint32{}
	for _, p := range list {
		value[p.field] = p.value
	}
	switch {
	case value[poolMin] > value[poolMax]:
		return invalid(rpc.DomainNone, "minWorkers cannot be larger than maxWorkers")
	case value[poolMax] != 0:
		return invalid(rpc.DomainNone, "maxWorkers must not be switched from zero to non-zero and vice versa")
	case value[poolPrio] != 0:
		return invalid(rpc.DomainNone, "prioWorkers must be 0: vmlockd has no pool of threads, every connection is served by itself")
	}
	return nil
}

// encodeClient appends admin_nonnull_client.
func (s *Server) encodeClient(e *rpc.Encoder, c rpc.Connection) {
	e.String(s.Name)
	e.Uint64(c.ID)
	e.Uint64(uint64(c.Since.Unix()))
	e.Uint32(transportUnix)
}

// encodeInfo appends what is known of a client. Names are those of /etc/passwd and
// /etc/group; they and the label may be missing.
func encodeInfo(e *rpc.Encoder, c rpc.Connection) {
	name, group, label := userName(c.Peer.UID), groupName(c.Peer.GID), c.Label()
	n := 4
	for _, s := range []string{name, group, label} {
		if s != "" {
			n++
		}
	}
	w := writeParams(e, n)
	text := func(field, v string) {
		if v != "" {
			w.text(field, v)
		}
	}
	w.number("readonly", typeBoolean, 0)
	w.number("unix_user_id", typeInt, c.Peer.UID)
	text("unix_user_name", name)
	w.number("unix_group_id", typeInt, c.Peer.GID)
	text("unix_group_name", group)
	w.number("unix_process_id", typeInt, uint32(c.Peer.PID))
	text("selinux_context", label)
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		return u.Username
	}
	return ""
}

func groupName(gid uint32) string {
	if g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil {
		return g.Name
	}
	return ""
}
