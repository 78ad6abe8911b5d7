package chaos_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/lab"
)

// shape is a kind of cluster that faults are done to: how many nodes, how they are guarded, who writes, and so what may be done to them.
type shape struct {
	name    string
	nodes   int
	grace   time.Duration
	holdOff time.Duration
	guard   []string // further lines of the configuration's part about the guard
	quorum  []string // further lines of corosync's about quorum
	modules []string // of the nodes' kernels, with parameters
	fencing lab.Fencing
	vms     bool // the owners are virtual machines
	disks   []disk
	specs   []spec
	// covers are the kinds that unguard a node which docs/guard.md covers here all the same, whatever else happens to that node.
	covers []kind
	// resets: nodes lose their power by themselves, or by the doing of others, and are booted by the operator.
	resets bool
	again  time.Duration // within which a lock is granted when all is well
}

// seedsEach is how many seeds a shape has: the first so many are of the first shape, and so on. So a seed says all.
const seedsEach = 1_000_000

// shapes must keep their order: seeds depend on it.
var shapes = []shape{
	{
		name: "three", nodes: 3, grace: 5 * time.Second, holdOff: 40 * time.Second, specs: specs, disks: disks, again: 30 * time.Second,
	},
	{
		// Each half has quorum, so that nobody is waited out: what the other one may have is refused until that is back, or an operator says that
		// it is off. So it does not matter whether its guard had run, or for how long it stood still.
		name: "two", nodes: 2, grace: 5 * time.Second, holdOff: 40 * time.Second, disks: disks, again: 30 * time.Second,
		quorum: []string{"two_node: 1", "wait_for_all: 1"},
		specs:  slices.Concat(specs, []spec{frozenLong}), covers: []kind{lockdKilled, lockdStands, lockdStopped},
	},
	{
		// The kernel grants nothing of a lost host before that is without power. Nobody is held off, so there is nothing to confirm.
		name: "fencing", nodes: 3, grace: 5 * time.Second, holdOff: 40 * time.Second, disks: disks, again: 30 * time.Second,
		fencing: lab.PowerFencing, resets: true,
		specs:  slices.Concat(slices.DeleteFunc(slices.Clone(specs), func(s spec) bool { return s.kind == powerConfirmed }), []spec{frozenLong}),
		covers: []kind{lockdKilled, lockdStands, lockdStopped},
	},
	{
		// A vmlockd that does not run, or is not where it was, has its host reset. One that is stopped disarms the watchdog: there the limits are those of three.
		name: "watchdog", nodes: 3, grace: 2 * time.Second, holdOff: 47 * time.Second, disks: disks, again: 30 * time.Second,
		// /dev/watchdog is one of User-Mode Linux, which the lab has not. Debian's kernel for it has nowayout set.
		guard: []string{`watchdog = "/dev/watchdog1"`, `watchdog_timeout = "10s"`}, modules: []string{"softdog nowayout=0"}, resets: true,
		specs: slices.Concat(resetting(specs), []spec{frozenLong}), covers: []kind{lockdKilled, lockdStands},
	},
	{
		name: "qemu", nodes: 3, grace: 5 * time.Second, holdOff: 40 * time.Second, specs: specs, again: 90 * time.Second,
		// Fewer than of the others: to be refused costs a node with libvirt more.
		vms: true, disks: []disk{{"b", 20 * time.Second}, {"c", 0}},
	},
}

// frozenLong is drawn where a host that goes on after others may have taken its locks is covered: at last somebody has waited for longer
// than any hold-off, and what it takes to notice.
var frozenLong = spec{kind: hostFrozenLong, weight: 3, from: 50 * time.Second, to: 90 * time.Second, loses: true, widely: true, gone: reboot, alone: true}

// resetting are kinds where a node whose vmlockd does not run is reset.
func resetting(list []spec) []spec {
	list = slices.Clone(list)
	for i := range list {
		if s := &list[i]; s.kind == lockdKilled || s.kind == lockdStands {
			s.loses, s.gone = true, reboot
		}
	}
	return list
}

// specOf is what a shape draws for a kind.
func (s *shape) specOf(k kind) spec {
	return s.specs[slices.IndexFunc(s.specs, func(s spec) bool { return s.kind == k })]
}

// exposes reports whether a kind leaves a node so that it must not lose the cluster.
func (s *shape) exposes(k kind) bool { return s.specOf(k).unguards && !slices.Contains(s.covers, k) }

// config is the text of vmlockd.toml. It has the default guard mode, and little more than the shortest times that corosync's timeouts in
// the lab allow: the longer the hold-off, the fewer grants there are.
func (s *shape) config() string {
	return fmt.Sprintf("backend = \"cluster\"\n[guard]\ngrace = %q\nhold_off = %q\n%s\n", s.grace, s.holdOff, strings.Join(s.guard, "\n"))
}

// guards reports whether a host has the cluster, and its vmlockd guards it.
func (s *shape) guards(st *control.Status) bool {
	if st == nil {
		return false
	}
	g := st.Cluster.Guard
	if s.fencing != "" {
		return g.Mode == "fencing" && g.Refuses == ""
	}
	return g.Mode == "freeze" && g.Promise && g.Lost == ""
}

// well reports whether a host guards, is in the lockspace with all others, and holds off for nobody.
func (s *shape) well(st *control.Status) bool {
	return s.guards(st) && st.Cluster.Lockspace.State == control.LockspaceRunning && len(st.Cluster.Guard.Vanished) == 0 && len(st.Members) == s.nodes &&
		!slices.ContainsFunc(st.Members, func(m control.Member) bool { return m.Member != control.Yes || m.Version == "" })
}

// shapeOf is the shape of a name; nil if there is none.
func shapeOf(name string) *shape {
	i := slices.IndexFunc(shapes, func(s shape) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return &shapes[i]
}

// choose is the seed and the shape that are asked for by their texts, each of which may be empty. A seed says which shape it is of; one of the
// first shape together with the name of another one is taken for the seed of that one at the same place, as people count from 0.
// Where something is not said, random, which gives a number below its argument, decides.
func choose(seed, name string, random func(uint64) uint64) (uint64, *shape, error) {
	most := seedsEach * uint64(len(shapes))
	var names []string
	for _, s := range shapes {
		names = append(names, s.name)
	}
	at := slices.Index(names, name)
	if name != "" && at < 0 {
		return 0, nil, fmt.Errorf("%s: %q is none of %s", shapeEnv, name, strings.Join(names, ", "))
	}
	base := seedsEach * uint64(max(at, 0))
	if seed == "" {
		if name == "" {
			n := random(most)
			return n, &shapes[n/seedsEach], nil
		}
		return base + random(seedsEach), &shapes[at], nil
	}
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil || n >= most {
		return 0, nil, fmt.Errorf("%s: %q is no number below %d", seedEnv, seed, most)
	}
	if name != "" && n < seedsEach {
		n += base
	}
	of := &shapes[n/seedsEach]
	if name != "" && of.name != name {
		return 0, nil, fmt.Errorf("%s=%d is a seed of the shape %q, and not of %q", seedEnv, n, of.name, name)
	}
	return n, of, nil
}
