// Package guard_test proves on real nodes, three of them and two, without fencing, that a host that lost
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

// setup is a cluster, without fencing if nothing else is said, and how it is guarded. Its times are little more than the shortest
// that corosync's timeouts in the lab allow.
type setup struct {
	nodes          int
	grace, holdOff time.Duration
	guard          []string // further lines of the configuration's part about the guard
	quorum         []string // further lines of corosync's about quorum
	witness        bool     // with a quorum device
	modules        []string // of the nodes' kernels
	fencing        lab.Fencing
	fenceScript    string
	deviceMB       int  // of the disk that all nodes share
	libvirt        bool // with QEMU
	files          map[string]string
	table          string // of docs/faults.md
}

func (s setup) config() string {
	return fmt.Sprintf("backend = \"cluster\"\n[guard]\ngrace = %q\nhold_off = %q\n%s\n", s.grace, s.holdOff, strings.Join(s.guard, "\n"))
}

const (
	// detection is within which a loss is noticed in the lab, on a busy machine: by
	// corosync after 12.4 s, or when the lease is over, after 18.4 s.
	detection = 40 * time.Second
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
	setup
	ctx context.Context
	// last is the number of the node that has the lock, and that something is done to.
	last  int
	runs  int
	hangs int      // of the kernel's DLM, in all runs
	rows  []string // of docs/faults.md
}

