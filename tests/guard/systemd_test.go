package guard_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// scope is the unit in which the last node's writer is, as systemd-machined has a virtual machine.
const scope = `machine-qemu\x2d1\x2dweb.scope`

// TestSystemd has vmlockd under real systemd, with the unit of the package as it is: on a cluster, with a lock that is held all the time and
// that another node wants.
func TestSystemd(t *testing.T) {
	s := startSystemd(t, lab.Config{})
	r := s.prepare(t)
	for _, n := range r.Nodes() {
		r.sh(n.ID(), "systemctl start vmlockd")
		// It has said that it is ready, and is: nothing is waited for here.
		if u, st := r.unit(n.ID()), r.status(n.ID()); u["ActiveState"] != "active" || u["SubState"] != "running" || st == nil || fmt.Sprint(st.PID) != u["MainPID"] {
			r.t.Fatalf("%s: the unit is started and is %v, and vmlockd says %s", n.Name(), u, text(st))
		}
	}
	for _, n := range r.Nodes() {
		r.await(n.Name()+" to be well", 2*time.Minute, func() bool { return r.well(n.ID()) })
	}
	r.holdInScope()
	r.awaitPromise()
	r.contend()

	r.again("systemctl reload vmlockd", true)
	r.again("systemctl restart vmlockd", false)
	r.again("systemctl kill --kill-whom=main --signal=KILL vmlockd", false)
	if u := r.unit(3); u["NRestarts"] != "1" {
		t.Errorf("after a SIGKILL the unit is %v", u)
	}
	// The unit's three minutes are too long for a test.
	r.sh(3, "mkdir -p /run/systemd/system/vmlockd.service.d && printf '[Service]\\nWatchdogSec=10s\\n' >/run/systemd/system/vmlockd.service.d/test.conf && systemctl daemon-reload")
	r.again("systemctl restart vmlockd", false)
	r.again("systemctl kill --kill-whom=main --signal=STOP vmlockd", false)
	if log := r.sh(3, "journalctl --unit vmlockd"); !strings.Contains(log, "Watchdog timeout") {
		t.Errorf("it was not the watchdog that has ended a vmlockd that hangs:\n%s", log)
	}
	r.sh(3, "systemctl stop vmlockd")
	if u := r.unit(3); u["ActiveState"] != "inactive" || u["Result"] != "success" {
		t.Errorf("after a stop the unit is %v", u)
	}
	r.step("vmlockd of node 3 is stopped")
	r.goesOn(3, 10*time.Second)
	r.idle()
	r.sh(3, "systemctl start vmlockd")
	r.hasLock()

	for _, n := range r.Nodes() {
		r.await(n.Name()+" to be well", 2*time.Minute, func() bool { return r.well(n.ID()) })
	}
	r.awaitPromise()
	r.frozenInScope()
}

// TestPacemakerSystemd has Pacemaker run vmlockd by the unit of the package, as docs/fencing.md has it.
func TestPacemakerSystemd(t *testing.T) {
	s := startSystemd(t, lab.Config{NoControld: true, Files: map[string]string{
		"/etc/default/sbd":  "",
		"/etc/dlm/dlm.conf": "post_join_delay=3\nenable_fencing=0\n",
		"/etc/systemd/system/vmlockd.service.d/pacemaker.conf": fencingPage(t, "vmlockd.service.d/pacemaker.conf"),
	}})
	r := s.prepare(t)
	for _, n := range r.Nodes() {
		r.must(n.WaitRing(r.ctx, 1, 2, 3))
		r.sh(n.ID(), "mkdir -p /run/crm /run/resource-agents && chown hacluster:haclient /run/crm && chown -R hacluster:haclient /var/lib/pacemaker && "+
			"rm -f /var/lib/pacemaker/*/* && systemctl start vmlockd && systemctl start pacemaker")
		// As at boot, where it is enabled.
		if u := r.unit(n.ID()); u["ActiveState"] != "inactive" {
			t.Fatalf("%s: vmlockd is started before dlm_controld: %v", n.Name(), u)
		}
	}
	r.awaitPacemaker()
	page := fencingPage(t, "With crm:")
	before, rest, _ := strings.Cut(page, "primitive web ")
	_, after, _ := strings.Cut(rest, "property ")
	r.sh(1, "crm configure <<'END'\n"+replaced(t, before+"property "+after, withoutFencing(t)...)+"commit\nquit\nEND\n")
	r.awaitMode("freeze")
	r.unfailed("after the start")
	r.doctorKnowsCondition(2)
	r.write(3)
	r.hasLock()
	r.awaitPromise()
	r.contend()
	// Pacemaker's drop-in for what it starts has Restart=no.
	r.again("systemctl kill --kill-whom=main --signal=KILL vmlockd", false)
	r.again("systemctl reload vmlockd", true)
	r.must(r.writer(3).Stop(r.ctx))
	r.goesOn(1, time.Minute)
	r.must(r.writer(1).Stop(r.ctx))
	r.judge()
	r.sh(1, "crm_resource --resource locks-all --meta --set-parameter target-role --parameter-value Stopped")
	for _, n := range r.Nodes() {
		r.await("vmlockd and dlm_controld of "+n.Name()+" to have ended", 4*time.Minute, func() bool {
			res, err := n.Exec(r.ctx, "pgrep", "-x", "dlm_controld")
			r.must(err)
			return !res.OK() && r.unit(n.ID())["ActiveState"] == "inactive"
		})
	}
	r.unfailed("after a stop")
}

