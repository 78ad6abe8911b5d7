// Package guard_test proves on real nodes, without fencing, that a host that lost
// the cluster has stopped writing before another one may: with real corosync and
// dlm_controld, and a writer whose records carry the time of the storage. It needs
// the lab; see CONTRIBUTING.md.
package guard_test

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

// config has the shortest times that corosync's timeouts in the lab allow, and some more.
const config = `backend = "cluster"
[guard]
grace = "5s"
hold_off = "40s"
`

// detection is within which corosync notices a loss in the lab, on a busy machine.
const detection = 25 * time.Second

type suite struct {
	*lab.Lab
	ctx  context.Context
	runs int
}

func start(t *testing.T) *suite {
	t.Helper()
	cfg := lab.Config{Nodes: 3, VMLockdConfig: func(int) string { return config }}
	lab.Need(t, cfg)
	dir := t.TempDir()
	cfg.Binaries = map[string]string{}
	for name, pkg := range map[string]string{"vmlockd": "cmd/vmlockd", "vmlockctl": "cmd/vmlockctl", "writer": "tests/guard/writer"} {
		path := filepath.Join(dir, name)
		if err := lab.BuildProgram(path, "github.com/vmlockd/vmlockd/"+pkg, false); err != nil {
			t.Fatal(err)
		}
		cfg.Binaries[name] = path
	}
	cfg.VMLockd = cfg.Binaries["vmlockd"]
	delete(cfg.Binaries, "vmlockd")
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	t.Cleanup(cancel)
	return &suite{Lab: lab.ForTest(t, cfg), ctx: ctx}
}

func (s *suite) step(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("%s %s", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

func (s *suite) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run is a row of faults with a writer on node 3, and one on node 1 that waits.
type run struct {
	*suite
	t   *testing.T
	dir string // of the records, on this machine
	id  string
}

// begin starts the writers: node 3 holds, node 1 asks again and again.
func (s *suite) begin(t *testing.T) *run {
	t.Helper()
	s.runs++
	r := &run{suite: s, t: t, id: fmt.Sprintf("run%d", s.runs), dir: filepath.Join(s.Shared(), fmt.Sprintf("run%d", s.runs))}
	s.must(t, os.Mkdir(r.dir, 0o777))
	r.write(3)
	r.await("node 3 to write", 2*time.Minute, func() bool { return len(r.records(3)) > 0 })
	r.write(1)
	return r
}

func (r *run) name(node int) string { return fmt.Sprintf("%s-writer%d", r.id, node) }

func (r *run) write(node int) {
	r.t.Helper()
	_, err := r.Node(node).Start(r.ctx, r.name(node), "writer", lab.SharedDir+"/"+r.id, fmt.Sprintf("n%d", node), "/disk/"+r.id)
	r.must(r.t, err)
}

func (r *run) own(node int) string { return fmt.Sprintf("own%d", node) }

// writeOwn starts a writer with a lock on a file that no other node can use.
func (r *run) writeOwn(node int) {
	r.t.Helper()
	file := "/run/" + r.id + ".img"
	res, err := r.Node(node).Shell(r.ctx, "touch "+file)
	if err != nil || !res.OK() {
		r.t.Fatalf("touch %s: %v %v", file, res, err)
	}
	_, err = r.Node(node).Start(r.ctx, r.id+"-own", "writer", lab.SharedDir+"/"+r.id, r.own(node), file)
	r.must(r.t, err)
	r.await("it to write", time.Minute, func() bool { return len(r.recordsOf(r.own(node))) > 0 })
}

// await waits for a condition, and fails the test if it takes too long.
func (r *run) await(what string, most time.Duration, done func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, most)
	defer cancel()
	if err := lab.WaitFor(ctx, what, func(context.Context) (bool, error) { return done(), nil }); err != nil {
		r.t.Fatal(err)
	}
	r.step(r.t, "%s: done", what)
}

// records are the times of a node's records by the clock of the storage.
func (r *run) records(node int) []time.Time { return r.recordsOf(fmt.Sprintf("n%d", node)) }

func (r *run) recordsOf(who string) (list []time.Time) {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	r.must(r.t, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), who+"-") {
			continue
		}
		info, err := e.Info()
		r.must(r.t, err)
		list = append(list, info.ModTime())
	}
	return list
}

