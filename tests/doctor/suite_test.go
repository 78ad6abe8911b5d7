// Package doctor_test proves vmlockctl doctor on a real cluster: a healthy one has
// no finding, and each fault that is set up is found, and nothing else. It needs
// the lab; see CONTRIBUTING.md.
package doctor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// binaries are built once, for the nodes.
var binaries struct{ vmlockd, vmlockctl string }

func TestMain(m *testing.M) {
	lab.Main(m, map[*string]string{
		&binaries.vmlockd:   "github.com/vmlockd/vmlockd/cmd/vmlockd",
		&binaries.vmlockctl: "github.com/vmlockd/vmlockd/cmd/vmlockctl",
	})
}

// suite is the lab and what is done with it.
type suite struct {
	*lab.Lab
	ctx   context.Context
	begin time.Time
}

// sh runs a script in a node, which must succeed.
func (s *suite) sh(t *testing.T, node int, script string) string {
	t.Helper()
	res, err := s.Node(node).Shell(s.ctx, "set -e; "+script)
	if err != nil {
		t.Fatal(err)
	}
	if !res.OK() {
		t.Fatalf("%s on node %d: %v", script, node, res)
	}
	return res.Stdout
}

// must is for what returns only an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// works is for commands of libvirt.
func works(t *testing.T) func(lab.Result, error) {
	return func(res lab.Result, err error) {
		t.Helper()
		if err != nil || !res.OK() {
			t.Fatalf("%v, %v", res, err)
		}
	}
}

type finding struct{ ID, Severity, Where, What, Remedy string }

// doctor examines a node.
func (s *suite) doctor(t *testing.T, node int) (list []finding, ids []string) {
	t.Helper()
	res, err := s.Node(node).Exec(s.ctx, "vmlockctl", "doctor", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		Backend                     string
		Findings                    []finding
		Faults, Warnings, Unchecked int
	}
	if err := json.Unmarshal([]byte(res.Stdout), &out); err != nil || out.Findings == nil {
		t.Fatalf("%v: %v", err, res)
	}
	want := 0
	switch {
	case out.Faults > 0:
		want = 7
	case out.Warnings+out.Unchecked > 0:
		want = 6
	}
	if res.Status != want || out.Faults+out.Warnings+out.Unchecked != len(out.Findings) {
		t.Errorf("the status should be %d: %v", want, res)
	}
	ids = []string{}
	for _, f := range out.Findings {
		ids = append(ids, f.ID)
	}
	slices.Sort(ids)
	return out.Findings, ids
}

// late are the findings of a doctor that somebody has not answered in time: on a busy machine that is no fault of a node.
var late = []string{"dlm-controld-no-answer", "peer-silent", "unchecked", "vmlockd-no-answer"}

// finds wants just these findings in a node. It is examined again as long as somebody does not answer who should.
func (s *suite) finds(t *testing.T, node int, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	slices.Sort(want)
	var list []finding
	var ids []string
	err := lab.WaitFor(ctx, fmt.Sprintf("all to answer doctor on node %d", node), func(context.Context) (bool, error) {
		list, ids = s.doctor(t, node)
		again := slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(late, id) && !slices.Contains(want, id) })
		if again {
			t.Logf("node %d is examined again, as somebody has not answered: %+v", node, list)
		}
		return !again, nil
	})
	if err != nil || !slices.Equal(ids, want) {
		t.Errorf("node %d: want %q, found %q: %v", node, want, ids, err)
	}
	for _, f := range list {
		t.Logf("%6.1fs node%d %s %s: %s: %s | %s", time.Since(s.begin).Seconds(), node, f.Severity, f.ID, f.Where, f.What, f.Remedy)
	}
}

// waitFinds waits until just these findings are there.
func (s *suite) waitFinds(t *testing.T, node int, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	var list []finding
	slices.Sort(want)
	err := lab.WaitFor(ctx, fmt.Sprintf("findings %q on node %d", want, node), func(context.Context) (ok bool, err error) {
		var ids []string
		list, ids = s.doctor(t, node)
		return slices.Equal(ids, want), nil
	})
	for _, f := range list {
		t.Logf("%6.1fs node%d %s %s: %s: %s | %s", time.Since(s.begin).Seconds(), node, f.Severity, f.ID, f.Where, f.What, f.Remedy)
	}
	must(t, err)
}

// serving waits until vmlockd of each node grants the lock of a disk that all nodes can use: it may be started after libvirtd, and
// serves before it has joined the lockspace and its guard lets anything be granted.
func (s *suite) serving(t *testing.T, disk string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	for _, n := range s.Nodes() {
		var last lab.Result
		err := lab.WaitFor(ctx, "vmlockd of "+n.Name()+" to grant locks", func(ctx context.Context) (_ bool, err error) {
			last, err = n.Exec(ctx, "vmlockctl", "run", disk, "--", "true")
			return last.OK(), err
		})
		if err != nil {
			t.Fatalf("%v: %v", err, last)
		}
	}
}

// restart ends a service and starts it again.
func (s *suite) restart(t *testing.T, node int, service string) {
	t.Helper()
	p := s.Node(node).Service(service)
	must(t, p.Stop(s.ctx))
	must(t, p.Start(s.ctx))
}
