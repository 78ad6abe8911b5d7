// Package peers_test has daemons on three nodes, with real corosync, know each other, and has one of them killed, frozen and cut
// off: package peers alone first, in peersnode, and then all of vmlockd, asked by vmlockctl. It needs the lab.
package peers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/peers"
	"github.com/vmlockd/vmlockd/lab"
)

const (
	nodes  = 3
	locks  = 300 // of each node, and one that all share
	socket = "/run/peersnode"
)

// binaries are built once, for the nodes.
var binaries struct{ peersnode, vmlockd, vmlockctl string }

func TestMain(m *testing.M) {
	lab.Main(m, map[*string]string{
		&binaries.peersnode: "github.com/vmlockd/vmlockd/tests/peers/peersnode",
		&binaries.vmlockd:   "github.com/vmlockd/vmlockd/cmd/vmlockd",
		&binaries.vmlockctl: "github.com/vmlockd/vmlockd/cmd/vmlockctl",
	})
}

// answer is what peersnode prints.
type answer struct {
	Took, Stalled time.Duration
	Err           string
	Members       []peers.Peer
	Nodes         []entry
	Holders       []peers.Holding
}

type entry struct {
	Node     uint32
	Name     string
	Holdings []peers.Holding
	Err      string
}

type suite struct {
	*lab.Lab
	ctx         context.Context
	asked, slow int
}

func TestGroupOfNodes(t *testing.T) {
	l := lab.ForTest(t, lab.Config{Nodes: nodes, Binaries: map[string]string{"peersnode": binaries.peersnode}})
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	s := &suite{Lab: l, ctx: ctx}
	processes := make([]*lab.Process, nodes+1)
	for i, n := range l.Nodes() {
		// dlm_controld ends with its corosync, and is of no use here.
		s.must(t, n.Service(lab.ServiceDLM).Stop(ctx))
		p, err := n.Start(ctx, "peersnode", "peersnode", socket, n.Name(), fmt.Sprint(locks))
		s.must(t, err)
		processes[i+1] = p
	}
	s.waitComplete(t, 1, 2, 3)
	for i := 1; i <= nodes; i++ {
		a := s.get(t, i, "/members")
		for j, m := range a.Members {
			if m.Node != uint32(j+1) || m.Name != l.Node(j+1).Name() || m.Self != (i == j+1) || m.Version != "test" || !m.Silent.IsZero() || m.Faults != 0 {
				t.Errorf("node %d sees %+v", i, m)
			}
		}
		// These have 0.3 s, which on a busy machine is not always enough.
		s.wait(t, "all holders", func() (bool, string) {
			a := s.get(t, i, "/holders?resource=common")
			return len(a.Holders) == nodes, a.String()
		})
		s.wait(t, "the holder", func() (bool, string) {
			a := s.get(t, i, "/holders?resource=node2+5")
			return len(a.Holders) == 1 && a.Holders[0].Node == 2 && a.Holders[0].OwnerName == "vm-node2-5", a.String()
		})
	}

	t.Run("ProcessFrozen", func(t *testing.T) {
		s.must(t, processes[3].Signal(ctx, syscall.SIGSTOP))
		s.missing(t, 1, 3)
		s.wait(t, "the two other holders", func() (bool, string) {
			a := s.get(t, 1, "/holders?resource=common")
			return len(a.Holders) == 2, a.String()
		})
		if m := s.get(t, 1, "/members").Members; len(m) != 3 || m[2].Silent.IsZero() {
			t.Errorf("node 3 is not silent: %+v", m)
		}
		s.must(t, processes[3].Signal(ctx, syscall.SIGCONT))
		s.waitComplete(t, 1, 2, 3)
	})
	t.Run("NodeFrozen", func(t *testing.T) {
		s.must(t, l.Node(3).Freeze(ctx))
		s.missing(t, 1, 3)
		s.waitComplete(t, 1, 2) // every answer on the way is checked for its time
		s.must(t, l.Node(3).Thaw(ctx))
		s.waitComplete(t, 1, 2, 3)
	})
	t.Run("CorosyncRestarted", func(t *testing.T) {
		service := l.Node(2).Service(lab.ServiceCorosync)
		s.must(t, service.Kill(ctx))
		s.wait(t, "node 2 to be alone", func() (bool, string) {
			a := s.get(t, 2, "/holdings")
			return strings.Contains(a.Err, "no connection to corosync") && len(a.Nodes) == 1 && a.Nodes[0].Err == "" && len(a.Nodes[0].Holdings) == locks+1, a.String()
		})
		s.waitComplete(t, 1, 3)
		s.must(t, service.Start(ctx))
		s.waitComplete(t, 1, 2, 3)
	})
	t.Run("PowerCut", func(t *testing.T) {
		s.must(t, l.Node(3).PowerCut(ctx))
		s.missing(t, 1, 3)
		s.waitComplete(t, 1, 2)
	})
	t.Logf("%d answers, %d of them not within a second", s.asked, s.slow)
	if s.slow*10 > s.asked {
		t.Error("that are too many")
	}
}