// doctorKnowsCondition: doctor, who reads Pacemaker's configuration and the unit, finds the drop-in missing only if it is.
func (r *run) doctorKnowsCondition(node int) {
	r.t.Helper()
	const finding, dropin = "unit-pacemaker", "/etc/systemd/system/vmlockd.service.d/pacemaker.conf"
	r.sh(node, "systemctl enable vmlockd")
	found := func() (string, bool) {
		out := r.sh(node, "vmlockctl doctor || [ $? = 7 ]")
		return out, strings.Contains(out, finding)
	}
	if out, is := found(); is {
		r.t.Errorf("%s with the drop-in: %s", finding, out)
	}
	r.sh(node, "mv "+dropin+" /root/pacemaker.conf")
	if out, is := found(); !is {
		r.t.Errorf("no %s without the drop-in: %s", finding, out)
	}
	r.sh(node, "mv /root/pacemaker.conf "+dropin)
}

// startSystemd boots three nodes with systemd, on which vmlockd is installed as by the package, and not started.
func startSystemd(t *testing.T, cfg lab.Config) *suite {
	t.Helper()
	c := setup{nodes: 3, grace: 10 * time.Second, holdOff: 45 * time.Second}
	cfg.Nodes, cfg.Systemd, cfg.MemoryMB = c.nodes, true, 640
	cfg.Binaries = map[string]string{"vmlockd": binaries.vmlockd, "vmlockctl": binaries.vmlockctl, "writer": binaries.writer}
	files := map[string]string{
		"/etc/vmlockd/vmlockd.toml":                             c.config(),
		"/lib/systemd/system/vmlockd.service.d/50-vmlockd.conf": must(os.ReadFile("../../packaging/dropins/vmlockd.service.conf")),
		"/lib/systemd/system/vmlockd.service":                   must(os.ReadFile("../../packaging/vmlockd.service")),
	}
	for name, text := range cfg.Files {
		files[name] = text
	}
	cfg.Files = files
	lab.Need(t, cfg)
	for _, name := range []string{"/lib/systemd/systemd", "dbus-daemon", "systemctl"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%s=1, and there is no %s: scripts/install-deps more", lab.Env, name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	s := &suite{Lab: lab.ForTest(t, cfg), setup: c, ctx: ctx, last: c.nodes}
	t.Cleanup(func() { s.keepJournals(t) })
	for _, n := range s.Nodes() {
		if _, err := n.MustSucceed(s.ctx, "sh", "-c", `ln -s "$(command -v vmlockd)" /usr/sbin/vmlockd`); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// keepJournals puts the nodes' journals beside the other logs.
func (s *suite) keepJournals(t *testing.T) {
	for _, n := range s.Nodes() {
		res, err := n.Exec(s.ctx, "journalctl", "--no-pager", "--output=short-precise")
		if err != nil {
			continue // it has no power, perhaps
		}
		if err := os.WriteFile(filepath.Join(s.LogDir(), n.Name(), "journal.log"), []byte(res.Stdout), 0o644); err != nil {
			t.Log(err)
		}
	}
}

// unit is what systemd says of vmlockd's.
func (r *run) unit(node int) map[string]string {
	r.t.Helper()
	u := map[string]string{}
	for line := range strings.Lines(r.sh(node, "systemctl show vmlockd.service --property ActiveState,SubState,MainPID,NRestarts,Result")) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			u[key] = value
		}
	}
	return u
}

// holdInScope has the last node write, in a scope as that of a virtual machine.
func (r *run) holdInScope() {
	r.t.Helper()
	_, err := r.loser().Start(r.ctx, r.name(r.last), "systemd-run", "--quiet", "--scope", "--slice=machine.slice", "--unit="+scope,
		"writer", lab.SharedDir+"/"+r.id, fmt.Sprintf("n%d", r.last), "/disk/"+r.id)
	r.must(err)
	r.await(fmt.Sprintf("node %d to write", r.last), time.Minute, func() bool { return len(r.records(r.last)) > enough })
}

// again runs a command after which there is another instance of vmlockd on the last node, with the same pid or not, which has the lock of the
// writer there; meanwhile nobody else has had it.
func (r *run) again(command string, same bool) {
	r.t.Helper()
	before := r.status(r.last)
	if before == nil {
		r.t.Fatalf("vmlockd does not answer before %s", command)
	}
	r.sh(r.last, command)
	r.step("%s", command)
	r.await("another instance of vmlockd to serve", time.Minute, func() bool {
		st := r.status(r.last)
		return st != nil && st.Started.After(before.Started)
	})
	if st := r.status(r.last); st == nil || (st.PID == before.PID) != same || r.unit(r.last)["MainPID"] != fmt.Sprint(st.PID) {
		r.t.Errorf("%s: the pid was %d, and now vmlockd says %s, and systemd %v", command, before.PID, text(st), r.unit(r.last))
	}
	r.hasLock()
}

// hasLock waits until vmlockd of the last node has the lock of the writer there, which goes on, and which nobody else has had.
func (r *run) hasLock() {
	r.t.Helper()
	r.await("vmlockd to have the lock", time.Minute, func() bool {
		st := r.status(r.last)
		return st != nil && st.Counts.Locks == 1
	})
	r.goesOn(r.last, time.Minute)
	r.idle()
}

// frozenInScope cuts the last node off, and sees the guard freeze the writer's scope.
func (r *run) frozenInScope() {
	r.t.Helper()
	path := r.sh(r.last, "echo -n /sys/fs/cgroup$(systemctl show --property ControlGroup --value '"+scope+"')")
	r.must(r.loser().Cut(r.ctx))
	r.step("node %d is cut off", r.last)
	r.await("the writer's scope to be frozen", detection, func() bool { return strings.Contains(r.sh(r.last, "cat '"+path+"/cgroup.events'"), "frozen 1") })
	r.killed()
	r.await("node 1 to write", r.takeOver(), func() bool { return len(r.records(1)) > enough })
	r.must(r.writer(1).Stop(r.ctx))
	r.judge()
}
