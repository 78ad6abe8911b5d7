// Package cluster_test proves the main job on real parts: stock libvirt and QEMU
// on nodes with corosync and the kernel's DLM, and vmlockd behind them. It needs
// the lab; see CONTRIBUTING.md.
package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// binaries are built once, for the nodes.
var binaries struct{ vmlockd, vmlockctl, probe string }

func TestMain(m *testing.M) {
	lab.Main(m, map[*string]string{
		&binaries.vmlockd:   "github.com/vmlockd/vmlockd/cmd/vmlockd",
		&binaries.vmlockctl: "github.com/vmlockd/vmlockd/cmd/vmlockctl",
		&binaries.probe:     "github.com/vmlockd/vmlockd/tests/cluster/probe",
	})
}

// suite is a lab and what its tests have in common.
type suite struct {
	*lab.Lab
	ctx context.Context
	// destroyed are virtual machines, "name on node 1", that are gone by destroy: asking for it once more at
	// the end of their test takes a second each.
	destroyed map[string]bool
}

// start boots nodes with stock libvirt and the given lock daemon.
func start(t *testing.T, cfg lab.Config) *suite {
	t.Helper()
	lab.Need(t, cfg)
	cfg.Libvirt = true
	cfg.Binaries = map[string]string{"probe": binaries.probe, "vmlockctl": binaries.vmlockctl}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Minute)
	t.Cleanup(cancel)
	s := &suite{Lab: lab.ForTest(t, cfg), ctx: ctx, destroyed: map[string]bool{}}
	up, cancel := context.WithTimeout(ctx, 6*time.Minute)
	defer cancel()
	for _, n := range s.Nodes() {
		if err := n.WaitLibvirt(up); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// config usually has no guard: what is seen here is what the DLM does, and the power cut shows
// when it lets a disk go. What the guard adds to that is in tests/guard. With lab.GuardEnv the
// same goes on beside one.
var config = fmt.Sprintf("backend = \"cluster\"\nguard.mode = %q\n", lab.GuardMode())

// holdOff is how long a guard grants nothing after a host has vanished, by default.
func holdOff() time.Duration {
	if lab.GuardMode() == "off" {
		return 0
	}
	return time.Minute
}

// startVMLockd boots a cluster with vmlockd in it.
func startVMLockd(t *testing.T, nodes int) *suite {
	t.Helper()
	s := start(t, lab.Config{
		Nodes:         nodes,
		Transport:     lab.KNET, // as real clusters have it
		VMLockd:       binaries.vmlockd,
		VMLockdConfig: func(int) string { return config },
	})
	// A guard that has begun before all nodes were there may wait for one of them.
	for _, n := range s.Nodes() {
		s.waitServingFor(t, n.ID(), time.Minute+holdOff())
	}
	return s
}

// disk makes an image that all nodes see, and returns its path in the nodes.
func (s *suite) disk(t *testing.T, name string, image []byte) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Shared(), name), image, 0o600); err != nil {
		t.Fatal(err)
	}
	return lab.SharedDir + "/" + name
}

func vm(name string, disks ...lab.Disk) lab.Domain {
	return lab.Domain{Name: name, Disks: disks}
}

