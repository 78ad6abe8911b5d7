package guard_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestVirtualMachines has QEMU, started by stock libvirt, in the place of the writers: guests that count on their disks. What is
// wanted for each of them when the host is lost is said by its name.
func TestVirtualMachines(t *testing.T) {
	s := start(t, setup{
		nodes: 3, grace: 10 * time.Second, holdOff: 45 * time.Second, libvirt: true,
		guard: []string{"[[guard.vm]]", `name = "kept"`, `on_loss = "freeze"`},
	})
	s.try(t, "Cut", func(t *testing.T) {
		r := s.ready(t)
		for _, n := range r.Nodes() {
			r.must(n.WaitLibvirt(r.ctx))
		}
		r.virtualMachines()
	})
}

// guest is a virtual machine that counts on a disk that all nodes see.
func (r *run) guest(name string) lab.Domain {
	return lab.Domain{Name: name, Disks: []lab.Disk{{Path: lab.SharedDir + "/" + r.id + "/" + name + ".img"}}}
}

// counted is how far the guests have come.
func (r *run) counted() map[string]uint32 {
	r.t.Helper()
	all := map[string]uint32{}
	for _, name := range []string{"web", "kept"} {
		b, err := os.ReadFile(filepath.Join(r.dir, name+".img"))
		r.must(err)
		all[name] = lab.Counter(b)
	}
	return all
}

// still fails the test unless the guests are where they were.
func (r *run) still(what string, were map[string]uint32) {
	r.t.Helper()
	if now := r.counted(); !maps.Equal(now, were) {
		r.t.Fatalf("%s: the disks have %v, and had %v when their virtual machines were stopped", what, now, were)
	}
}

// count waits until a guest goes on from where it was.
func (r *run) count(name string, from uint32) {
	r.t.Helper()
	r.await(name+" to count", 90*time.Second, func() bool { return r.counted()[name] > from+enough })
}

// takes starts a guest on node 1 as soon as it may.
func (r *run) takes(name string, were map[string]uint32) {
	r.t.Helper()
	r.await("node 1 to have "+name, r.takeOver()+time.Minute, func() bool {
		r.still("before node 1 has "+name, were)
		res, err := r.Node(1).Create(r.ctx, r.guest(name))
		r.must(err)
		return res.OK()
	})
	r.count(name, were[name])
}

func (r *run) virtualMachines() {
	r.t.Helper()
	names := []string{"web", "kept"}
	for _, name := range names {
		r.must(os.WriteFile(filepath.Join(r.dir, name+".img"), lab.CountingGuest(), 0o600))
	}
	for _, name := range names {
		res, err := r.loser().Create(r.ctx, r.guest(name))
		r.must(err)
		if !res.OK() {
			r.t.Fatalf("start %s: %v", name, res)
		}
		r.count(name, 0)
	}
	res, err := r.Node(1).Create(r.ctx, r.guest("web"))
	r.must(err)
	if res.OK() {
		r.t.Fatal("node 1 has web, which runs on node 3")
	}
	r.awaitPromise()
	r.mark()
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 3 is cut off")
	r.await("node 3 to log that both are stopped", detection, func() bool {
		log := r.log(lab.ServiceLock)
		return strings.Contains(log, "vm=web reason") && strings.Contains(log, "vm=kept reason") && r.logs("guard-stopped")
	})
	were := r.counted()
	r.awaitLog("guard-killed", 30*time.Second)
	r.awaitLog("guard-left-stopped", 10*time.Second)
	r.await("libvirt of node 3 to have kept, and web no more", time.Minute, func() bool {
		res, err := r.loser().Virsh(r.ctx, "list", "--name")
		r.must(err)
		return !strings.Contains(res.Stdout, "web") && strings.Contains(res.Stdout, "kept")
	})
	r.still("after the grace", were)
	r.takes("web", were)
	// The operator decides: it ends, and writes nothing any more.
	before := r.counted()["kept"]
	res, err = r.loser().Destroy(r.ctx, "kept")
	r.must(err)
	if now := r.counted()["kept"]; !res.OK() || now != before || now != were["kept"] {
		r.t.Fatalf("destroy kept: %v; it had counted to %d when it was stopped, to %d before and to %d after", res, were["kept"], before, now)
	}
	res, err = r.Node(1).Create(r.ctx, r.guest("kept"))
	r.must(err)
	if !res.OK() {
		r.t.Fatalf("start kept on node 1: %v", res)
	}
	r.count("kept", before)
}