// judge fails the test if node 3 has written after node 1 began, and says how long
// nobody could.
func (r *run) judge() {
	r.t.Helper()
	old, fresh := r.records(3), r.records(1)
	if len(old) == 0 || len(fresh) == 0 {
		r.t.Fatalf("%d records of node 3 and %d of node 1: nothing can be judged", len(old), len(fresh))
	}
	last, first := old[0], fresh[0]
	for _, at := range old {
		if at.After(last) {
			last = at
		}
	}
	for _, at := range fresh {
		if at.Before(first) {
			first = at
		}
	}
	if !last.Before(first) {
		r.t.Fatalf("OVERLAP: node 3 wrote at %v, and node 1 had begun at %v", last, first)
	}
	r.step(r.t, "%d records of node 3, %d of node 1, nothing for %v between", len(old), len(fresh), first.Sub(last).Round(time.Millisecond))
}

// said returns what a writer has printed.
func (r *run) said(node int) string {
	r.t.Helper()
	b, err := r.Node(node).Log(r.ctx, r.name(node))
	r.must(r.t, err)
	return string(b)
}

// end ends the writer on node 1, so that the next run finds nothing held.
func (r *run) end() {
	r.t.Helper()
	r.must(r.t, r.Node(1).Service(r.name(1)).Stop(r.ctx))
}

// again boots node 3, which was lost.
func (r *run) again() {
	r.t.Helper()
	r.must(r.t, r.Node(3).PowerCut(r.ctx))
	r.must(r.t, r.Node(3).Heal(r.ctx))
	r.must(r.t, r.Node(3).Boot(r.ctx))
	ctx, cancel := context.WithTimeout(r.ctx, 3*time.Minute)
	defer cancel()
	r.must(r.t, r.Node(3).WaitMembers(ctx, 1, 2, 3))
}

func TestGuard(t *testing.T) {
	s := start(t)
	t.Run("Cut", func(t *testing.T) {
		r := s.begin(t)
		r.writeOwn(3)
		s.must(t, s.Node(3).Cut(s.ctx))
		s.step(t, "node 3 is cut off")
		r.await("node 3 to say that it has lost the cluster", detection, func() bool {
			b, err := s.Node(3).Log(s.ctx, lab.ServiceLock)
			return err == nil && strings.Contains(string(b), "guard-killed")
		})
		own := len(r.recordsOf(r.own(3)))
		r.await("the writer of what only node 3 can use to go on", 10*time.Second, func() bool { return len(r.recordsOf(r.own(3))) > own+20 })
		r.await("node 1 to write", 90*time.Second, func() bool { return len(r.records(1)) > 20 })
		r.judge()
		if text := r.said(1); !strings.Contains(text, "node 3") || !strings.Contains(text, "seconds more") {
			t.Errorf("the refusals do not say who is held off for, and how long:\n%s", text)
		}
		r.end()
		r.again()
	})
	t.Run("ConfirmDead", func(t *testing.T) {
		r := s.begin(t)
		s.must(t, s.Node(3).PowerCut(s.ctx))
		s.step(t, "the power of node 3 is cut")
		r.await("node 1 to hold off", detection, func() bool { return strings.Contains(r.said(1), "has vanished without leaving") })
		res, err := s.Node(2).Exec(s.ctx, "vmlockctl", "confirm-dead", "--yes", "--reason", "the test has cut its power", "3")
		if err != nil || !res.OK() {
			t.Fatalf("confirm-dead: %v %v", res, err)
		}
		r.await("node 1 to write", 10*time.Second, func() bool { return len(r.records(1)) > 20 })
		r.judge()
		r.end()
		r.again()
	})
	t.Run("StoppedDaemons", func(t *testing.T) {
		r := s.begin(t)
		// corosync stands still, and tells nobody on its host: the lease is what counts.
		res, err := s.Node(3).Shell(s.ctx, "kill -STOP $(pidof corosync)")
		if err != nil || !res.OK() {
			t.Fatalf("stop corosync: %v %v", res, err)
		}
		r.await("node 1 to write", 2*time.Minute, func() bool { return len(r.records(1)) > 20 })
		r.judge()
		r.end()
		r.again()
	})
}
