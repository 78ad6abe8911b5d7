// Package guard_test proves on real nodes, without fencing, that a host that lost
// the cluster has stopped writing before another one may: with real corosync and
// dlm_controld, and a writer whose records carry the time of the storage. It needs
// the lab; see CONTRIBUTING.md.
package guard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// config has little more than the shortest times that corosync's timeouts in the lab
// allow. The grace is such that a busy machine can heal a fault within it.
const config = `backend = "cluster"
[guard]
grace = "10s"
hold_off = "45s"
`

// holdOff is what config says.
const holdOff = 45 * time.Second

const (
	// detection is within which a loss is noticed in the lab, on a busy machine: by
	// corosync after 12.4 s, or when the lease is over, after 18.4 s.
	detection = 40 * time.Second
	// takeOver is until somebody else has the lock: detection, and the hold-off.
	takeOver = detection + holdOff + 15*time.Second
	// enough records of a writer say that it goes on: half a second of them.
	enough = 10
)

// binaries are built once, for the nodes.
var binaries struct{ vmlockd, vmlockctl, writer string }

func TestMain(m *testing.M) {
	lab.Main(m, map[*string]string{
		&binaries.vmlockd:   "github.com/vmlockd/vmlockd/cmd/vmlockd",
		&binaries.vmlockctl: "github.com/vmlockd/vmlockd/cmd/vmlockctl",
		&binaries.writer:    "github.com/vmlockd/vmlockd/tests/guard/writer",
	})
}

type suite struct {
	*lab.Lab
	ctx  context.Context
	runs int
	rows []string // of docs/faults.md
}

