package guard_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestFencing has clusters that fence. vmlockd is in its default mode there, too, and stops nobody.
func TestFencing(t *testing.T) {
	for _, c := range []struct {
		name string
		setup
		run func(*run)
	}{
		{"FenceAll", setup{fencing: lab.PowerFencing}, func(r *run) {
			r.fencedOff("node 3 is cut off, and `fence_all` in dlm.conf names a power switch")
		}},
		{"DeviceAndConnect", setup{fencing: lab.PowerFencing, files: map[string]string{"/etc/dlm/dlm.conf": devices}}, func(r *run) {
			r.fencedOff("node 3 is cut off, and `device` and `connect` in dlm.conf name a power switch")
		}},
		{"FenceFails", setup{fencing: lab.ScriptFencing, fenceScript: "#!/bin/sh\ntest -e " + fenceOK + "\n"}, fenceFails},
		{"SBDWithADisk", setup{fencing: lab.ScriptFencing, fenceScript: replaced(t, fencingPage(t, "dlm_controld has this agent:"), sbdDisk, lab.Device), deviceMB: 16}, sbdOff},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.nodes, c.grace, c.holdOff, c.table = 3, 10*time.Second, 45*time.Second, "fencing"
			s := start(t, c.setup)
			r := s.begin(t)
			c.run(r)
			r.must(r.writer(1).Stop(r.ctx))
			r.judge()
			if !t.Failed() {
				s.rows = append(s.rows, r.row())
			}
			s.writeFaults(t)
		})
	}
}

// devices is dlm.conf(5) with a power switch to which all nodes are connected. The lab's agent needs no more than the
// node=N that dlm_controld adds by itself.
const devices = `post_join_delay=3

device  switch /usr/local/sbin/fence_lab
connect switch node=1
connect switch node=2
connect switch node=3
`

// fencedOff waits for the power switch, and no hold-off.
func (r *run) fencedOff(what string) {
	r.contend()
	r.must(r.loser().Cut(r.ctx))
	r.fault(what)
	r.await("node 3 to be without power", detection, func() bool {
		st, err := r.loser().Status(r.ctx)
		r.must(err)
		return st.State == lab.NodeOff
	})
	r.goesOn(1, detection)
	if said := r.said(1); strings.Contains(said, "seconds more") {
		r.t.Errorf("node 1 was held off:\n%s", said)
	}
}

// fenceOK is there once the agent of FenceFails can fence.
const fenceOK = "/run/fence-ok"

// fenceFails: the kernel's DLM waits until the node was fenced, however long that takes, and vmlockd says so.
func fenceFails(r *run) {
	r.contend()
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 3 is cut off, and its fence agent fails until its power is cut by hand, 15 s after node 1 has said what is waited for")
	r.await("status of node 1 to say what is waited for", detection, func() bool {
		st := r.status(1)
		return st != nil && strings.Contains(st.Cluster.Lockspace.WaitsFor, "fenc")
	})
	over := time.NewTimer(15 * time.Second)
	defer over.Stop()
	select {
	case <-over.C:
	case <-r.ctx.Done():
	}
	r.goesOn(3, 10*time.Second) // nobody has stopped it
	r.idle()
	r.must(r.loser().PowerCut(r.ctx))
	for _, id := range r.others() {
		r.must(r.Node(id).WriteFile(r.ctx, fenceOK, nil, 0o644))
	}
	r.goesOn(1, detection)
}

// sbdDisk is what docs/fencing.md calls the disk.
const sbdDisk = "/dev/disk/by-id/SBD-DISK"

// sbdOff: the agent of docs/fencing.md writes to the disk of sbd, which switches its host off, or softdog does.
func sbdOff(r *run) {
	if _, err := exec.LookPath("sbd"); err != nil {
		r.t.Fatalf("%s=1, and there is no sbd: scripts/install-deps more", lab.Env)
	}
	r.sh(1, "sbd -d "+lab.Device+" create")
	env := strings.Fields(replaced(r.t, fencingPage(r.t, "It needs no Pacemaker for that"), "SBD_DEVICE=\""+sbdDisk+"\"", "SBD_DEVICE="+lab.Device, "/dev/watchdog", "/dev/watchdog1"))
	for _, n := range r.Nodes() {
		r.sh(n.ID(), "modprobe softdog nowayout=0")
		_, err := n.StartEnv(r.ctx, "sbd", env, "sbd", "-p", "/run/sbd.pid", "watch")
		r.must(err)
		r.await("sbd of "+n.Name()+" to have a slot", time.Minute, func() bool {
			return strings.Contains(r.sh(1, "sbd -d "+lab.Device+" list"), n.Name()+"\tclear")
		})
	}
	r.contend()
	r.logged[logConsole] = len(r.log(logConsole))
	r.must(r.loser().Cut(r.ctx))
	r.fault("node 3 is cut off, and `fence_all` in dlm.conf names the agent for sbd with a disk")
	r.await("sbd to have node 3 off", 2*detection, r.isReset)
	r.must(r.loser().PowerCut(r.ctx))
	r.goesOn(1, detection)
}
