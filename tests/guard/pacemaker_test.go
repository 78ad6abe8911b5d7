package guard_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

// TestPacemaker has real Pacemaker start dlm_controld, vmlockd and, after them, a writer in the place of a virtual machine, with
// the commands of docs/fencing.md, and sbd without a disk, on softdog: the host that is cut off is reset, and only then
// another one gets the lock.
func TestPacemaker(t *testing.T) {
	for _, shell := range []struct {
		name, command string
		commands      func(t *testing.T) string
	}{
		{"crm", "crm", crmCommands},
		{"pcs", "pcs", pcsCommands},
	} {
		t.Run(shell.name, func(t *testing.T) {
			s := startPacemaker(t, setup{nodes: 3, grace: 10 * time.Second, holdOff: 45 * time.Second, table: "fencing"}, shell.command, lab.Config{
				MemoryMB: 640,
				Files:    map[string]string{"/etc/default/sbd": sbdDefaults(t), agentDir + "lab/writer": writerAgent},
			})
			r := s.prepare(t)
			r.pacemaker(true)
			r.sh(1, shell.commands(t))
			r.cutOff(shell.name)
		})
	}
}

// pacemakerPrograms are of the Debian packages pacemaker, pacemaker-cli-utils, crmsh, pcs, resource-agents and sbd.
var pacemakerPrograms = []string{"pacemakerd", "crm_mon", "crm_attribute", "sbd", "killall"}

// startPacemaker boots nodes on which Pacemaker can run dlm_controld and vmlockd, with the settings and the files of cfg besides. What the
// shell is called is one of the programs that have to be there.
func startPacemaker(t *testing.T, c setup, shell string, cfg lab.Config) *suite {
	t.Helper()
	cfg.Nodes, cfg.NoControld, cfg.Libvirt = c.nodes, true, c.libvirt
	cfg.Binaries = map[string]string{"vmlockd": binaries.vmlockd, "vmlockctl": binaries.vmlockctl, "writer": binaries.writer}
	files := map[string]string{
		"/etc/vmlockd/vmlockd.toml":  c.config(),
		"/etc/dlm/dlm.conf":          "post_join_delay=3\n", // no agent: dlm_controld asks Pacemaker
		agentDir + "vmlockd/vmlockd": must(os.ReadFile("../../packaging/ocf/vmlockd")),
	}
	maps.Copy(files, cfg.Files)
	cfg.Files = files
	lab.Need(t, cfg)
	for _, name := range append([]string{shell}, pacemakerPrograms...) {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%s=1, and there is no %s: scripts/install-deps more", lab.Env, name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	return &suite{Lab: lab.ForTest(t, cfg), setup: c, ctx: ctx, last: c.nodes}
}

// agentDir is where Pacemaker finds OCF agents.
const agentDir = "/usr/lib/ocf/resource.d/"

func must(b []byte, err error) string {
	if err != nil {
		panic(err)
	}
	return string(b)
}

// writerAgent runs a writer, as VirtualDomain does a virtual machine: started is what has its lock.
// A zombie has ended.
const writerAgent = `#!/bin/sh
pid=/run/writer.pid dir=` + lab.SharedDir + `/run1 who=n$(hostname | tr -dc 0-9)
runs() { kill -0 "$(cat $pid 2>/dev/null)" 2>/dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$(cat $pid)/status"; }
case $1 in
meta-data) cat <<'END'
<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="writer" version="1.0"><version>1.0</version><longdesc lang="en">a writer</longdesc><shortdesc lang="en">a writer</shortdesc>
<parameters/><actions><action name="start" timeout="120s"/><action name="stop" timeout="20s"/><action name="monitor" timeout="20s" interval="30s"/>
<action name="meta-data" timeout="5s"/></actions></resource-agent>
END
;;
start)
	runs && exit 0
	setsid writer $dir $who /disk/web >>/run/writer.log 2>&1 </dev/null & echo $! >$pid
	until ls $dir | grep -q "^$who-"; do runs || exit 1; sleep 1; done ;;
stop) kill "$(cat $pid 2>/dev/null)" 2>/dev/null; while runs; do sleep 1; done; rm -f $pid ;;
monitor) runs || exit 7 ;;
*) exit 3 ;;
esac
exit 0
`

// fencingPage are the indented blocks of docs/fencing.md that follow a line with these words.
func fencingPage(t *testing.T, after string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "fencing.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), after)
	if !ok {
		t.Fatalf("docs/fencing.md does not say %q any more", after)
	}
	var block strings.Builder
	for line := range strings.Lines(rest) {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			block.WriteString(code)
		} else if block.Len() > 0 && strings.TrimSpace(line) != "" {
			break
		}
	}
	return block.String()
}

