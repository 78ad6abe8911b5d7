package supervisor

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// handler is what the client library and the command line tool talk to.
func (s *supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", wire.Handle(func(*http.Request) (any, error) { return s.status(), nil }))
	mux.HandleFunc("POST /logs/sync", wire.Handle(func(*http.Request) (any, error) {
		s.logs.sync()
		return nil, nil
	}))
	mux.HandleFunc("POST /end", wire.Handle(func(*http.Request) (any, error) {
		s.stop(fmt.Errorf("asked to"))
		return nil, nil
	}))
	for name, f := range map[string]func(*node, *http.Request) error{
		"boot":      func(n *node, r *http.Request) error { return n.boot(r.Context()) },
		"power-cut": func(n *node, _ *http.Request) error { n.powerCut(); return nil },
		"cut":       func(n *node, _ *http.Request) error { return n.setCut(true) },
		"heal":      func(n *node, _ *http.Request) error { return n.setCut(false) },
		"freeze":    func(n *node, _ *http.Request) error { return n.freeze(true) },
		"thaw":      func(n *node, _ *http.Request) error { return n.freeze(false) },
	} {
		mux.HandleFunc("POST /nodes/{id}/"+name, wire.Handle(func(r *http.Request) (any, error) {
			n, err := s.node(r.PathValue("id"))
			if err != nil {
				return nil, err
			}
			s.log.Printf("node %d: %s", n.cfg.ID, name)
			if err := f(n, r); err != nil {
				return nil, err
			}
			return n.status(), nil
		}))
	}
	mux.HandleFunc("/nodes/{id}/agent/{path...}", s.proxy())
	return mux
}

func (s *supervisor) node(id string) (*node, error) {
	for _, n := range s.nodes {
		if strconv.Itoa(n.cfg.ID) == id {
			return n, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "no node %s; the lab has nodes 1 to %d", id, len(s.nodes))
}

func (s *supervisor) status() wire.LabStatus {
	st := wire.LabStatus{Name: s.cfg.Name, LogDir: s.cfg.LogDir}
	for _, n := range s.nodes {
		st.Nodes = append(st.Nodes, n.status())
	}
	return st
}

// proxy passes requests on to a node's agent. They end when the node loses its power: nothing would
// close the connection otherwise. The agent, in turn, sees the connection close when a client gives up.
func (s *supervisor) proxy() http.HandlerFunc {
	// One connection per request: a connection kept from before a power cut would not say that it is dead.
	transport := &http.Transport{DisableKeepAlives: true}
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := s.node(r.PathValue("id"))
		if err != nil {
			wire.WriteError(w, err)
			return
		}
		power, err := n.powered()
		if err != nil {
			wire.WriteError(w, err)
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		stop := context.AfterFunc(power, func() { cancel(errPowerLost) })
		defer stop()
		target, err := url.Parse(n.agentURL("/" + r.PathValue("path")))
		if err != nil {
			wire.WriteError(w, err)
			return
		}
		proxy := &httputil.ReverseProxy{
			Transport: transport,
			ErrorLog:  s.log,
			Rewrite: func(pr *httputil.ProxyRequest) {
				target.RawQuery = pr.In.URL.RawQuery
				pr.Out.URL, pr.Out.Host = target, ""
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				if power.Err() != nil {
					err = errPowerLost
				}
				wire.WriteError(w, err)
			},
		}
		proxy.ServeHTTP(w, r.WithContext(ctx))
	}
}

// fenceHandler serves the nodes: the lab's fence agent asks here for the power cut of another node.
func (s *supervisor) fenceHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /fence/{id}", wire.Handle(func(r *http.Request) (any, error) {
		n, err := s.node(r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		s.log.Printf("node %d: power cut by the fence agent at %s", n.cfg.ID, r.RemoteAddr)
		n.powerCut()
		return nil, nil
	}))
	return mux
}
