package identity_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// finding is one of vmlockctl doctor --json.
type finding struct{ ID, Where, What, Remedy string }

func (s *suite) doctor(t *testing.T, node int) []finding {
	t.Helper()
	res, err := s.Node(node).Exec(s.ctx, "vmlockctl", "doctor", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ Findings []finding }
	if err := json.Unmarshal([]byte(res.Stdout), &out); err != nil || out.Findings == nil {
		t.Fatalf("doctor on node %d: %v, %v", node, err, res)
	}
	return out.Findings
}

// holders is who has locks on a node.
func (s *suite) holders(t *testing.T, node int) []control.Holder {
	t.Helper()
	var h control.Holders
	if err := json.Unmarshal([]byte(s.sh(t, node, "vmlockctl ls --json")), &h); err != nil {
		t.Fatal(err)
	}
	return h.Holders
}

// ruleInRemedy is a rule as a remedy of doctor has it, on one line.
var ruleInRemedy = regexp.MustCompile(`\[\[identity\.rule\]\] ((?:path|type) = "[^"]*"), scope = "cluster"`)

// inDoubt: doctor names a virtual machine's disk of which nothing is known but its path,
// and none other; and its remedy, as it is written, ends that.
func inDoubt(t *testing.T, s *suite) {
	path := s.share(t, "doubt.img", lab.IdleGuest())
	s.private(t, own)
	s.create(t, 1, lab.Domain{Name: "doubtful", Disks: []lab.Disk{{Path: own}, {Path: path}}})
	remedy := s.wantFinding(t, 1, "disk-by-path", true, "virtual machine doubtful, disk vdb", path, "hostfs", "by its path")
	for _, f := range s.doctor(t, 1) {
		if f.ID == "disk-by-path" && f.Where != "virtual machine doubtful, disk vdb" {
			t.Errorf("%+v", f)
		}
	}
	rule := ruleInRemedy.FindStringSubmatch(remedy)
	if rule == nil {
		t.Fatalf("the remedy has no rule: %s", remedy)
	}
	s.configure(t, config+"\n[[identity.rule]]\n"+rule[1]+"\nscope = \"cluster\"\n")
	t.Cleanup(func() { s.configure(t, config) })
	s.wantFinding(t, 1, "disk-by-path", false, "")
	if id := s.one(t, 1, path); id.Doubt || id.Scope != "cluster" {
		t.Errorf("with the rule of the remedy it is %+v", id)
	}
	s.wantHeld(t, 2, path) // the lock from before the rule counts
}

// configure gives the daemons of all nodes another configuration.
func (s *suite) configure(t *testing.T, text string) {
	t.Helper()
	for _, n := range s.Nodes() {
		if err := n.WriteFile(s.ctx, "/etc/vmlockd/vmlockd.toml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		daemon := n.Service(lab.ServiceLock)
		if err := daemon.Kill(s.ctx); err != nil {
			t.Fatal(err)
		}
		if err := daemon.Start(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range s.Nodes() {
		s.waitServing(t, n.ID())
	}
}

// waitServing waits until the daemon of a node grants locks.
func (s *suite) waitServing(t *testing.T, node int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, fmt.Sprintf("the daemon of node %d to serve", node), func(ctx context.Context) (bool, error) {
		res, err := s.Node(node).Exec(ctx, "vmlockctl", "run", "/nobody/has/this", "--", "true")
		return err == nil && res.OK(), err
	})
	if err != nil {
		t.Fatal(err)
	}
}