func start(t *testing.T, c setup) *suite {
	t.Helper()
	cfg := lab.Config{
		Nodes: c.nodes, VMLockd: binaries.vmlockd, VMLockdConfig: func(int) string { return c.config() }, QuorumOptions: c.quorum, Witness: c.witness, Modules: c.modules,
		Fencing: c.fencing, FenceScript: c.fenceScript, DeviceMB: c.deviceMB, Libvirt: c.libvirt, Files: c.files,
		Binaries: map[string]string{"vmlockctl": binaries.vmlockctl, "writer": binaries.writer},
	}
	lab.Need(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	t.Cleanup(cancel)
	return &suite{Lab: lab.ForTest(t, cfg), setup: c, ctx: ctx, last: c.nodes}
}

// takeOver is until somebody else has the lock: detection, and the hold-off.
func (s *suite) takeOver() time.Duration { return detection + s.holdOff + 15*time.Second }

// loser is the node that something is done to.
func (s *suite) loser() *lab.Node { return s.Node(s.last) }

// others are the numbers of all other nodes.
func (s *suite) others() (ids []int) {
	for id := 1; id < s.last; id++ {
		ids = append(ids, id)
	}
	return ids
}

// run is one fault, with a writer on the last node, which is to lose its lock or not, and
// mostly one on node 1, which asks for it again and again.
type run struct {
	*suite
	t   *testing.T
	dir string // of the records, on this machine
	id  string
	// logged is how much the services of the last node had written before the fault.
	logged map[string]int
	// what was done, and when.
	what    string
	faultAt time.Time
	// hung: the kernel's DLM hangs, and nothing but an overlap can be judged.
	hung bool
	// looked: on which nodes what is waited for is to be seen.
	looked map[int]bool
	// hangIsOurs: it is a test's doing that the DLM does not get on, and no reason to play the case again.
	hangIsOurs bool
	// limit bounds an overlap that docs/guard.md says is not covered; 0 where there must be none.
	limit time.Duration
}

// faultCase is a fault, and who has to be rebooted after it.
type faultCase struct {
	name string
	run  func(*run)
	who  reboot
}

// play has one fault after the other, each on what begin returns.
func (s *suite) play(t *testing.T, begin func(*testing.T) *run, cases []faultCase) {
	for _, c := range cases {
		s.try(t, c.name, func(t *testing.T) {
			r := begin(t)
			t.Cleanup(func() { r.end(c.who) })
			c.run(r)
		})
	}
}

// begin waits until all nodes are well and has the last one write.
func (s *suite) begin(t *testing.T) *run {
	t.Helper()
	r := s.ready(t)
	r.hold()
	r.awaitPromise()
	r.mark()
	return r
}

// ready waits until all nodes are well.
func (s *suite) ready(t *testing.T) *run {
	t.Helper()
	r := s.prepare(t)
	for _, n := range s.Nodes() {
		r.await(n.Name()+" to be well", 2*time.Minute, func() bool { return r.well(n.ID()) })
	}
	r.mark()
	return r
}

// awaitPromise waits until all others count on the last node.
func (r *run) awaitPromise() {
	r.t.Helper()
	if r.fencing != "" {
		return // nothing is promised
	}
	r.await(fmt.Sprintf("the others to have the promise of node %d", r.last), 30*time.Second, func() bool {
		return !slices.ContainsFunc(r.others(), func(id int) bool { return !r.promised(id) })
	})
}

// logConsole is the log with what a node's kernel says.
const logConsole = "console"

// mark says that what the last node has logged until now is not due to the fault that comes.
func (r *run) mark() {
	r.t.Helper()
	for _, name := range []string{lab.ServiceLock, lab.ServiceCorosync, logConsole} {
		r.logged[name] += len(r.log(name))
	}
}

func (s *suite) prepare(t *testing.T) *run {
	t.Helper()
	s.runs++
	r := &run{suite: s, t: t, id: fmt.Sprintf("run%d", s.runs), dir: filepath.Join(s.Shared(), fmt.Sprintf("run%d", s.runs)), logged: map[string]int{}, looked: map[int]bool{}}
	r.must(os.Mkdir(r.dir, 0o777))
	return r
}

// hold has the last node write.
func (r *run) hold() {
	r.t.Helper()
	r.write(r.last)
	r.await(fmt.Sprintf("node %d to write", r.last), time.Minute, func() bool { return len(r.records(r.last)) > enough })
}

// contend has node 1 ask for what the last node has.
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
	clear(r.looked)
	ctx, cancel := context.WithTimeout(r.ctx, most)
	defer cancel()
	if err := lab.WaitFor(ctx, what, func(context.Context) (bool, error) { return done(), nil }); err != nil {
		r.skipIfKernelHangs(err)
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
	r.looks(node)
	res, err := r.Node(node).Exec(r.ctx, "vmlockctl", "status", "--json")
	r.must(err)
	var st control.Status
	if !res.OK() || json.Unmarshal([]byte(res.Stdout), &st) != nil || st.Cluster == nil || st.Cluster.Guard == nil {
		return nil
	}
	return &st
}

// well reports whether a node is in the lockspace with all others, guards, and
// holds off for nobody.
func (r *run) well(node int) bool {
	r.t.Helper()
	st := r.status(node)
	if !r.whole(st) {
		return false
	}
	g := st.Cluster.Guard
	if r.fencing != "" {
		return g.Mode == "fencing" && g.Refuses == ""
	}
	return g.Mode == "freeze" && g.Promise && g.Lost == "" && len(g.Vanished) == 0
}

// whole reports whether all nodes are in the cluster, each with a vmlockd, and the lockspace runs.
func (s *suite) whole(st *control.Status) bool {
	return st != nil && len(st.Members) == s.nodes && st.Cluster.Lockspace.State == control.LockspaceRunning &&
		!slices.ContainsFunc(st.Members, func(m control.Member) bool { return m.Member != control.Yes || m.Version == "" })
}

// promised reports whether a node has noted that the last one gives a promise.
func (r *run) promised(node int) bool {
	r.t.Helper()
	r.looks(node)
	b, err := r.Node(node).ReadFile(r.ctx, "/run/vmlockd/guard.json")
	if errors.Is(err, lab.ErrNotFound) {
		return false
	}
	r.must(err)
	var noted struct {
		Words map[uint32]struct{ Promise bool }
	}
	r.must(json.Unmarshal(b, &noted))
	return noted.Words[uint32(r.last)].Promise
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
func (r *run) records(node int) []time.Time {
	r.t.Helper()
	r.looks(node)
	return r.recordsOf(fmt.Sprintf("n%d", node))
}

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
	r.looks(node)
	b, err := r.Node(node).Log(r.ctx, r.name(node))
	if errors.Is(err, lab.ErrNotFound) {
		return "" // nothing yet
	}
	r.must(err)
	return string(b)
}

// log is what a service of the last node has written since the fault; before that, all.
func (r *run) log(service string) string {
	r.t.Helper()
	r.looks(r.last)
	b, err := r.loser().Log(r.ctx, service)
	r.must(err)
	return string(b[min(r.logged[service], len(b)):])
}

// logs reports whether vmlockd on the last node has logged an event since the fault.
func (r *run) logs(event string) bool {
	r.t.Helper()
	return strings.Contains(r.log(lab.ServiceLock), "event="+event+" ")
}

func (r *run) awaitLog(event string, most time.Duration) {
	r.t.Helper()
	r.await(r.loser().Name()+" to log "+event, most, func() bool { return r.logs(event) })
}

// What has to be rebooted after a fault.
type reboot int

const (
	nobody reboot = iota
	theLoser
	everybody
)

// end leaves nodes that are well, and judges. After a failure the last node is rebooted at least.
func (r *run) end(who reboot) {
	r.t.Helper()
	if r.hung {
		if len(r.records(r.last)) > 0 && len(r.records(1)) > 0 {
			r.judge()
		}
		return
	}
	err := r.writer(1).Stop(r.ctx)
	if err != nil && !errors.Is(err, lab.ErrNotFound) {
		r.t.Error(err)
	}
	switch {
	case who == everybody || r.t.Failed() && r.nodes == 2:
		r.rebootAll()
	case who == theLoser || r.t.Failed():
		r.rebootLoser()
	default:
		// It is not there any more where the test has rebooted all nodes itself.
		if err := r.writer(r.last).Stop(r.ctx); err != nil && !errors.Is(err, lab.ErrNotFound) {
			r.t.Error(err)
		}
	}
	r.judge()
	if !r.t.Failed() {
		r.rows = append(r.rows, r.row())
	}
}

// rebootLoser has only the last node without power for a while.
func (r *run) rebootLoser() {
	r.t.Helper()
	n := r.loser()
	ctx, cancel := context.WithTimeout(r.ctx, 3*time.Minute)
	defer cancel()
	err := n.PowerCut(ctx)
	for _, id := range r.others() { // see lab.Node.Boot
		if err == nil {
			err = r.Node(id).WaitRing(ctx, r.others()...)
		}
		if err == nil {
			err = r.Node(id).WaitMembers(ctx, r.others()...)
		}
	}
	for _, do := range []func(context.Context) error{n.Heal, n.Boot, func(ctx context.Context) error { return n.WaitMembers(ctx, append(r.others(), r.last)...) }} {
		if err == nil {
			err = do(ctx)
		}
	}
	if err != nil {
		r.t.Errorf("node %d cannot be used any more: %v", r.last, err)
	}
}

// rebootAll has all nodes without power for a moment.
func (r *run) rebootAll() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 3*time.Minute)
	defer cancel()
	var err error
	for _, n := range r.Nodes() {
		err = errors.Join(err, n.PowerCut(ctx))
	}
	for _, n := range r.Nodes() {
		err = errors.Join(err, n.Heal(ctx), n.Boot(ctx))
	}
	if err == nil {
		err = r.WaitQuorate(ctx)
	}
	if err != nil {
		r.t.Errorf("the nodes cannot be used any more: %v", err)
	}
}

