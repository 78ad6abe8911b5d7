// Package identity_test proves on a real cluster that a disk has one name on all
// hosts and that different disks have different ones: with stock libvirt, device
// mapper, bind mounts and files of one node alone. It needs the lab; see
// CONTRIBUTING.md.
package identity_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
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
	ctx     context.Context
	holds   int
	libvirt bool // for prove
}

// boot starts a cluster with vmlockd in it.
func boot(t *testing.T, cfg lab.Config) *suite {
	t.Helper()
	cfg.VMLockd, cfg.VMLockdConfig = binaries.vmlockd, func(int) string { return config }
	cfg.Binaries = map[string]string{"vmlockctl": binaries.vmlockctl}
	captureBinary(t, cfg.Binaries)
	lab.Need(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	s := &suite{ctx: ctx, Lab: lab.ForTest(t, cfg)}
	up, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, n := range s.Nodes() {
		err := lab.WaitFor(up, "vmlockd of "+n.Name()+" to serve", func(ctx context.Context) (bool, error) {
			log, err := n.Log(ctx, lab.ServiceLock)
			if errors.Is(err, lab.ErrNotFound) {
				err = nil // it has not been started yet
			}
			return strings.Contains(string(log), "vmlockd is ready"), err
		})
		if err != nil {
			t.Fatal(err)
		}
		s.waitServing(t, n.ID()) // it is ready after 3 s at most, whether it has joined the lockspace or not
	}
	return s
}

// The exit statuses of vmlockctl run and identify that mean something here.
const (
	runRefused = 124
	differ     = 8
	incomplete = 5
)

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

// holder is who has a lock of a name on a node; nil if nobody has.
func (s *suite) holder(t *testing.T, node int, name string) *control.Holder {
	t.Helper()
	var h control.Holders
	if err := json.Unmarshal([]byte(s.sh(t, node, "vmlockctl ls --json")), &h); err != nil {
		t.Fatal(err)
	}
	for _, one := range h.Holders {
		if one.VM == name {
			return &one
		}
	}
	return nil
}

// again has the shell run vmlockctl run with its arguments until it is not refused: while a node joins, and while
// dlm_controld of a busy machine is silent, nothing can be granted.
var again = fmt.Sprintf(`while vmlockctl run "$@"; [ $? = %d ]; do sleep 0.2; done`, runRefused)

// hold locks a disk on a node until the returned function is called, or the test
// ends. The flags are those of vmlockctl run.
func (s *suite) hold(t *testing.T, node int, path string, flags ...string) (release func()) {
	t.Helper()
	s.holds++
	name := fmt.Sprintf("hold%d", s.holds)
	args := append(append([]string{"-c", again, "sh", "--name", name}, flags...), path, "--", "sleep", "600")
	if _, err := s.Node(node).Start(s.ctx, name, "sh", args...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	var h *control.Holder
	err := lab.WaitFor(ctx, path+" to be held on node "+fmt.Sprint(node), func(context.Context) (bool, error) {
		h = s.holder(t, node, name)
		return h != nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	done := false
	release = func() {
		if done {
			return
		}
		done = true
		s.sh(t, node, fmt.Sprintf("kill %d", h.PID))
		err := lab.WaitFor(s.ctx, path+" to be given back", func(context.Context) (bool, error) {
			return s.holder(t, node, name) == nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return release
}

// free tries to lock a disk on a node.
func (s *suite) free(t *testing.T, node int, path string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	var res lab.Result
	err := lab.WaitFor(ctx, "an answer that is about "+path, func(ctx context.Context) (bool, error) {
		var err error
		res, err = s.Node(node).Exec(ctx, "vmlockctl", "run", path, "--", "true")
		return err != nil || res.Status != runRefused || strings.Contains(res.Stderr, "is locked"), err
	})
	if err != nil || !res.OK() && res.Status != runRefused {
		t.Fatalf("%s on node %d: %v; %v", path, node, err, res)
	}
	return res.OK()
}

func (s *suite) wantFree(t *testing.T, node int, path string) {
	t.Helper()
	if !s.free(t, node, path) {
		t.Errorf("%s is held, as node %d sees it, and nobody has that disk:\n%s", path, node, s.sh(t, node, "vmlockctl identify "+path))
	}
}

func (s *suite) wantHeld(t *testing.T, node int, path string) {
	t.Helper()
	if s.free(t, node, path) {
		t.Errorf("%s is free, as node %d sees it, and somebody has that disk:\n%s", path, node, s.sh(t, node, "vmlockctl identify "+path))
	}
}

// complete runs vmlockctl until all nodes have answered it: a node that is busy may be too late, and then the
// command says so.
func (s *suite) complete(t *testing.T, node int, args ...string) (res lab.Result) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := lab.WaitFor(ctx, fmt.Sprintf("all nodes to answer %v", args), func(ctx context.Context) (bool, error) {
		var err error
		res, err = s.Node(node).Exec(ctx, "vmlockctl", args...)
		return err == nil && res.Status != incomplete, err
	})
	if err != nil {
		t.Fatalf("%v; the last answer: %v", err, res)
	}
	return res
}

// identify asks a node which disk a path is.
func (s *suite) identify(t *testing.T, node int, args ...string) (control.Identified, int) {
	t.Helper()
	res := s.complete(t, node, append([]string{"identify", "--json"}, args...)...)
	var d control.Identified
	if err := json.Unmarshal([]byte(res.Stdout), &d); err != nil || len(d.Disks) == 0 {
		t.Fatalf("identify %v on node %d: %v, %v", args, node, err, res)
	}
	return d, res.Status
}

// one is identify without other nodes.
func (s *suite) one(t *testing.T, node int, path string) control.Disk {
	t.Helper()
	d, status := s.identify(t, node, path)
	if status != 0 || d.Disks[0].Error != "" {
		t.Fatalf("identify %s on node %d: status %d, %+v", path, node, status, d)
	}
	return d.Disks[0]
}

func (s *suite) create(t *testing.T, node int, d lab.Domain) {
	t.Helper()
	res, err := s.Node(node).Create(s.ctx, d)
	if err != nil || !res.OK() {
		t.Fatalf("start %s on node %d: %v, %v", d.Name, node, res, err)
	}
	t.Cleanup(func() {
		if _, err := s.Node(node).Destroy(s.ctx, d.Name); err != nil {
			t.Logf("destroy %s on node %d: %v", d.Name, node, err)
		}
	})
}

func (s *suite) createRefused(t *testing.T, node int, d lab.Domain) {
	t.Helper()
	res, err := s.Node(node).Create(s.ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	// The words are about the path that libvirt asked for, whatever it leads to.
	want := fmt.Sprintf("resource busy: Lockspace resource '%s' is locked", d.Disks[0].Path)
	if res.OK() || !strings.Contains(res.Stderr, want) {
		t.Fatalf("start %s on node %d: not refused with %q: %v", d.Name, node, want, res)
	}
	t.Logf("%s", strings.TrimSpace(res.Stderr))
}

// refusedFor asks until the refusal names a virtual machine: a refusal does not wait for longer than 300 ms for the
// other hosts, which know its name, and without them it says that another host has it. Each of them must be one that
// says that the name is locked.
func (s *suite) refusedFor(t *testing.T, what, name, vm string, ask func() (lab.Result, error)) {
	t.Helper()
	locked := "Lockspace resource '" + name + "' is locked"
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	var last lab.Result
	err := lab.WaitFor(ctx, "a refusal that names "+vm, func(context.Context) (bool, error) {
		res, err := ask()
		if err != nil {
			return false, err
		}
		if last = res; res.OK() || !strings.Contains(res.Stderr, locked) {
			return false, errors.New("it is not refused as locked")
		}
		return strings.Contains(res.Stderr, locked+" by virtual machine "+vm), nil
	})
	if err != nil {
		t.Errorf("%s: %v: %v", what, err, last)
	}
}
