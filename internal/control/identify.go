package control

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// maxPath bounds, in bytes, a path that is asked for (PATH_MAX of <linux/limits.h>).
const maxPath = 4096

// identify says which disk a path is, here or on all nodes.
func (s *Server) identify(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "path", "cluster")
	if !ok {
		return
	}
	all, err := flag(q, "cluster")
	path := q.Get("path")
	switch {
	case err == nil && !strings.HasPrefix(path, "/"):
		err = fmt.Errorf("parameter \"path\" is %q: use an absolute path", path)
	case err == nil && len(path) > maxPath:
		err = fmt.Errorf("parameter \"path\" has %d bytes: use up to %d", len(path), maxPath)
	}
	switch {
	case err != nil:
		fail(w, http.StatusBadRequest, CodeBadRequest, err.Error())
		return
	case all && s.o.Cluster == nil:
		fail(w, http.StatusConflict, CodeNoCluster, "the backend of this daemon is \"local\": there is no cluster to ask")
		return
	case s.o.Disks == nil:
		fail(w, http.StatusInternalServerError, CodeFailed, "this daemon cannot look at disks")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	a := Identified{Asked: path, Disks: []Disk{}, Missing: []Missing{}}
	var others []PeerDisk
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if all && s.o.Peers != nil {
			ask, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			others = s.o.Peers.Identify(ask, path)
		}
	}()
	here := s.disk(ctx, path)
	<-asked
	a.Disks = append(a.Disks, here)
	if all && s.o.Peers == nil {
		a.Missing = append(a.Missing, noPeers)
	}
	for _, o := range others {
		if o.Err != "" {
			a.Missing = append(a.Missing, Missing{NodeID: o.NodeID, Node: o.Name, Error: o.Err})
			continue
		}
		d := o.Disk
		d.NodeID, d.Node, d.Differs = o.NodeID, o.Name, differs(here, o.Disk)
		if d.Steps == nil {
			d.Steps = []string{}
		}
		a.Disks = append(a.Disks, d)
	}
	answer(w, a)
}

func (s *Server) disk(ctx context.Context, path string) Disk {
	d := s.o.Disks.Identify(ctx, path)
	d.NodeID, d.Node = s.self(ctx)
	if d.Steps == nil {
		d.Steps = []string{}
	}
	return d
}

// differs says whether two nodes take a path for different disks. What each has for
// itself is none for which they would have to agree, and where it cannot be told
// nothing is granted.
func differs(a, b Disk) bool {
	switch {
	case a.Error != "" || b.Error != "":
		return a.Error == "" || b.Error == ""
	case a.Scope == ScopeHost && b.Scope == ScopeHost:
		return false
	}
	return a.Scope != b.Scope || a.Name != b.Name
}

// idsOf are the resources of the disks that paths lead to, as far as they are known.
func (s *Server) idsOf(ctx context.Context, paths []string) []string {
	if s.o.Disks == nil {
		return nil
	}
	var wg sync.WaitGroup
	found := make([]string, len(paths))
	for i, p := range paths {
		if strings.HasPrefix(p, "/") {
			wg.Go(func() {
				if d := s.o.Disks.Identify(ctx, p); d.Error == "" {
					found[i] = d.Resource
				}
			})
		}
	}
	wg.Wait()
	return slices.DeleteFunc(found, func(id string) bool { return id == "" })
}