// replaced is text with what the lab has not in the words of what it has. Each must be there once.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(text, pairs[i]) != 1 {
			t.Fatalf("docs/fencing.md does not have %q once:\n%s", pairs[i], text)
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

// The page has 5 s for the watchdog, and 15 s after which who was lost counts as reset. Nodes that share two processors need more to start
// Pacemaker in: with 5 s one of twelve was reset meanwhile.
const (
	pageDog, slowDog     = "SBD_WATCHDOG_TIMEOUT=5\n", "SBD_WATCHDOG_TIMEOUT=10\n"
	pageReset, slowReset = "stonith-watchdog-timeout=15s", "stonith-watchdog-timeout=30s"
)

// sbdDefaults is /etc/default/sbd as the page has it. /dev/watchdog is one of User-Mode Linux, which the lab has not.
func sbdDefaults(t *testing.T) string {
	return replaced(t, fencingPage(t, "as far as the kernel can be trusted:"), "/dev/watchdog", "/dev/watchdog1", pageDog, slowDog)
}

// Instead of a virtual machine there is a writer, and without systemd vmlockd has the agent of the package.
func crmCommands(t *testing.T) string {
	page := fencingPage(t, "With crm:")
	before, rest, _ := strings.Cut(page, "primitive web ")
	_, after, _ := strings.Cut(rest, "failure-timeout=30s\n")
	page = before + "primitive web ocf:lab:writer op start timeout=120s op monitor interval=30s timeout=60s\n" + after +
		"location first web 100: node3\nlocation second web 50: node1\n"
	return "crm configure <<'END'\n" + replaced(t, page, "systemd:vmlockd", "ocf:vmlockd:vmlockd", pageReset, slowReset) + "commit\nquit\nEND\n"
}

func pcsCommands(t *testing.T) string {
	page := fencingPage(t, "With pcs:")
	before, rest, _ := strings.Cut(page, "pcs resource create web ")
	_, after, _ := strings.Cut(rest, "failure-timeout=30s\n")
	// What pcs does is done at once: it is to start when it is known where.
	page = before + "pcs resource create web ocf:lab:writer op start timeout=120s op monitor interval=30s timeout=60s --disabled\n" + after +
		"pcs constraint location web prefers node3=100 node1=50\npcs resource enable web\n"
	// By force, as pcs asks systemd whether sbd is there.
	return "set -e\n" + replaced(t, page, "systemd:vmlockd", "ocf:vmlockd:vmlockd", pageReset, slowReset+" --force")
}

// pacemaker starts Pacemaker on all nodes, and sbd before it if that is wanted, as systemd would.
func (r *run) pacemaker(sbd bool) {
	r.t.Helper()
	for _, n := range r.Nodes() {
		r.must(n.WaitRing(r.ctx, 1, 2, 3))
		r.sh(n.ID(), "modprobe softdog nowayout=0 && chmod 755 $(find "+agentDir+"vmlockd "+agentDir+"lab -type f) && "+
			"mkdir -p /run/crm /run/resource-agents && chown hacluster:haclient /run/crm && chown -R hacluster:haclient /var/lib/pacemaker && rm -f /var/lib/pacemaker/*/*")
		const env = "set -a; . /etc/default/sbd; PCMK_logfile=" + lab.LogsDir + "/pacemaker.log PCMK_stderr=1 "
		// sbd first: what Pacemaker does depends on whether it is there.
		for _, p := range []struct{ name, command string }{{"sbd", "exec sbd -p /run/sbd.pid -P watch"}, {"pacemakerd", "exec pacemakerd -f"}} {
			if p.name == "sbd" && !sbd {
				continue
			}
			_, err := n.Start(r.ctx, p.name, "sh", "-c", env+"; "+p.command)
			r.must(err)
		}
	}
	r.awaitPacemaker()
}

