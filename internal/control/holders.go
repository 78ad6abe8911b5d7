package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// maxPattern bounds, in bytes, a pattern: matching takes time in proportion.
const maxPattern = 4096

// maxNames bounds how many names one question may be about.
const maxNames = 16

// Filter picks holders; empty parts pick all.
type Filter struct {
	VM   string // name or UUID
	Node string // number or name
	Path string // pattern: * stands for anything, ? for one byte
	Mode string
}

// Check says what is wrong with a filter.
func (f Filter) Check() error {
	if f.Mode != "" && f.Mode != locking.Exclusive.String() && f.Mode != locking.Shared.String() {
		return fmt.Errorf("mode %q is not known: use %q or %q", f.Mode, locking.Exclusive, locking.Shared)
	}
	if len(f.Path) > maxPattern {
		return fmt.Errorf("the pattern is longer than %d bytes", maxPattern)
	}
	return nil
}

// Match says whether it picks a holder.
func (f Filter) Match(h Holder) bool {
	return (f.VM == "" || f.VM == h.VM || f.VM == h.UUID) &&
		(f.Node == "" || isNode(f.Node, h.NodeID, h.Node)) &&
		(f.Mode == "" || f.Mode == h.Mode) &&
		(f.Path == "" || glob(f.Path, h.Resource))
}