func start(t *testing.T) *suite {
	t.Helper()
	cfg := lab.Config{
		Nodes: 3, VMLockd: binaries.vmlockd, VMLockdConfig: func(int) string { return config },
		Binaries: map[string]string{"vmlockctl": binaries.vmlockctl, "writer": binaries.writer},
	}
	lab.Need(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	t.Cleanup(cancel)
	return &suite{Lab: lab.ForTest(t, cfg), ctx: ctx}
}

// run is one fault, with a writer on node 3, which is to lose its lock or not, and
// mostly one on node 1, which asks for it again and again.
type run struct {
	*suite
	t   *testing.T
	dir string // of the records, on this machine
	id  string
	// logged is how much node 3's services had written before the fault.
	logged map[string]int
	// what was done, and when.
	what    string
	faultAt time.Time
}

// begin waits until all nodes are well and has node 3 write.
func (s *suite) begin(t *testing.T) *run {
	t.Helper()
	r := s.prepare(t)
	for _, n := range s.Nodes() {
		r.await(n.Name()+" to be well", 2*time.Minute, func() bool { return r.well(n.ID()) })
	}
	r.hold()
	r.await("the others to have node 3's promise", 30*time.Second, func() bool { return r.promised(1) && r.promised(2) })
	r.mark()
	return r
}

// mark says that what node 3 has logged until now is not due to the fault that comes.
func (r *run) mark() {
	r.t.Helper()
	for _, name := range []string{lab.ServiceLock, lab.ServiceCorosync} {
		r.logged[name] += len(r.log(name))
	}
}

func (s *suite) prepare(t *testing.T) *run {
	t.Helper()
	s.runs++
	r := &run{suite: s, t: t, id: fmt.Sprintf("run%d", s.runs), dir: filepath.Join(s.Shared(), fmt.Sprintf("run%d", s.runs)), logged: map[string]int{}}
	r.must(os.Mkdir(r.dir, 0o777))
	return r
}

// hold has node 3 write.
func (r *run) hold() {
	r.t.Helper()
	r.write(3)
	r.await("node 3 to write", time.Minute, func() bool { return len(r.records(3)) > enough })
}

// contend has node 1 ask for what node 3 has.
func (r *run) contend() {
	r.t.Helper()
	r.write(1)
	r.await("node 1 to be refused", 30*time.Second, func() bool { return r.said(1) != "" })
}

func (r *run) step(format string, args ...any) {
	r.t.Helper()
	r.t.Logf("%s %s", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

func (r *run) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// await waits for a condition, and fails the test if it takes too long.
func (r *run) await(what string, most time.Duration, done func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, most)
	defer cancel()
	if err := lab.WaitFor(ctx, what, func(context.Context) (bool, error) { return done(), nil }); err != nil {
		r.t.Fatal(err)
	}
	r.step("%s: done", what)
}

// sh runs a script in a node, which must succeed.
func (r *run) sh(node int, script string) string {
	r.t.Helper()
	res, err := r.Node(node).MustSucceed(r.ctx, "sh", "-c", script)
	r.must(err)
	return res.Stdout
}

// status is what vmlockctl status says; nil while there is no answer.
func (r *run) status(node int) *control.Status {
	r.t.Helper()
	res, err := r.Node(node).Exec(r.ctx, "vmlockctl", "status", "--json")
	r.must(err)
	var st control.Status
	if !res.OK() || json.Unmarshal([]byte(res.Stdout), &st) != nil || st.Cluster == nil || st.Cluster.Guard == nil {
		return nil
	}
	return &st
}

// well reports whether a node is in the lockspace with the two others, guards, and
// holds off for nobody.
func (r *run) well(node int) bool {
	r.t.Helper()
	st := r.status(node)
	if !whole(st) {
		return false
	}
	g := st.Cluster.Guard
	return g.Mode == "freeze" && g.Promise && g.Lost == "" && len(g.Vanished) == 0
}

// whole reports whether all nodes are in the cluster, each with a vmlockd, and the lockspace runs.
func whole(st *control.Status) bool {
	return st != nil && len(st.Members) == 3 && st.Cluster.Lockspace.State == control.LockspaceRunning &&
		!slices.ContainsFunc(st.Members, func(m control.Member) bool { return m.Member != control.Yes || m.Version == "" })
}

// promised reports whether a node has noted that node 3 gives a promise.
func (r *run) promised(node int) bool {
	r.t.Helper()
	b, err := r.Node(node).ReadFile(r.ctx, "/run/vmlockd/guard.json")
	if errors.Is(err, lab.ErrNotFound) {
		return false
	}
	r.must(err)
	var noted struct {
		Words map[uint32]struct{ Promise bool }
	}
	r.must(json.Unmarshal(b, &noted))
	return noted.Words[3].Promise
}

func (r *run) name(node int) string { return fmt.Sprintf("%s-writer%d", r.id, node) }

func (r *run) writer(node int) *lab.Process { return r.Node(node).Service(r.name(node)) }

func (r *run) write(node int) {
	r.t.Helper()
	_, err := r.Node(node).Start(r.ctx, r.name(node), "writer", lab.SharedDir+"/"+r.id, fmt.Sprintf("n%d", node), "/disk/"+r.id)
	r.must(err)
}

func (r *run) own(node int) string { return fmt.Sprintf("own%d", node) }

// writeOwn starts a writer with a lock on a file that no other node can use.
func (r *run) writeOwn(node int) {
	r.t.Helper()
	file := "/run/" + r.id + ".img"
	r.sh(node, "touch "+file)
	_, err := r.Node(node).Start(r.ctx, r.id+"-own", "writer", lab.SharedDir+"/"+r.id, r.own(node), file)
	r.must(err)
	r.await("the writer of what only its node can use to write", time.Minute, func() bool { return len(r.recordsOf(r.own(node))) > 0 })
}

// records are the times of a node's records by the clock of the storage, in order.
func (r *run) records(node int) []time.Time { return r.recordsOf(fmt.Sprintf("n%d", node)) }

func (r *run) recordsOf(who string) (list []time.Time) {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	r.must(err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), who+"-") {
			continue
		}
		info, err := e.Info()
		r.must(err)
		list = append(list, info.ModTime())
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}

// goesOn waits until a node's writer has written some more.
func (r *run) goesOn(node int, most time.Duration) {
	r.t.Helper()
	before := len(r.records(node))
	r.await(fmt.Sprintf("node %d to write, after %d records", node, before), most, func() bool { return len(r.records(node)) > before+enough })
}

// said returns what a writer has printed: why it was refused.
func (r *run) said(node int) string {
	r.t.Helper()
	b, err := r.Node(node).Log(r.ctx, r.name(node))
	if errors.Is(err, lab.ErrNotFound) {
		return "" // nothing yet
	}
	r.must(err)
	return string(b)
}

// log is what a service of node 3 has written since the fault; before that, all.
func (r *run) log(service string) string {
	r.t.Helper()
	b, err := r.Node(3).Log(r.ctx, service)
	r.must(err)
	return string(b[min(r.logged[service], len(b)):])
}

// logs reports whether vmlockd on node 3 has logged an event since the fault.
func (r *run) logs(event string) bool {
	r.t.Helper()
	return strings.Contains(r.log(lab.ServiceLock), "event="+event+" ")
}

func (r *run) awaitLog(event string, most time.Duration) {
	r.t.Helper()
	r.await("node 3 to log "+event, most, func() bool { return r.logs(event) })
}

// end leaves three nodes that are well, and judges. With lost, or after a failure,
// node 3 is rebooted.
func (r *run) end(lost bool) {
	r.t.Helper()
	err := r.writer(1).Stop(r.ctx)
	if err != nil && !errors.Is(err, lab.ErrNotFound) {
		r.t.Error(err)
	}
	if lost || r.t.Failed() {
		n := r.Node(3)
		ctx, cancel := context.WithTimeout(r.ctx, 3*time.Minute)
		defer cancel()
		for _, do := range []func() error{
			func() error { return n.PowerCut(ctx) },
			func() error { return r.Node(1).WaitRing(ctx, 1, 2) }, func() error { return r.Node(2).WaitRing(ctx, 1, 2) }, // see lab.Node.Boot
			func() error { return r.Node(1).WaitMembers(ctx, 1, 2) }, func() error { return r.Node(2).WaitMembers(ctx, 1, 2) },
			func() error { return n.Heal(ctx) }, func() error { return n.Boot(ctx) },
			func() error { return n.WaitMembers(ctx, 1, 2, 3) },
		} {
			if err := do(); err != nil {
				r.t.Errorf("node 3 cannot be used any more: %v", err)
				return
			}
		}
	} else if err := r.writer(3).Stop(r.ctx); err != nil {
		r.t.Error(err)
	}
	r.judge()
	if !r.t.Failed() {
		r.rows = append(r.rows, r.row())
	}
}

// judge fails the test if node 3 has written after node 1 began, and says how long
// nobody could. Nobody writes any more.
func (r *run) judge() {
	r.t.Helper()
	if len(r.records(3)) == 0 || len(r.records(1)) == 0 {
		r.t.Errorf("%d records of node 3 and %d of node 1: nothing can be judged", len(r.records(3)), len(r.records(1)))
		return
	}
	if pause := r.pause(); pause <= 0 {
		r.t.Errorf("OVERLAP: node 3 wrote %v after node 1 had begun", -pause)
	} else {
		r.step("%d records of node 3, %d of node 1, nothing for %v between", len(r.records(3)), len(r.records(1)), pause.Round(time.Millisecond))
	}
}

// pause is from the last record of node 3 to the first of node 1. It is negative if
// both have written at once.
func (r *run) pause() time.Duration {
	r.t.Helper()
	old, fresh := r.records(3), r.records(1)
	return fresh[0].Sub(old[len(old)-1])
}

// handOver ends node 3's writer, which still has the lock, and waits for node 1's.
func (r *run) handOver() {
	r.t.Helper()
	if n := len(r.records(1)); n > 0 {
		r.t.Fatalf("node 1 has written %d records while node 3 had the lock", n)
	}
	r.must(r.writer(3).Stop(r.ctx))
	r.goesOn(1, 30*time.Second)
}

// killed fails the test unless the guard has killed node 3's writer.
func (r *run) killed() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	st, err := r.writer(3).Wait(ctx)
	r.must(err)
	if st.Status != statusKilled {
		r.t.Errorf("node 3's writer has ended with status %d, and not by SIGKILL", st.Status)
	}
}

// statusKilled is of a process that was ended by SIGKILL: 128 plus its number.
const statusKilled = 128 + 9

// text is for messages.
func text(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return b.String()
}
