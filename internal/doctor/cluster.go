package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

// controldTimeout bounds each question to dlm_controld.
const controldTimeout = 3 * time.Second

func ask[T any](ctx context.Context, timeout time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return f(ctx)
}

// cluster looks at what backend "cluster" stands on.
func (x *exam) cluster() {
	x.module()
	conf := x.corosyncConf()
	if x.procsErr == nil && len(x.called("corosync")) == 0 {
		x.find(idCorosync, "corosync", "systemctl start corosync dlm; if it fails, journalctl -u corosync says why",
			"corosync does not run: this host is not in the cluster and gets no locks")
	}
	x.clusterBoot()
	st, err := ask(x.ctx, controldTimeout, x.Controld.Status)
	answered := x.controld(err)
	if answered {
		x.membership(st, conf)
		x.node(st.NodeID, conf)
	}
	x.lockspace(answered, st)
	x.fencing(answered, conf)
	x.peers()
}

func (x *exam) module() {
	if !exists(x.System, "/sys/module/dlm") {
		x.find(idModule, "/sys/module/dlm", "modprobe dlm",
			"the kernel's module dlm is not loaded: dlm_controld and vmlockd cannot work without it")
	}
	// What is built into the kernel has no state of loading.
	if exists(x.System, "/sys/module/dlm") && !exists(x.System, "/sys/module/dlm/initstate") {
		return
	}
	files := []string{"/etc/modules"}
	for _, dir := range []string{"/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d", "/lib/modules-load.d"} {
		names, err := list(x.System, dir)
		if err != nil {
			x.unchecked(dir, err, "what is loaded at boot")
			return
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".conf") {
				files = append(files, sysPath(dir, n))
			}
		}
	}
	for _, f := range files {
		text, err := x.System.ReadFile(f, maxConf)
		if err != nil {
			continue // a link to nowhere, or gone; then that file loads nothing
		}
		for line := range strings.Lines(string(text)) {
			if strings.TrimSpace(line) == "dlm" {
				return
			}
		}
	}
	// Debian's unit of dlm_controld loads it, too.
	if on, err := enabled(x.System, "dlm.service"); err == nil && on {
		u, err := readUnit(x.System, "dlm.service")
		for _, s := range u.values["Service.ExecStartPre"] {
			if err == nil && strings.Contains(s.text, "modprobe dlm") {
				return
			}
		}
	}
	x.find(idModuleBoot, "/etc/modules-load.d", "echo dlm > /etc/modules-load.d/dlm.conf",
		"nothing loads the module dlm at boot: after the next one this host cannot lock")
}

// clusterBoot looks at whether systemd starts what the cluster needs.
func (x *exam) clusterBoot() {
	if !x.systemd() {
		return
	}
	pacemaker, err := x.pacemakerHere()
	if err != nil {
		x.unchecked("pacemaker.service", err, "whether it is started at boot")
	}
	if pacemaker || err != nil {
		return // it starts these itself
	}
	for _, name := range []string{"corosync.service", "dlm.service"} {
		u, err := readUnit(x.System, name)
		on := false
		if err == nil {
			on, err = enabled(x.System, name)
		}
		switch {
		case err != nil:
			x.unchecked(name, err, "whether it is started at boot")
		case u.path != "" && !on:
			x.find(idClusterBoot, name, "systemctl enable "+name, "%s is not started at boot: after the next one this host gets no locks", name)
		}
	}
}

// controld reports why dlm_controld does not answer, if it does not.
func (x *exam) controld(err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, controld.ErrNotRunning) && len(x.called("dlm_controld")) == 0:
		x.find(idControld, "dlm_controld", "systemctl start dlm; if it fails, journalctl -u dlm says why",
			"dlm_controld does not run: the kernel's DLM does not work on this host")
	default:
		x.find(idControldMum, "dlm_controld", "dlm_tool status shows whether it hangs; journalctl -u dlm and -u corosync say what it does",
			"dlm_controld does not answer: locks are refused where the lockspace has to recover, and how the cluster is cannot be seen: %v", err)
	}
	return false
}