// glob says whether text has a pattern: * stands for anything, ? for one byte.
func glob(pattern, text string) bool {
	star, from := -1, 0
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// here is what this host holds.
func (s *Server) here(ctx context.Context) []Holder {
	id, name := s.self(ctx)
	held := s.o.Locks.Holders()
	list := make([]Holder, len(held))
	for i, h := range held {
		list[i] = holderOf(id, name, h)
	}
	return list
}

// self is this host's number and name. The number does not change while the
// daemon runs, so it is asked for until it is known.
func (s *Server) self(ctx context.Context) (uint32, string) {
	if s.nodeID.Load() == 0 && s.o.Cluster != nil {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		s.nodeID.Store(s.o.Cluster.Cluster(ctx).NodeID)
	}
	return s.node(s.nodeID.Load())
}

// addPeers adds what other nodes answered, also of those that said only a part.
func (h *Holders) addPeers(list []PeerHoldings) {
	for _, p := range list {
		if p.Err != "" {
			h.Missing = append(h.Missing, Missing{NodeID: p.NodeID, Node: p.Name, Error: p.Err})
		}
		for _, held := range p.Holders {
			h.Holders = append(h.Holders, holderOf(p.NodeID, p.Name, held))
		}
	}
}

// noPeers is what is missing when nobody is there to ask the other nodes.
var noPeers = Missing{Error: "this daemon cannot ask other hosts what they hold"}

func (s *Server) holders(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "cluster", "vm", "node", "path", "mode")
	if !ok {
		return
	}
	all, err := flag(q, "cluster")
	f := Filter{VM: q.Get("vm"), Node: q.Get("node"), Path: q.Get("path"), Mode: q.Get("mode")}
	if err == nil {
		err = f.Check()
	}
	switch {
	case err != nil:
		fail(w, http.StatusBadRequest, CodeBadRequest, err.Error())
		return
	case all && s.o.Cluster == nil:
		fail(w, http.StatusConflict, CodeNoCluster, "the backend of this daemon is \"local\": there is no cluster to ask")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	a := Holders{Scope: ScopeHost, Missing: []Missing{}}
	if all {
		a.Scope = ScopeCluster
		if s.o.Peers != nil {
			a.addPeers(s.list(ctx))
		} else {
			a.Missing = append(a.Missing, noPeers)
		}
	}
	a.Holders = append(a.Holders, s.here(ctx)...)
	if all && s.o.Peers != nil {
		s.settle(ctx, &a)
	}
	if f.Node != "" {
		if (all || s.o.Cluster == nil) && !s.knows(ctx, a, f.Node) {
			fail(w, http.StatusNotFound, CodeNoNode, fmt.Sprintf("no node %q is known: 'vmlockctl status' lists the nodes", f.Node))
			return
		}
		// That another node did not answer takes nothing away from the answer.
		a.Missing = slices.DeleteFunc(a.Missing, func(m Missing) bool { return m.Node != "" && !isNode(f.Node, m.NodeID, m.Node) })
	}
	a.pick(f.Match)
	answer(w, a)
}

// knows says whether there may be a node of that number or name. Who mistypes it must
// not be told that it holds nothing.
func (s *Server) knows(ctx context.Context, a Holders, text string) bool {
	id, name := s.self(ctx)
	known := isNode(text, id, name) ||
		slices.ContainsFunc(a.Holders, func(h Holder) bool { return isNode(text, h.NodeID, h.Node) }) ||
		slices.ContainsFunc(a.Missing, func(m Missing) bool { return m.Node == "" || isNode(text, m.NodeID, m.Node) })
	if known || s.o.Peers == nil {
		return known
	}
	for id, name := range s.o.Peers.Names() {
		if isNode(text, id, name) {
			return true
		}
	}
	return slices.ContainsFunc(s.o.Peers.Members(), func(m PeerMember) bool { return isNode(text, m.NodeID, m.Name) })
}

// pick keeps some holders, and puts them in order.
func (h *Holders) pick(keep func(Holder) bool) {
	list := make([]Holder, 0, len(h.Holders))
	for _, one := range h.Holders {
		if keep(one) {
			list = append(list, one)
		}
	}
	slices.SortStableFunc(list, func(a, b Holder) int {
		if c := strings.Compare(a.Resource, b.Resource); c != 0 {
			return c
		}
		if c := strings.Compare(a.Lockspace, b.Lockspace); c != 0 {
			return c
		}
		return a.Since.Compare(b.Since)
	})
	h.Holders = list
}

// who lists the holders of one disk under any of its names, on all hosts that
// can be asked.
func (s *Server) who(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "path", "lockspace")
	if !ok {
		return
	}
	names, err := namesOf(q["path"])
	if err != nil {
		fail(w, http.StatusBadRequest, CodeBadRequest, err.Error())
		return
	}
	lockspace, one := q.Get("lockspace"), q.Has("lockspace")
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	found := make(chan []string, 1) // a disk that hangs must not take the time of the other hosts
	go func() {
		if lockspace == "" { // elsewhere names are no paths
			found <- s.idsOf(ctx, names)
		}
		close(found)
	}()
	a := Holders{Scope: ScopeHost, Missing: []Missing{}}
	if s.o.Cluster != nil {
		a.Scope = ScopeCluster
		switch {
		case s.o.Peers == nil:
			a.Missing = append(a.Missing, noPeers)
		case lockspace != "":
			list := make([]Sought, len(names))
			for i, name := range names {
				list[i].Ref = locking.Ref{Lockspace: lockspace, Name: name}
			}
			a.addPeers(s.o.Peers.Holders(ctx, list))
		default: // what lockspaces there are on other hosts, and what disk a path is there, only they know
			a.addPeers(s.list(ctx))
		}
	}
	a.Holders = append(a.Holders, s.here(ctx)...)
	ids := <-found
	wanted := func(h Holder) bool {
		return (slices.Contains(names, h.Resource) || slices.Contains(ids, h.id)) && (!one || h.Lockspace == lockspace)
	}
	a.pick(wanted)
	if s.o.Peers != nil {
		s.settle(ctx, &a)
		a.pick(wanted)
	}
	answer(w, a)
}

// list asks the peers what they hold.
func (s *Server) list(ctx context.Context) []PeerHoldings {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return s.o.Peers.Holdings(ctx)
}

// namesOf adds to paths what libvirt makes of them with file_lockspace_dir: the
// SHA-256 in hexadecimal digits (virLockManagerLockDaemonAddResource in
// src/locking/lock_driver_lockd.c).
func namesOf(paths []string) ([]string, error) {
	if len(paths) == 0 || len(paths) > maxNames {
		return nil, fmt.Errorf("parameter \"path\" is there %d times: use it once, or up to %d times for other names of the same disk", len(paths), maxNames)
	}
	var names []string
	for _, p := range paths {
		if p == "" {
			return nil, fmt.Errorf("parameter \"path\" is empty: name a disk")
		}
		for _, n := range []string{p, HashedName(p)} {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names, nil
}

// HashedName is the name of a disk's resource in a lockspace that is a directory.
func HashedName(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:])
}

func (s *Server) refused(w http.ResponseWriter, r *http.Request) {
	if _, ok := query(w, r); ok {
		answer(w, Refused{Refused: s.o.Events.Refusals(), Waiting: waitersOf(s.o.Locks.Waiting())})
	}
}
