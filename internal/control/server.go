package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/internal/rpc"
)

// Bounds on clients.
const (
	maxClients  = 64
	maxWatchers = 16
	// maxHeader has room for a query with the longest name that libvirt can send,
	// every byte of it escaped.
	maxHeader = 3*65536 + 16<<10
	maxBody   = 256 << 10
	// headerTimeout and bodyTimeout are how long a client may take to ask.
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	// writeTimeout is how long it may take to read the answer, or while it watches,
	// how long it may leave no room. It is longer than the longest request_timeout,
	// because a release is a request.
	writeTimeout = 6 * time.Minute
	watchTimeout = 30 * time.Second
	idleTimeout  = time.Minute
	// answerTimeout is how long others - dlm_controld, other nodes - are waited for.
	answerTimeout = 900 * time.Millisecond
	// listTimeout is how long of it other nodes are waited for at first, so that there
	// is time to ask those that answered once more, about what moved, and for vmlockctl
	// to be started and to show it: that is a second in all.
	listTimeout = 700 * time.Millisecond
)

// Options are the parts a Server shows. Those that say so may be nil.
type Options struct {
	Version string
	Backend string // config.BackendLocal or config.BackendCluster
	Socket  string // where libvirt connects to
	Node    string // this host's name, until Peers knows a better one
	Locks   Locks
	Drain   Drainer
	Events  *Events
	Cluster Backend // nil in local mode
	Peers   Peers   // nil in local mode, and where they are not asked
	Guard   Guard   // nil where nothing is guarded
	Disks   Disks   // nil: which disk a path is is not known
	Audit   Auditor // nil: actions are only in the log
	Settler Settler // nil: there is no /v1/settle
	// Warnings adds to those that the Server finds itself; it must return at once.
	// It may be nil.
	Warnings func() []Warning
	// More are further paths, for GET. They must answer soon.
	More map[string]http.Handler
	Log  *slog.Logger // may be nil
}

// Server serves the API.
type Server struct {
	o       Options
	started time.Time
	http    *http.Server
	routes  map[string]map[string]http.HandlerFunc // by path and method
	allow   func(rpc.Peer) bool                    // who may connect

	nodeID atomic.Uint32 // of this host; 0 until it is known

	watchers chan struct{} // one for each stream of events
	ending   chan struct{} // closed when streams are to end
	end      sync.Once
	serving  sync.RWMutex // held for reading by Serve, which may begin after Close
}

// New makes a Server.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, started: time.Now(), allow: rpc.SameUserOrRoot, watchers: make(chan struct{}, maxWatchers), ending: make(chan struct{})}
	s.routes = map[string]map[string]http.HandlerFunc{
		"/v1/status":   {http.MethodGet: s.status},
		"/v1/holders":  {http.MethodGet: s.holders},
		"/v1/who":      {http.MethodGet: s.who},
		"/v1/refused":  {http.MethodGet: s.refused},
		"/v1/identify": {http.MethodGet: s.identify},
		"/v1/events":   {http.MethodGet: s.events},
		"/v1/release":  {http.MethodPost: s.release},
		"/v1/drain":    {http.MethodGet: s.drained, http.MethodPost: s.drain},

		"/v1/confirm-dead": {http.MethodPost: s.confirmDead},
	}
	if o.Settler != nil {
		s.routes["/v1/settle"] = map[string]http.HandlerFunc{http.MethodGet: s.doubt, http.MethodPost: s.settleDoubt}
	}
	for path, h := range o.More {
		s.routes[path] = map[string]http.HandlerFunc{http.MethodGet: h.ServeHTTP}
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.route),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c.(*client).peer)
		},
	}
	return s
}

type peerKey struct{}

// Serve serves the clients of l until Close. It closes l.
func (s *Server) Serve(l *net.UnixListener) error {
	s.serving.RLock()
	defer s.serving.RUnlock()
	err := s.http.Serve(&listener{UnixListener: l, allow: s.allow, slots: make(chan struct{}, maxClients), ending: s.ending, log: s.o.Log})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends Serve and all streams, and waits for requests under way until ctx
// ends; then it cuts them off.
func (s *Server) Close(ctx context.Context) error {
	s.end.Do(func() { close(s.ending) })
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	s.serving.Lock() // when no Serve runs any more
	defer s.serving.Unlock()
	return err
}

// listener lets in who may come, and no more of them than there is room for.
type listener struct {
	*net.UnixListener
	allow  func(rpc.Peer) bool
	slots  chan struct{}
	ending <-chan struct{}
	log    *slog.Logger
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.ending:
		return nil, net.ErrClosed
	}
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			<-l.slots
			return nil, err
		}
		peer, err := rpc.PeerOf(c)
		if err == nil && l.allow(peer) {
			return &client{UnixConn: c, peer: peer, slots: l.slots}, nil
		}
		l.log.Debug("a client of the control socket was turned away", "uid", peer.UID, "pid", peer.PID, "error", err)
		c.Close()
	}
}

// client is a connection that gives its slot back.
type client struct {
	*net.UnixConn
	peer  rpc.Peer
	slots chan struct{}
	once  sync.Once
}

func (c *client) Close() error {
	defer c.once.Do(func() { <-c.slots })
	return c.UnixConn.Close()
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	methods, ok := s.routes[r.URL.Path]
	if !ok {
		fail(w, http.StatusNotFound, CodeNotFound, "there is no such path; docs/control-api.md lists them")
		return
	}
	h, ok := methods[r.Method]
	if !ok {
		var allowed []string
		for _, m := range []string{http.MethodGet, http.MethodPost} {
			if methods[m] != nil {
				allowed = append(allowed, m)
			}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		fail(w, http.StatusMethodNotAllowed, CodeBadRequest, "this path takes "+strings.Join(allowed, " and "))
		return
	}
	h(w, r)
}

// node is this host's number and name in the cluster.
func (s *Server) node(id uint32) (uint32, string) {
	if s.o.Peers != nil {
		for _, m := range s.o.Peers.Members() {
			if m.Self {
				return m.NodeID, m.Name
			}
		}
	}
	name := s.o.Node
	if name == "" {
		name, _ = os.Hostname()
	}
	return id, name
}