func (s *suite) must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (a answer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "after %v (%v stalled) error %q, %d holders", a.Took, a.Stalled, a.Err, len(a.Holders))
	for _, n := range a.Nodes {
		fmt.Fprintf(&b, "; node %d %s: %d %s", n.Node, n.Name, len(n.Holdings), n.Err)
	}
	return b.String()
}

// get asks the process on a node. Its answer comes within a second, but for the time in which the node stood still; that
// counts double, as in the tests of deadlines: all nodes share this machine's processors. One in ten may be slower than that.
func (s *suite) get(t *testing.T, node int, path string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://peersnode"+path, nil)
	s.must(t, err)
	resp, err := s.Node(node).HTTPClient(socket).Do(req)
	if err != nil {
		return answer{Err: err.Error()} // not listening yet
	}
	defer resp.Body.Close()
	var a answer
	s.must(t, json.NewDecoder(resp.Body).Decode(&a))
	s.asked++
	if a.Took-2*a.Stalled > time.Second {
		s.slow++
		t.Logf("slow: node %d, %s: %v", node, path, a)
	}
	if a.Took > 3*time.Second {
		t.Errorf("node %d, %s: %v", node, path, a)
	}
	return a
}

func (s *suite) wait(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	var last string
	err := lab.WaitFor(s.ctx, what, func(context.Context) (done bool, _ error) {
		done, last = ok()
		return done, nil
	})
	if err != nil {
		t.Fatalf("%v; last: %s", err, last)
	}
}

// isComplete says whether an answer is the union of what these nodes hold.
func isComplete(a answer, in ...int) bool {
	if a.Err != "" || len(a.Nodes) != len(in) {
		return false
	}
	for i, n := range a.Nodes {
		if n.Node != uint32(in[i]) || n.Err != "" || len(n.Holdings) != locks+1 {
			return false
		}
		for k, h := range n.Holdings {
			if h.Node != n.Node || k > 0 && h.Resource != fmt.Sprintf("%s %d", n.Name, k-1) {
				return false
			}
		}
	}
	return true
}

// waitComplete waits until each of these nodes sees just these.
func (s *suite) waitComplete(t *testing.T, in ...int) {
	t.Helper()
	began := time.Now()
	for _, node := range in {
		s.wait(t, fmt.Sprintf("node %d to see nodes %v", node, in), func() (bool, string) {
			a := s.get(t, node, "/holdings")
			if isComplete(a, in...) {
				t.Logf("node %d sees nodes %v, %v after it was asked to, asked for %v", node, in, time.Since(began).Round(time.Millisecond), a.Took)
				return true, ""
			}
			return false, a.String()
		})
	}
}

// missing checks that an answer names the node that is missing and has the others'.
func (s *suite) missing(t *testing.T, from, gone int) {
	t.Helper()
	a := s.get(t, from, "/holdings")
	i := slices.IndexFunc(a.Nodes, func(n entry) bool { return n.Node == uint32(gone) })
	if i < 0 || !strings.Contains(a.Nodes[i].Err, peers.ErrNoAnswer.Error()) || a.Nodes[i].Name != s.Node(gone).Name() {
		t.Fatalf("nobody says that node %d is missing: %v", gone, a)
	}
	for _, n := range a.Nodes {
		if n.Node == uint32(from) && (n.Err != "" || len(n.Holdings) != locks+1) {
			t.Errorf("the node's own entry: %v", a)
		}
	}
	t.Logf("without node %d: %v", gone, a)
}