// membership looks at who is in the cluster.
func (x *exam) membership(st controld.Status, conf *section) {
	var members, absent, fence []int
	for _, n := range st.Nodes {
		if n.Member {
			members = append(members, n.NodeID)
		}
	}
	for _, n := range slices.Concat(st.Nodes, st.Startup) {
		if n.NeedFencing && !n.Member {
			fence = append(fence, n.NodeID)
		}
	}
	if conf != nil {
		for _, n := range conf.nodes() {
			if n.id != 0 && !slices.Contains(members, n.id) && !slices.Contains(fence, n.id) {
				absent = append(absent, n.id)
			}
		}
	}
	if !st.Quorate {
		remedy := "corosync-quorumtool -s shows who is missing; bring these hosts or the network to them back"
		if conf != nil && conf.device().line > 0 {
			remedy += ", or the quorum device: corosync-qdevice-tool -s here, and corosync-qnetd-tool -l where it is"
		}
		x.find(idNoQuorum, "corosync", remedy,
			"the cluster has no quorum; this host sees %s: locks are refused", nodesText(members))
		return // what is missing is said with it
	}
	for _, id := range fence {
		x.find(idFencingWait, fmt.Sprintf("node %d", id),
			fmt.Sprintf("see 'dlm_tool status' and the fence agent's log; if node %d is certain to be off, dlm_tool fence_ack %d", id, id),
			"node %d was lost and must be fenced before anybody gets what it had locked; until then locks are refused", id)
	}
	for _, id := range absent {
		x.find(idNodeAbsent, fmt.Sprintf("node %d", id), fmt.Sprintf("start corosync and dlm on node %d, or take it out of corosync.conf on all hosts", id),
			"node %d is in corosync.conf and not in the cluster: with one host less, quorum is sooner lost", id)
	}
}

func nodesText(ids []int) string {
	if len(ids) == 0 {
		return "no node"
	}
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = fmt.Sprint(id)
	}
	return "only the nodes " + strings.Join(text, ", ")
}

// node looks at whether corosync.conf knows this host by its number and name.
func (x *exam) node(id int, conf *section) {
	if conf == nil || len(conf.nodes()) == 0 {
		return
	}
	i := slices.IndexFunc(conf.nodes(), func(n coroNode) bool { return n.id == id })
	if i < 0 {
		x.find(idNodeID, coroPath, fmt.Sprintf("give this host's node the line 'nodeid: %d', the same on all hosts, or restart corosync, dlm and vmlockd while no virtual machine runs here", id),
			"this host is node %d of the running cluster, and the file has no such node: it was changed since corosync was started", id)
		return
	}
	n := conf.nodes()[i]
	name, err := x.System.Hostname()
	if err != nil {
		x.unchecked("/proc/sys/kernel/hostname", err, "this host's name")
		return
	}
	if !strings.EqualFold(short(n.name), short(name)) {
		x.find(idNodeName, fmt.Sprintf("%s:%d", coroPath, n.line), fmt.Sprintf("name: %s", name),
			"node %d is named %q there, and this host %q: messages name a host that nobody finds", id, n.name, name)
	}
}

func short(name string) string {
	name, _, _ = strings.Cut(name, ".")
	return name
}

// lockspace looks at the lockspace, unless what was found explains it already. st is what dlm_controld says, if it answers.
func (x *exam) lockspace(controldAnswers bool, st controld.Status) {
	name := x.cfg.Cluster.Lockspace
	kernel := exists(x.System, "/sys/kernel/dlm/"+name)
	dead := x.daemon.Lockspace == lockspaceDead
	switch {
	case !kernel:
	case x.counts[idControld] > 0:
		dead = true
	case controldAnswers && (x.silent != nil || x.daemon.Lockspace == lockspaceRunning):
		_, err := ask(x.ctx, controldTimeout, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, x.Controld.Known(ctx, name)
		})
		switch {
		case errors.Is(err, controld.ErrNoLockspace):
			dead = true
		case err != nil:
			x.unchecked("dlm_controld", err, "whether it knows the lockspace "+name)
		}
	}
	switch {
	case dead:
		x.find(idReboot, "/sys/kernel/dlm/"+name, "end or move this host's virtual machines, then reboot it",
			"dlm_controld ended while the lockspace %s was in use: this host can neither get nor give back locks until it is rebooted", name)
	case x.silent != nil || x.daemon.Lockspace == lockspaceRunning || x.daemon.Lockspace == "":
	case !controldAnswers || !st.Quorate || x.counts[idFencingWait] > 0:
	default:
		x.stopped(name, st)
	}
}

func (x *exam) peers() {
	for _, p := range x.daemon.Peers {
		where := fmt.Sprintf("%s (node %d)", p.Name, p.NodeID)
		switch {
		case p.Silent:
			x.find(idPeerSilent, where, "on that host: systemctl status vmlockd; vmlockctl doctor",
				"vmlockd on that host does not answer: nobody here can say what it holds")
		case p.Version != "" && p.Version != x.daemon.Version:
			x.find(idPeerVersion, where, "install the same version everywhere, then systemctl reload vmlockd",
				"vmlockd is %s there and %s here", p.Version, x.daemon.Version)
		}
	}
	for _, w := range x.daemon.Warnings {
		switch w.Code {
		case warnNoDaemon:
			x.find(idPeerAbsent, "vmlockctl status", "on those hosts: systemctl enable --now vmlockd; vmlockctl doctor", "%s", w.Message)
		case warnConfigurations, warnRules:
			x.find(idPeerConfig, x.Config, "make "+x.Config+" and qemu-lockd.conf the same on all hosts, then restart vmlockd", "%s", w.Message)
		}
	}
}
