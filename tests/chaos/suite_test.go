// Package chaos_test does one thing after another, and several at once, to real nodes, as a seed
// wants it, while writers on all of them compete for disks; and judges at the end that no two of
// them have had one at once. Clusters have several shapes, with fencing and without, which the seed
// decides as well. docs/chaos.md is about it.
//
// A seed gives the same faults at the same moments each time (draw). What the nodes make of
// them depends on time as well.
//
//	VMLOCKD_CHAOS_SEED  the seed; otherwise a new one each time
//	VMLOCKD_CHAOS_SHAPE the shape, if the seed is not to decide it: three, two, fencing, watchdog or qemu
//	VMLOCKD_CHAOS_TIME  for how long there are faults, such as 10m; otherwise 2m
//	VMLOCKD_LAB_LOGS    where the lab's logs, and Porcupine's pictures of a failure, go
package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

const controlSocket = "/run/vmlockd/control.sock"

const (
	seedEnv  = "VMLOCKD_CHAOS_SEED"
	shapeEnv = "VMLOCKD_CHAOS_SHAPE"
	timeEnv  = "VMLOCKD_CHAOS_TIME"
)

// disks are what writers want, and for how long at a time. The last one is kept until its
// writer ends: there is always somebody who has something to lose.
var disks = []disk{{"a", 3 * time.Second}, {"b", 20 * time.Second}, {"c", 0}}

type disk struct {
	name string
	turn time.Duration
}

var binaries struct{ vmlockd, vmlockctl, writer string }

func TestMain(m *testing.M) {
	lab.Main(m, map[*string]string{
		&binaries.vmlockd:   "github.com/vmlockd/vmlockd/cmd/vmlockd",
		&binaries.vmlockctl: "github.com/vmlockd/vmlockd/cmd/vmlockctl",
		&binaries.writer:    "github.com/vmlockd/vmlockd/tests/guard/writer",
	})
}

// world is the lab, and what happens in it.
type world struct {
	*lab.Lab
	t        *testing.T
	ctx      context.Context
	shape    *shape
	seed     uint64
	whole    time.Duration
	schedule []fault
	hosts    []*host

	mu      sync.Mutex // guards what follows
	began   time.Time  // when the time of the schedule began
	notes   []string   // what happened, and when
	done    map[kind]int
	missed  int                 // of the schedule, as there was nothing to do it to
	reboots []string            // why, of all that an operator did
	hangs   int                 // of the kernel's DLM, of all those
	refused int                 // of all those, as dlm_controld had refused a message
	changes int                 // of all those, in a change of the lockspace that had not ended for another reason
	resets  int                 // by watchdogs
	writers map[string][]writer // by disk

	guestsMu sync.Mutex          // guards what follows
	guests   map[string][]*guest // turns of virtual machines, by disk
}

// host is a node, and what is being done to it.
type host struct {
	*lab.Node
	starts    sync.RWMutex // held while a virtual machine is being started
	mu        sync.Mutex   // guards what follows
	faults    int          // that last
	rebooting bool         // by an operator
	closed    bool         // no writer is started
	unguarded int          // faults for which its vmlockd does not run, and nothing else covers it
}

func (h *host) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *host) is(f func() bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return f()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	seed, of, err := choose(os.Getenv(seedEnv), os.Getenv(shapeEnv), rand.Uint64N)
	if err != nil {
		t.Fatal(err)
	}
	cfg := lab.Config{
		Nodes: of.nodes, VMLockd: binaries.vmlockd, VMLockdConfig: func(int) string { return of.config() }, QuorumOptions: of.quorum, Fencing: of.fencing, Libvirt: of.vms,
		Binaries: map[string]string{"vmlockctl": binaries.vmlockctl, "writer": binaries.writer}, Modules: slices.Concat(linkModules, of.modules),
	}
	lab.Need(t, cfg)
	w := &world{
		t: t, shape: of, seed: seed, whole: 2 * time.Minute, began: time.Now(),
		done: map[kind]int{}, writers: map[string][]writer{}, guests: map[string][]*guest{},
	}
	if s := os.Getenv(timeEnv); s != "" {
		if w.whole, err = time.ParseDuration(s); err != nil || w.whole < time.Minute {
			t.Fatalf("%s: %q is no duration of a minute or more, such as 10m", timeEnv, s)
		}
	}
	w.schedule = of.draw(w.seed, w.whole)
	t.Logf("shape %s, seed %d, %v:\n%s\nagain: %s", of.name, w.seed, w.whole, w.planned(), w.again())
	ctx, cancel := context.WithTimeout(context.Background(), w.whole+20*time.Minute)
	t.Cleanup(cancel)
	w.ctx, w.Lab = ctx, lab.ForTest(t, cfg)
	for _, n := range w.Nodes() {
		w.hosts = append(w.hosts, &host{Node: n})
	}
	return w
}

// again is the command that plays the same schedule.
func (w *world) again() string {
	return fmt.Sprintf("make chaos CHAOS_SHAPE=%s CHAOS_SEED=%d CHAOS_TIME=%v", w.shape.name, w.seed, w.whole)
}

func (w *world) planned() string {
	var lines []string
	for _, f := range w.schedule {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n")
}

// note says what happened, with the time since the schedule began.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	line := fmt.Sprintf("%s %6.1f s  %s", now.UTC().Format("15:04:05.000"), now.Sub(w.began).Seconds(), fmt.Sprintf(format, args...))
	w.notes = append(w.notes, line)
	w.t.Log(line)
}

// wait waits for a time to be over, and reports whether the test goes on.
func (w *world) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// status is what vmlockd says of itself; nil while there is no answer. It is asked from here: to
// start vmlockctl in a node takes that long on a busy machine that faults would be late.
func (w *world) status(h *host) *control.Status {
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vmlockd/v1/status", nil)
	if err != nil {
		w.t.Error(err)
		return nil
	}
	resp, err := h.HTTPClient(controlSocket).Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var st control.Status
	if json.NewDecoder(resp.Body).Decode(&st) != nil || st.Cluster == nil || st.Cluster.Guard == nil {
		return nil
	}
	return &st
}

// brief is a status in one line.
func brief(st *control.Status) string {
	if st == nil {
		return "vmlockd does not answer"
	}
	var members []uint32
	for _, m := range st.Members {
		if m.Member == control.Yes {
			members = append(members, m.NodeID)
		}
	}
	g, l := st.Cluster.Guard, st.Cluster.Lockspace
	return fmt.Sprintf("lockspace %s %s, members %v, quorate %s, promise %v, lost %q, %d vanished %+v", l.State, l.WaitsFor, members, st.Cluster.Quorate, g.Promise, g.Lost, len(g.Vanished), g.Vanished)
}

// allWell waits until all hosts are, and says of each how it is if that takes too long.
func (w *world) allWell(most time.Duration) error {
	ctx, cancel := context.WithTimeout(w.ctx, most)
	defer cancel()
	var last []string
	err := lab.WaitFor(ctx, "all nodes to be well", func(ctx context.Context) (bool, error) {
		last = nil
		ok := true
		for _, h := range w.hosts {
			st := w.status(h)
			last = append(last, h.Name()+": "+brief(st))
			ok = ok && w.shape.well(st)
		}
		return ok || !w.wait(ctx, time.Second), nil
	})
	if err == nil && ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("not all nodes are well after %v:\n%s", most, strings.Join(last, "\n"))
}

// dir is where the writers of a disk write.
func (w *world) dir(d disk) string { return filepath.Join(w.Shared(), d.name) }