// judge fails the test if the last node has written after node 1 began, and says how long
// nobody could. Nobody writes any more.
func (r *run) judge() {
	r.t.Helper()
	old, fresh := len(r.records(r.last)), len(r.records(1))
	if old == 0 || fresh == 0 {
		r.t.Errorf("%d records of node %d and %d of node 1: nothing can be judged", old, r.last, fresh)
		return
	}
	switch pause := r.pause(); {
	case pause > 0:
		r.step("%d records of node %d, %d of node 1, nothing for %v between", old, r.last, fresh, pause.Round(time.Millisecond))
	case -pause < r.limit:
		r.step("node %d wrote %v after node 1 had begun, which is not covered", r.last, -pause)
	default:
		r.t.Errorf("OVERLAP: node %d wrote %v after node 1 had begun", r.last, -pause)
	}
}

// pause is from the last record of the last node to the first of node 1. It is negative if
// both have written at once.
func (r *run) pause() time.Duration {
	r.t.Helper()
	old, fresh := r.records(r.last), r.records(1)
	return fresh[0].Sub(old[len(old)-1])
}

// handOver ends the writer of the last node, which still has the lock, and waits for node 1's.
func (r *run) handOver() {
	r.t.Helper()
	r.idle()
	r.must(r.writer(r.last).Stop(r.ctx))
	r.goesOn(1, 30*time.Second)
}

// idle fails the test if node 1 has had the lock.
func (r *run) idle() {
	r.t.Helper()
	if n := len(r.records(1)); n > 0 {
		r.t.Fatalf("node 1 has written %d records while node %d had the lock", n, r.last)
	}
}

// killed fails the test unless the guard has killed the writer of the last node.
func (r *run) killed() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	st, err := r.writer(r.last).Wait(ctx)
	r.must(err)
	if st.Status != statusKilled {
		r.t.Errorf("the writer of node %d has ended with status %d, and not by SIGKILL", r.last, st.Status)
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