func (r *run) awaitPacemaker() {
	r.t.Helper()
	r.await("Pacemaker to have all nodes", 3*time.Minute, func() bool {
		res, err := r.Node(1).Exec(r.ctx, "crm_mon", "-1", "-r")
		return err == nil && strings.Contains(res.Stdout, "Online: [ node1 node2 node3 ]")
	})
}

// awaitMode waits until the cluster is whole, and the guards of all nodes are in that mode.
func (r *run) awaitMode(mode string) {
	r.t.Helper()
	for _, n := range r.Nodes() {
		r.await("vmlockd of "+n.Name()+" to be in the cluster, in mode "+mode, 4*time.Minute, func() bool {
			st := r.status(n.ID())
			return r.whole(st) && st.Cluster.Guard.Mode == mode && st.Cluster.Guard.Refuses == ""
		})
	}
}

// unfailed fails the test if Pacemaker knows of an action that has failed.
func (r *run) unfailed(when string) {
	r.t.Helper()
	if out := r.sh(1, "crm_mon -1 -r -f"); strings.Contains(out, "Failed Resource Actions") {
		r.t.Errorf("%s:\n%s", when, out)
	}
}

// cutOff waits for the writer on node 3, cuts that node off, and sees it reset before the writer is on node 1.
func (r *run) cutOff(shell string) {
	r.awaitMode("fencing")
	r.goesOn(3, 3*time.Minute)
	r.crashed()
	r.logged[logConsole] = len(r.log(logConsole))
	r.must(r.loser().Cut(r.ctx))
	r.fault(fmt.Sprintf("node 3 is cut off, where Pacemaker runs dlm_controld and vmlockd (set up with %s), and sbd without a disk", shell))
	r.await("sbd to have node 3 reset", 2*detection, r.isReset)
	r.must(r.loser().PowerCut(r.ctx)) // it does not boot by itself in the lab
	r.goesOn(1, 3*time.Minute)
	r.judge()
	if !r.t.Failed() {
		r.rows = append(r.rows, r.row())
	}
	r.writeFaults(r.t)
}

// isReset reports whether the last node runs no more: softdog or sbd have seen to that.
func (r *run) isReset() bool {
	r.t.Helper()
	st, err := r.loser().Status(r.ctx)
	r.must(err)
	if st.State != lab.NodeRunning {
		return true
	}
	console := r.log(logConsole)
	for _, said := range []string{resets, "sysrq: Reset", "sysrq: Power Off", "reboot: Restarting system", "reboot: Power down"} {
		if strings.Contains(console, said) {
			return true
		}
	}
	return false
}

// crashed kills vmlockd on node 3: the agent, asked by Pacemaker, or here in its place, starts it again, and the writer is left alone.
func (r *run) crashed() {
	r.t.Helper()
	const agent = "OCF_ROOT=/usr/lib/ocf OCF_RESKEY_CRM_meta_interval=%d " + agentDir + "vmlockd/vmlockd monitor"
	first := r.sh(3, "cat /run/vmlockd-agent.pid")
	r.sh(3, "kill -9 $(cat /run/vmlockd-agent.pid); "+fmt.Sprintf(agent, 0)+"; test $? = 7") // a probe starts nothing
	r.step("vmlockd of node 3 is killed")
	r.sh(3, fmt.Sprintf(agent, 60000))
	if again := r.sh(3, "cat /run/vmlockd-agent.pid"); again == first {
		r.t.Errorf("vmlockd has the pid %s, as before", again)
	}
	r.await("vmlockd of node 3 to have its lock", 30*time.Second, func() bool {
		st := r.status(3)
		return st != nil && st.Counts.Locks == 1
	})
	r.goesOn(3, 10*time.Second)
}