func (s *suite) step(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("%s %s", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

// create starts a virtual machine, which must work, and ends it with the test.
func (s *suite) create(t *testing.T, node int, d lab.Domain) {
	t.Helper()
	s.must(t, fmt.Sprintf("start %s on node %d", d.Name, node), func() (lab.Result, error) { return s.Node(node).Create(s.ctx, d) })
	s.endsWithTest(t, node, d.Name)
}

// endsWithTest makes sure that a virtual machine does not outlive its test.
func (s *suite) endsWithTest(t *testing.T, node int, name string) {
	key := on(name, node)
	delete(s.destroyed, key)
	t.Cleanup(func() {
		if s.destroyed[key] {
			return
		}
		// It may have ended already, moved, or lost its node.
		if _, err := s.Node(node).Destroy(s.ctx, name); err != nil {
			t.Logf("destroy %s on node %d: %v", name, node, err)
		}
	})
}

func on(name string, node int) string { return fmt.Sprintf("%s on node %d", name, node) }

// must runs something that has to succeed.
func (s *suite) must(t *testing.T, what string, f func() (lab.Result, error)) {
	t.Helper()
	res, err := f()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !res.OK() {
		t.Fatalf("%s: %v", what, res)
	}
	s.step(t, "%s: done in %v", what, res.Took.Round(time.Millisecond))
}

// refused runs something that the lock daemon has to refuse, for the path, and
// checks that virsh says so in the daemon's words. It returns what virsh says.
func (s *suite) refused(t *testing.T, what, path string, f func() (lab.Result, error)) string {
	t.Helper()
	res, err := f()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if res.OK() {
		t.Fatalf("%s was not refused: %v", what, res)
	}
	want := fmt.Sprintf("resource busy: Lockspace resource '%s' is locked", path)
	if !strings.Contains(res.Stderr, want) {
		t.Fatalf("%s failed, but virsh does not say %q:\n%v", what, want, res)
	}
	s.step(t, "%s: %s", what, strings.TrimSpace(res.Stderr))
	return res.Stderr
}

func (s *suite) createRefused(t *testing.T, node int, d lab.Domain, path string) string {
	t.Helper()
	return s.refused(t, "start "+on(d.Name, node), path, func() (lab.Result, error) {
		res, err := s.Node(node).Create(s.ctx, d)
		if err == nil && res.OK() {
			s.endsWithTest(t, node, d.Name) // one test has failed, and the next ones need not
		}
		return res, err
	})
}

func (s *suite) destroy(t *testing.T, node int, name string) {
	t.Helper()
	s.must(t, fmt.Sprintf("destroy %s on node %d", name, node), func() (lab.Result, error) { return s.Node(node).Destroy(s.ctx, name) })
	s.destroyed[on(name, node)] = true
}

// probe asks a node's daemon for a lock, and gives it back.
func (s *suite) probe(ctx context.Context, node int, args ...string) (lab.Result, error) {
	at := len(args) - 1
	return s.Node(node).Exec(ctx, "probe", append(append([]string{}, args[:at]...), "try", args[at])...)
}

// free asks a node's daemon whether a path can be locked.
func (s *suite) free(t *testing.T, node int, args ...string) bool {
	t.Helper()
	res, err := s.probe(s.ctx, node, args...)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case res.OK():
		return true
	case res.Status == 1 && strings.Contains(res.Stdout, "resource busy"):
		s.step(t, "probe on node %d: %s", node, strings.TrimSpace(res.Stdout))
		return false
	}
	t.Fatalf("probe %v on node %d: %v", args, node, res)
	return false
}

func (s *suite) wantFree(t *testing.T, node int, args ...string) {
	t.Helper()
	if !s.free(t, node, args...) {
		t.Fatalf("%v is not free, as node %d sees it", args, node)
	}
}

func (s *suite) wantHeld(t *testing.T, node int, args ...string) {
	t.Helper()
	if s.free(t, node, args...) {
		t.Fatalf("%v is free, as node %d sees it", args, node)
	}
}

// waitFree waits until a path can be locked on a node. Any refusal may be over at
// the next try, also one that says that the lockspace recovers.
func (s *suite) waitFree(t *testing.T, ctx context.Context, node int, path string) {
	t.Helper()
	last := "there was none"
	err := lab.WaitFor(ctx, path+" to be free", func(ctx context.Context) (bool, error) {
		res, err := s.probe(ctx, node, path)
		switch {
		case ctx.Err() != nil:
			return false, nil // WaitFor says so; a grant would be too late
		case err != nil || res.OK():
			return res.OK(), err
		case res.Status == 1: // the daemon has answered
			last = strings.TrimSpace(res.Stdout)
			s.step(t, "probe on node %d: %s", node, last)
			return false, nil
		}
		return false, fmt.Errorf("probe on node %d: %v", node, res)
	})
	if err != nil {
		t.Fatalf("%v; the last refusal: %s", err, last)
	}
}

func (s *suite) state(t *testing.T, node int, name, want string) {
	t.Helper()
	got, err := s.Node(node).DomainState(s.ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("%s on node %d is %q, want %q", name, node, got, want)
	}
}
